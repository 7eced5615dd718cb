"""Checkpoints: bit-equal, hashed, and whole whatever happens while one is written."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile

import pytest
import torch

from inco.errors import StorageError
from inco.records import checkpoint
from inco.records.checkpoint import FORMAT_VERSION, Checkpoints, State

FILES = ("state.safetensors", "meta.json", "manifest.json")


def state(round_, size=1000):
    generator = torch.Generator().manual_seed(round_)
    tensors = {"w": torch.randn(size, generator=generator), "n": torch.tensor([round_])}
    return State(round_, tensors, {"best": 1.5, "rounds": [round_]})


def same(a, b):
    return a.round == b.round and a.meta == b.meta and a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors
    )  # fmt: skip


def names(folder):
    return sorted(path.name for path in (folder / "checkpoint").iterdir())


def two(folder):
    store = Checkpoints(folder)
    store.save(state(1))
    store.save(state(2))
    return folder / "checkpoint/round_000002"


def test_round_trip_is_bit_equal(tmp_path):
    payload = torch.tensor([0x7FC00001, 0x7F800001, -1, 0x7F800000, 1, -(2**31)], dtype=torch.int32)
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "nan": payload.view(torch.float32), "long": torch.tensor([2**62 + 1, -(2**63)]), "flag": torch.tensor([True, False]),
        "half": torch.randn(5).to(torch.bfloat16), "f64": torch.randn(3, dtype=torch.float64), "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 3), "turned": base.t(), "part": base[1], "whole": base, "again": base,
        "u8": torch.arange(3).byte(), "grad": torch.ones(2, requires_grad=True),
    }  # fmt: skip
    meta = {"digest": "é", "nested": {"list": [1, 2.5, None, True]}, "big": 2**70}
    path = Checkpoints(tmp_path).save(State(12, tensors, meta))
    got = Checkpoints(tmp_path).load_latest()
    assert path.name == "round_000012" and sorted(file.name for file in path.iterdir()) == sorted(
        FILES
    )
    assert got.round == 12 and got.meta == meta and got.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got.tensors[name].dtype == tensor.dtype and got.tensors[name].shape == tensor.shape
        raw = tensor.detach().contiguous().flatten().view(torch.uint8)
        assert torch.equal(got.tensors[name].flatten().view(torch.uint8), raw), name
    got.tensors["whole"].add_(1)  # loaded tensors are the caller's own


def test_no_checkpoint_is_none_and_the_newest_two_are_kept(tmp_path):
    store = Checkpoints(tmp_path)
    assert store.load_latest() is None
    for round_ in (1, 2, 3, 1_000_000):
        store.save(state(round_))
    assert names(tmp_path) == ["round_000003", "round_1000000"] and same(
        store.load_latest(), state(1_000_000)
    )
    store.save(state(2))  # a run that went back drops the future it abandoned
    assert names(tmp_path) == ["round_000002"] and store.warnings == []


def test_the_same_round_again_replaces(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    store.save(state(1))
    store.save(State(1, {"x": torch.ones(1)}, {}))
    assert same(store.load_latest(), State(1, {"x": torch.ones(1)}, {})) and names(tmp_path) == [
        "round_000001"
    ]


def spoil(path, how):
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(
            {
                "truncated": data[: len(data) // 2],
                "empty": b"",
                "flipped": data,
                "longer": data + b" ",
            }[how]
        )


DAMAGE = [
    (name, how) for name in FILES for how in ("truncated", "empty", "flipped", "missing", "longer")
]
DAMAGE.remove(("manifest.json", "longer"))  # a space after it changes nothing in it


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, how):
    newest = two(tmp_path)
    spoil(newest / name, how)
    store = Checkpoints(tmp_path)
    assert same(store.load_latest(), state(1))
    assert len(store.warnings) == 1 and "round_000002" in store.warnings[0]


def test_any_flipped_bit_of_the_manifest_is_noticed(tmp_path):
    newest = two(tmp_path) / "manifest.json"
    good = newest.read_bytes()
    for at in range(0, len(good), 7):
        newest.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        store = Checkpoints(tmp_path)
        got = store.load_latest()
        assert same(got, state(1)) or (
            same(got, state(2)) and json.loads(newest.read_bytes()) == json.loads(good)
        ), at


def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path):
    two(tmp_path)
    for path in (tmp_path / "checkpoint").iterdir():
        spoil(path / "meta.json", "empty")
    with pytest.raises(StorageError, match=r"round_000002.*round_000001.*fresh=true"):
        Checkpoints(tmp_path).load_latest()


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", FORMAT_VERSION + 1)
    two(tmp_path)
    monkeypatch.undo()
    with pytest.raises(
        StorageError, match=r"format 2; this InCo reads formats up to 1.*newer InCo"
    ):
        Checkpoints(tmp_path).load_latest()


@pytest.mark.parametrize("call", range(1, 6))
def test_disk_full_at_any_fsync_keeps_the_previous(tmp_path, monkeypatch, call):
    Checkpoints(tmp_path).save(state(1))
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="free some space") as caught:
        Checkpoints(tmp_path).save(state(2))
    monkeypatch.undo()
    assert caught.value.exit_code == 74 and not any(
        name.startswith(".") for name in names(tmp_path)
    )
    # the fifth comes after the rename
    assert Checkpoints(tmp_path).load_latest().round == (1 if call < 5 else 2)


def test_a_write_that_the_kernel_cuts_short_keeps_the_previous(tmp_path):
    Checkpoints(tmp_path).save(state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="resume"):
            Checkpoints(tmp_path).save(state(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["round_000001"] and same(
        Checkpoints(tmp_path).load_latest(), state(1)
    )


def test_too_little_space_is_told_before_a_byte_is_written(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path)
    store.save(state(1))
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})()
    )
    with pytest.raises(StorageError, match=r"needs 1\.0 MiB.*free some space"):
        store.save(state(2))
    assert names(tmp_path) == ["round_000001"]


def test_an_old_one_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch):
    two(tmp_path)
    store = Checkpoints(tmp_path)

    def busy(*_args, **_kwargs):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(
        checkpoint.shutil,
        "rmtree",
        lambda path, ignore_errors=False: None if ignore_errors else busy(),
    )
    store.save(state(3))
    assert "busy" in store.warnings[0] and same(Checkpoints(tmp_path).load_latest(), state(3))


def test_what_is_not_json_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        Checkpoints(tmp_path).save(State(1, {}, {"x": object()}))
    assert names(tmp_path) == [] and Checkpoints(tmp_path).load_latest() is None


KILLS = """
import os, signal, shutil, sys
from pathlib import Path
import torch
from inco.records import checkpoint
from inco.records.checkpoint import Checkpoints, State
torch.set_num_threads(1)
home = Path(sys.argv[1])
def state(r): return State(r, {"w": torch.full((2000,), float(r))}, {"r": r})
def dying(point, keep, again):
    count = [0]
    def counted(real):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == point: os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "rename", "mkdir", "unlink", "rmdir"): setattr(os, name, counted(getattr(os, name)))
    checkpoint.save_file = counted(checkpoint.save_file)
    Checkpoints(home, keep).save(state(2 if again else 3))
for keep, again in ((2, False), (1, True)):
    for point in range(1, 60):
        shutil.rmtree(home, ignore_errors=True)
        for r in (1, 2): Checkpoints(home, keep).save(state(r))
        pid = os.fork()
        if not pid:
            dying(point, keep, again); os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        store = Checkpoints(home, keep)
        got = store.load_latest()
        assert got.round in ((2,) if again else (2, 3)) and not store.warnings, (keep, point, got, store.warnings)
        assert torch.equal(got.tensors["w"], state(got.round).tensors["w"]) and got.meta == {"r": got.round}
        left = sorted(path.name for path in (home / "checkpoint").iterdir())
        assert not any(name.startswith(".") for name in left), left
        if not killed: break
    print(keep, again, point)
"""


def test_a_kill_at_any_point_of_saving_loses_nothing():
    # a real fsync a step would take seconds
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as home:
        done = subprocess.run(
            [sys.executable, "-c", KILLS, f"{home}/run"], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    points = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    # every run was killed at each step, then let live
    assert len(points) == 2 and all(8 < point < 59 for point in points)

"""R11 to R16: checkpoints that are damaged or of another run, disks that are full, folders that
cannot be written.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import read_rows, read_summary

from faults.sitting import ONE, copied, last_checkpoint, same_end, sit
from faults.test_input import quickest
from inco.errors import ConfigError, StorageError
from inco.records import checkpoint
from inco.records.checkpoint import FORMAT_VERSION, Checkpoints, _hash_json
from inco.records.record import RunRecord
from inco.run.front import check

pytestmark = pytest.mark.full

STATEFUL = ("algorithm=scaffold", "local=sgd", "local.momentum=0")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of three rounds, and the same with a fourth in one sitting."""
    place = tmp_path_factory.mktemp("three")
    sit(place / "three", *STATEFUL, rounds=3)
    sit(place / "four", *STATEFUL, rounds=4)
    return place / "three", place / "four"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def goes_on_from_the_one_before(
    three: tuple[Path, Path], name: str, damage: Callable[[Path], None]
) -> None:
    run = copied(three[0], name)
    assert len(list((run / "checkpoint").glob("round_*"))) == 2, "two are kept"
    damage(last_checkpoint(run) / "state.safetensors")
    summary = sit(run, *STATEFUL, rounds=4)
    assert any("round_000003" in text and "passed over" in text for text in summary["warnings"])
    same_end(run, three[1])


def test_r11_a_truncated_checkpoint_is_passed_over(three: tuple[Path, Path]) -> None:
    """With a warning, for the one before; the run ends with the bits that it would have had.

    Where none is left it is an error.
    """
    goes_on_from_the_one_before(three, "truncated", truncate)
    run = copied(three[0], "all_truncated")
    for one in (run / "checkpoint").glob("round_*"):
        truncate(one / "state.safetensors")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(StorageError, match=r"no checkpoint .* can be used"):
        sit(run, *STATEFUL, rounds=4)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_r12_a_flipped_byte_is_noticed(three: tuple[Path, Path]) -> None:
    goes_on_from_the_one_before(three, "flipped", flip)


def test_r13_an_empty_file_is_passed_over(three: tuple[Path, Path]) -> None:
    goes_on_from_the_one_before(three, "emptied", empty)


def test_r13_a_newer_format_is_refused(three: tuple[Path, Path]) -> None:
    run = copied(three[0], "newer")
    for one in (run / "checkpoint").glob("round_*"):
        manifest = json.loads((one / "manifest.json").read_text())
        del manifest["sha256"]
        manifest["format_version"] = FORMAT_VERSION + 1
        (one / "manifest.json").write_text(json.dumps(manifest | {"sha256": _hash_json(manifest)}))
    with pytest.raises(
        StorageError,
        match=rf"format {FORMAT_VERSION + 1}; this InCo reads formats up to {FORMAT_VERSION}",
    ):
        sit(run, *STATEFUL, rounds=4)


def test_r13_another_configuration_is_refused_key_by_key(three: tuple[Path, Path]) -> None:
    """Only rounds, logging, workers and the like may differ, with a summary and without."""
    run = copied(three[0], "other")
    for missing in ("", "summary.json"):
        (run / missing).unlink() if missing else None
        with pytest.raises(ConfigError) as caught:
            sit(run, *STATEFUL, "local.lr=0.5", "seed=3", rounds=4)
        text = "\n".join(caught.value.problems)
        assert (
            "local.lr: this folder's run has 0.01, this command 0.5" in text
            and "seed: " in text
            and len(caught.value.problems) == 3
        ), text
    assert (
        sit(run, *STATEFUL, "checkpoint_every=2", "engine.retry=1", "engine.mode=eager", rounds=4)[
            "rounds"
        ]
        == 4
    )
    same_end(run, three[1])


def test_r13_a_file_beside_the_checkpoints_does_no_harm(three: tuple[Path, Path]) -> None:
    """A copy that somebody has made, under a name of their own."""
    run = copied(three[0], "beside")
    latest = last_checkpoint(run)
    os.rename(copied(latest, "round_000003.bak"), run / "checkpoint" / "round_000003.bak")
    assert sit(run, *STATEFUL, rounds=4)["rounds"] == 4
    same_end(run, three[1])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse every write beyond this size of a file, as a full disk does,
    halfway.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_r14_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_one_before(
    three: tuple[Path, Path],
) -> None:
    """The run stops with exit code 74. With space again it goes on to the same bits."""
    run = copied(three[0], "full")
    size = (last_checkpoint(run) / "state.safetensors").stat().st_size
    with (
        largest_file(size - 100),
        pytest.raises(StorageError, match="cannot write the checkpoint") as caught,
    ):
        sit(run, *STATEFUL, rounds=4)
    assert caught.value.exit_code == 74
    saved = Checkpoints(run).load_latest()
    assert saved is not None and saved.round == 3 and not list((run / "checkpoint").glob(".*"))
    sit(run, *STATEFUL, rounds=4)
    same_end(run, three[1])


def test_r14_too_little_space_is_told_before_a_byte_is_written(
    three: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(three[0], "little")
    written: list[object] = []
    monkeypatch.setattr(checkpoint, "save_file", lambda *args: written.append(args))
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})()
    )
    with pytest.raises(StorageError, match="free some space"):
        sit(run, *STATEFUL, rounds=4)
    assert written == [] and last_checkpoint(run).name == "round_000003"


def test_r15_a_row_that_cannot_be_written_ends_the_run(three: tuple[Path, Path]) -> None:
    """Exit code 74, no half line, and the round that has no row has no checkpoint either."""
    run = copied(three[0], "rows")
    first, *others = read_rows(run)
    # larger than all that is written besides
    padded = [
        json.dumps(first | {"padding": "x" * 3_000_000}),
        *map(json.dumps, others),
    ]
    (run / "metrics.jsonl").write_text("\n".join(padded) + "\n")
    before = (run / "metrics.jsonl").read_bytes()
    with (
        largest_file(len(before) + 20),
        pytest.raises(StorageError, match=r"cannot write round 4 to .*metrics.jsonl") as caught,
    ):
        sit(run, *STATEFUL, rounds=5)
    assert caught.value.exit_code == 74 and (run / "metrics.jsonl").read_bytes() == before
    assert last_checkpoint(run).name == "round_000003"
    assert (read_summary(run)["status"], read_summary(run)["rounds"]) in {
        ("failed", 3),
        ("finished", 3),
    }, "or the former one"


def test_r15_rows_that_have_been_lost_are_counted_in_the_end(three: tuple[Path, Path]) -> None:
    run = copied(three[0], "lost")
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(rows[0] + rows[2])
    assert any("3 rows for 4 rounds" in text for text in sit(run, *STATEFUL, rounds=4)["warnings"])
    assert read_summary(three[1])["warnings"] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_r15_a_log_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """run.log says what the record says as well, so the run goes on, and ends well."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.log").symlink_to("/dev/full")
    assert sit(tmp_path / "run", rounds=3)["status"] == "finished"
    assert capsys.readouterr().err.count("the run goes on without it") == 1


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run", "readonly/run", "x" * 300])
def test_r16_a_folder_that_cannot_be_written_is_told_at_once(
    type_command, tmp_path: Path, place: str
) -> None:
    """Exit code 74 in 2 s, before torch is imported.

    Root may write anywhere, but not below a file or in /proc.
    """
    if place == "readonly/run" and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "readonly").mkdir(mode=0o555)
    done = quickest(type_command, *ONE, f"hydra.run.dir={place}", seconds=2)
    assert done.returncode == 74 and place.strip("/").split("/")[0] in done.stderr, done.stderr


def test_r16_a_missing_folder_is_made(tmp_path: Path) -> None:
    from support import ROOT

    points = check(ROOT / "conf", [f"hydra.run.dir={tmp_path}/a/b/c"])
    assert (
        points is not None
        and points[0][0].folder == tmp_path / "a/b/c"
        and not (tmp_path / "a").exists()
    ), "checking makes nothing"
    sit(tmp_path / "a" / "b" / "c", rounds=1)
    assert len(RunRecord(tmp_path / "a/b/c").rows()) == 1

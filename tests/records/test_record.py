"""The local record: rows survive kills and full disks, rewinding is exact, one writer a folder."""

import errno
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from inco.errors import StorageError
from inco.records.log import setup_log
from inco.records.record import RunLock, RunRecord, atomic_write


def row(round_, **more):
    return {"round": round_, "test/acc": 10.0 * round_, "train/loss": 1.0 / (round_ + 1), **more}


def no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_rows_keep_their_key_order_and_are_on_disk_at_once(tmp_path):
    record = RunRecord(tmp_path / "run")
    record.append({"round": 1, "b": 2, "a": 1})
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"round": 1, "b": 2, "a": 1}\n'
    assert (
        len(record.rows()) == 1
        and record.last_round == 1
        and RunRecord(tmp_path / "run").rows() == [{"round": 1, "b": 2, "a": 1}]
    )


def test_what_json_does_not_know_is_made_plain(tmp_path):
    record = RunRecord(tmp_path)
    odd = {
        "nan": float("nan"),
        "inf": torch.tensor(float("inf")),
        "np": np.float32(0.5),
        "t": torch.tensor(3),
    }
    record.append(row(1, **odd, deep=[float("-inf")]))
    got = json.loads(
        (tmp_path / "metrics.jsonl").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert (
        got["nan"] is None
        and got["inf"] is None
        and got["np"] == 0.5
        and got["t"] == 3
        and got["deep"] == [None]
    )


def test_rewind_keeps_bytes_and_drops_the_rest(tmp_path):
    record = RunRecord(tmp_path)
    for round_ in range(1, 6):
        record.append(row(round_))
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    record.rewind(3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:3]) and len(
        record.rows()
    ) == 3
    record.append(row(4))
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(lines[:4])
    record.rewind(0)
    assert record.rows() == [] and record.last_round is None


@pytest.mark.parametrize("torn", [b'{"round": 3, "tes', b'{"round": 3}', b"\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    RunRecord(tmp_path).append(row(1))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(torn)
    record = RunRecord(tmp_path)
    # reading changes nothing
    assert len(record.rows()) == 1 and (tmp_path / "metrics.jsonl").read_bytes().endswith(torn)
    record.append(row(2))
    assert [kept["round"] for kept in RunRecord(tmp_path).rows()] == [1, 2]


def test_a_damaged_line_in_the_middle_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\nnonsense\n{"round": 3}\n')
    with pytest.raises(StorageError, match=r"line 2.*fresh=true"):
        RunRecord(tmp_path)


def test_a_round_twice_is_a_mistake(tmp_path):
    record = RunRecord(tmp_path)
    record.append(row(2))
    with pytest.raises(ValueError, match="rewind"):
        record.append(row(2))


def test_a_write_that_fails_halfway_is_an_error_and_leaves_no_half_line(tmp_path):
    record = RunRecord(tmp_path)
    record.append(row(1))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the kernel takes 9 bytes more, then fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"round 2 to .*metrics.jsonl.*resume") as caught:
            record.append(row(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        caught.value.exit_code == 74
        and len(record.rows()) == 1
        and (tmp_path / "metrics.jsonl").read_bytes() == before
    )
    record.append(row(2))
    assert len(record.rows()) == 2 and len(RunRecord(tmp_path).rows()) == 2


def test_summary_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    record = RunRecord(tmp_path)
    assert record.read_summary() is None
    record.write_summary({"test/acc": float("nan"), "status": "interrupted"})
    assert record.read_summary() == {"test/acc": None, "status": "interrupted"}
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="free some space"):
        record.write_summary({"status": "finished"})
    assert record.read_summary()["status"] == "interrupted" and [
        path.name for path in tmp_path.iterdir()
    ] == ["summary.json"]
    record.summary.write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        record.read_summary()


def test_sync_reports_a_full_disk(tmp_path, monkeypatch):
    record = RunRecord(tmp_path)
    record.sync()
    record.append(row(1))
    record.sync()
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError):
        record.sync()


def test_a_folder_that_cannot_be_made_names_the_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="resume"):
        RunRecord(tmp_path / "file" / "run").append(row(1))
    with pytest.raises(StorageError):
        atomic_write(tmp_path / "file" / "x", "y")


def test_run_log_of_two_runs_in_one_process(tmp_path):
    root = list(logging.getLogger().handlers)
    for name in ("a", "b"):
        with setup_log(tmp_path / name) as log:
            log.info("this is %s", name)
            logging.getLogger("inco.engine.engine").warning("from below")
    for name in ("a", "b"):
        lines = (tmp_path / name / "run.log").read_text().splitlines()
        assert (
            len(lines) == 2
            and lines[0].endswith(f"inco: this is {name}")
            and "WARNING inco.engine.engine: from below" in lines[1]
        )
    logger = logging.getLogger("inco")
    assert logging.getLogger().handlers == root and logger.handlers == [] and logger.propagate


def test_run_log_that_cannot_be_written_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    with setup_log(tmp_path) as log:
        monkeypatch.setattr(logging.StreamHandler, "flush", no_space)
        log.info("one")
        log.info("two")
        monkeypatch.undo()
    assert capsys.readouterr().err.count("goes on without it") == 1


def test_lock_refuses_a_second_writer_and_is_given_back(tmp_path):
    with RunLock(tmp_path):
        with (
            pytest.raises(
                StorageError, match=rf"process {os.getpid()} on host {socket.gethostname()}"
            ),
            RunLock(tmp_path),
        ):
            pass
        assert (tmp_path / "run.lock").exists()
    assert not (tmp_path / "run.lock").exists()
    with RunLock(tmp_path):
        pass


def test_lock_of_a_live_process_holds_and_of_a_killed_one_is_taken_over(tmp_path):
    code = "import sys,time; from pathlib import Path; from inco.records.record import RunLock\n"
    code += "with RunLock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=f"process {child.pid} "), RunLock(tmp_path):
            pass
    finally:
        child.kill()
        child.communicate()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_lock_of_another_host_holds_and_a_reused_pid_does_not(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(StorageError, match=r"elsewhere.*delete"), RunLock(tmp_path):
        pass
    (tmp_path / "run.lock").write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "born": 1})
    )
    if os.path.exists("/proc/self/stat"):
        with RunLock(tmp_path):
            pass


def test_of_many_that_take_over_a_stale_lock_one_wins(tmp_path):
    (tmp_path / "run.lock").write_text(
        json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "born": 1})
    )
    code = (
        "import sys,time; from pathlib import Path; from inco.records.record import RunLock\ntry:\n"
    )
    code += "    with RunLock(Path(sys.argv[1])): print('won', flush=True); sys.stdin.read()\n"
    code += "except Exception: print('lost', flush=True)"
    args = [sys.executable, "-c", code, str(tmp_path)]
    crowd = [
        subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    first = [child.stdout.readline().strip() for child in crowd]
    for child in crowd:
        child.communicate("")
    assert sorted(first) == ["lost"] * 5 + ["won"] and not (tmp_path / "run.lock").exists()


@pytest.mark.skipif(
    not Path("/proc").exists(), reason="only /proc tells a process that waits to be reaped"
)
def test_the_lock_of_a_process_that_waits_to_be_reaped_is_taken_over(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from inco.records.record import RunLock;"
        f" RunLock(Path({str(tmp_path)!r})).__enter__()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    until = time.monotonic() + 20
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == child.pid, (
        "it has left its lock"
    )
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    child.wait()

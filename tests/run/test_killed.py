"""A run of several processes is killed at once, and goes on to the bits of a run that was never
interrupted, clients' vectors included.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from processes import wait_for_rounds, workers_of
from support import ROOT, TINY, read_rows, read_summary, simulate, timeless

COMMON = (
    *TINY,
    "local=sgd",
    "local.momentum=0",
    "local.weight_decay=0",
    "sample_ratio=0.6",
    "transform=inco",
)
NAME = "name=${hydra:runtime.choices.algorithm}"  # the folder below outputs/
# algorithm, whose clients keep vectors: rounds to wait for, seconds from then to the kill, whether
# the worker is killed as well
CASES = {
    "scaffold": (3, 0.0, True),
    "moon": (5, 0.0, False),
    "feddyn": (2, random.Random(20).uniform(0.0, 0.3), True),
}


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Type a command line in a folder and return at once; the process leads a group of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    with (folder / "killed.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )


def kill_amid(tmp_path: Path, algorithm: str) -> tuple[int, list[int]]:
    """Start a run on two workers and kill it.

    Returns the rounds on its record, and the processes beside its first.
    """
    folder, workers = tmp_path / "outputs" / algorithm, []
    rounds, pause, also_workers = CASES[algorithm]
    run = start(tmp_path, *COMMON, NAME, f"algorithm={algorithm}", "rounds=400", "engine.workers=2")
    try:
        wait_for_rounds(folder, 1)
        workers = workers_of(run.pid)
        wait_for_rounds(folder, rounds)
        time.sleep(pause)
    finally:  # also where a wait has failed: nothing that this test has started stays
        # a worker leads a group of its own
        for pid in (
            run.pid,
            *(workers if also_workers else ()),
        ):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        run.wait(timeout=30)
    assert run.returncode == -signal.SIGKILL, (tmp_path / "killed.log").read_text()
    assert len(workers) == 1 and not (folder / "summary.json").exists(), (
        f"{algorithm}: the kill was to come before the end"
    )
    assert list((folder / "clients").rglob("*.r*")), (
        f"{algorithm}: clients' vectors are in the run's folder"
    )
    done = (folder / "metrics.jsonl").read_text().count("\n")
    assert rounds <= done < 400
    return done, workers


def lives(pid: int) -> bool:
    """Say whether a process runs still; one that has ended and was not waited for has no command
    line.
    """
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def wait_until_gone(pids: list[int], timeout: float = 10) -> None:
    until = time.monotonic() + timeout
    while any(lives(pid) for pid in pids):
        if time.monotonic() > until:
            for pid in filter(lives, pids):
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(
                f"workers live {timeout} s after the run that started them was killed"
            )
        time.sleep(0.02)


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers by ps")
def test_kill_on_two_workers_and_going_on_with_one_leave_every_bit(
    type_command, tmp_path: Path
) -> None:
    """SIGKILL for all processes or for the first alone, between rounds or amid one; then the same
    command on one worker.

    One sweep takes all killed runs on to a round that none had reached, and runs in this process
    say what is right there.
    """
    done = {}
    for algorithm in CASES:
        done[algorithm], workers = kill_amid(tmp_path, algorithm)
        wait_until_gone(workers)
    rounds = max(done.values()) + 3
    more = type_command(
        "-m", *COMMON, NAME, f"algorithm={','.join(CASES)}", f"rounds={rounds}", "engine.workers=1"
    )
    assert more.returncode == 0, more.stderr
    after = dict(
        zip(CASES, map(int, re.findall(r"going on after round (\d+)", more.stdout)), strict=True)
    )
    for algorithm in CASES:
        assert done[algorithm] - 1 <= after[algorithm] <= done[algorithm], (
            f"{algorithm}: at most the round under way is lost"
        )
        compare(tmp_path / "outputs" / algorithm, algorithm, rounds)


def compare(folder: Path, algorithm: str, rounds: int) -> None:
    """A finished run's record against a run of one session, on one worker: this process, which
    keeps clients' vectors elsewhere.
    """
    from inco.records.record import plain
    from inco.run.summary import sha256

    state, rows, _ = simulate(*COMMON, f"algorithm={algorithm}", rounds=rounds)
    summary = read_summary(folder)
    assert (
        summary["status"] == "finished" and summary["rounds"] == rounds and summary["workers"] == 1
    )
    assert timeless(read_rows(folder)) == timeless(plain(rows)), algorithm
    assert summary["weights_sha256"] == sha256(state), algorithm

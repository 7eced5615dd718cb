"""Runs systems one after the other, each in fresh processes, and watches the machine while they
work.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.events import JOB
from benchmarks.machine import MARK, Sample, Watch
from benchmarks.systems import System

ROOT = Path(__file__).resolve().parents[1]
LOOK_S = 0.25  # between two looks at memory; a look costs about 2 ms
DIRTY = 0.10  # CPUs that others may keep busy in a clean round


@dataclass
class Round:
    """One round: seconds of training and scoring, how far weights moved, and the CPUs that others
    kept busy meanwhile.
    """

    number: int
    train_s: float
    eval_s: float
    moved: float
    foreign: float
    rss_mb: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Training and scoring together."""
        return self.train_s + self.eval_s

    @property
    def clean(self) -> bool:
        """Whether the machine was the trial's alone."""
        return self.foreign <= DIRTY


@dataclass
class Trial:
    """One start of one system.

    `rounds`: without the warm-up; `start_s`: until its first round; `failed`: why it does not
    count.
    """

    system: str
    repeat: int
    start_s: float = 0.0
    peak_mb: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    warm_up_s: float = 0.0
    failed: str = ""

    def record(self) -> dict[str, Any]:
        """Return the trial as plain data."""
        return asdict(self)


def interleave(
    systems: Sequence[System],
    settings: Mapping[str, Any],
    rounds: int,
    repeats: int,
    say: Callable[[str], None],
    timeout: float = 3600,
) -> list[Trial]:
    """Measure every system `repeats` times, in turns; each turn begins with another system.

    The first round of a trial is its warm-up.
    """
    trials = []
    for repeat in range(repeats):
        first = repeat % len(systems)
        for system in (*systems[first:], *systems[:first]):
            trial = run_trial(system, settings, rounds, repeat, timeout)
            trials.append(trial)
            seconds = ", ".join(f"{r.seconds:.3g}{'' if r.clean else '*'}" for r in trial.rounds)
            say(f"{repeat + 1}/{repeats}  {system.name}: {trial.failed or seconds + ' s'}")
    return trials


def run_trial(
    system: System, settings: Mapping[str, Any], rounds: int, repeat: int = 0, timeout: float = 3600
) -> Trial:
    """Start a system, follow `rounds` rounds after its warm-up, and see to it that nothing of it is
    left.
    """
    trial = Trial(system.name, repeat)
    missing = system.missing()
    if missing:
        trial.failed = f"not installed: {', '.join(missing)} (benchmarks/requirements.txt)"
        return trial
    with tempfile.TemporaryDirectory(prefix="inco-benchmark-") as name:
        folder = Path(name)
        mark = uuid.uuid4().hex
        with _pipe(folder / "events") as pipe:
            began = time.monotonic()
            watch = Watch(mark)
            process = _start(system, settings, rounds + 1, folder, mark)
            try:
                _follow(process, pipe, watch, trial, began, timeout)
            finally:
                _end(process, watch)
        trial.failed = trial.failed or _verdict(process, trial, rounds, folder / "said")
    return trial


def _start(
    system: System, settings: Mapping[str, Any], rounds: int, folder: Path, mark: str
) -> subprocess.Popen[bytes]:
    order = {
        "module": system.module,
        "threads": system.threads,
        "options": dict(system.options),
        "settings": {
            **settings,
            "engine": settings["engine"] | {"state_dir": str(folder / "clients")},
        },
        "rounds": rounds,
        "pipe": str(folder / "events"),
    }
    (folder / "job.json").write_text(json.dumps(order))
    threads = str(max(1, system.threads))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = (
        os.environ
        | {JOB: str(folder / "job.json"), MARK: mark, "PYTHONPATH": path}
        | dict(system.environment)
    )
    env |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    env |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    ranks = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={system.ranks}"]
        if system.ranks
        else []
    )
    with (folder / "said").open("wb") as said:
        command = [sys.executable, *ranks, "-m", "benchmarks.child"]
        return subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


@contextmanager
def _pipe(path: Path) -> Iterator[int]:
    os.mkfifo(path)
    # open for writing too, so that it does not end with its first writer
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield reader
    finally:
        os.close(reader)


def _follow(
    process: subprocess.Popen[bytes],
    pipe: int,
    watch: Watch,
    trial: Trial,
    began: float,
    timeout: float,
) -> None:
    """Collect events until the process ends."""
    last = watch.sample()
    rest = b""
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select([pipe], [], [], 0 if ended else LOOK_S)
        now = watch.sample()
        if ready:
            *lines, rest = (rest + os.read(pipe, 1 << 16)).split(b"\n")
            for line in lines:
                last = _note(json.loads(line), now, last, trial, began)
        elif ended:
            break
        elif now.wall - began > timeout:
            trial.failed = f"not done after {timeout:.0f} s"
            break
    trial.peak_mb = watch.peak_rss / 2**20


def _note(event: dict[str, Any], now: Sample, last: Sample, trial: Trial, began: float) -> Sample:
    kind = event.pop("event")
    if kind == "ready":
        trial.start_s = now.wall - began
    if kind == "round":
        number, train_s, eval_s, moved = (
            event.pop(key) for key in ("round", "train_s", "eval_s", "moved")
        )
        if number == 1:
            trial.warm_up_s = train_s + eval_s
        else:
            trial.rounds.append(
                Round(number, train_s, eval_s, moved, now.foreign(last), now.rss / 2**20, event)
            )
    return now


def _end(process: subprocess.Popen[bytes], watch: Watch) -> None:
    """End what is left of a trial: its own processes, by their numbers."""
    until = time.monotonic() + (0 if process.poll() is None else 3)
    while time.monotonic() < until and watch.left():
        time.sleep(0.1)
    for pid in watch.left():
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _verdict(process: subprocess.Popen[bytes], trial: Trial, rounds: int, said: Path) -> str:
    """Say why a trial does not count, or nothing."""
    if process.returncode or len(trial.rounds) != rounds:
        lines = said.read_text(errors="replace").strip().splitlines()
        return (
            f"failed with exit code {process.returncode} after {len(trial.rounds)} rounds:"
            f" {lines[-1] if lines else 'no message'}"
        )
    still = [r.number for r in trial.rounds if not 0 < r.moved < float("inf")]
    return f"the weights did not move in round {still[0]}: nothing has been learnt" if still else ""

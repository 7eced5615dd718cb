"""A whole sitting of a run in this process: what `python run.py` does after it has checked its
words, record and checkpoints included.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY, read_rows, read_summary, settings_of, timeless

from inco.records.checkpoint import Checkpoints
from inco.run.launch import lead
from inco.run.showing import Showing

ONE = (*TINY, "engine.workers=1")


def facts(folder: Path) -> dict[str, Any]:
    """What the command line tells a run about itself."""
    more: dict[str, Any] = {
        "choices": {},
        "experiment": None,
        "scale": None,
        "difference": {},
        "files": {"config.yaml": "seed: 0\n"},
    }
    return {
        "name": folder.name,
        "group": "faults",
        "tags": [],
        "method": "",
        "command": "python run.py",
        **more,
    }


def sit(folder: Path, *words: str, **more: Any) -> dict[str, Any]:
    """Run on one worker to the end and return the summary. `more`: top-level settings."""
    folder.mkdir(parents=True, exist_ok=True)
    return lead(settings_of(*ONE, *words) | more, folder, facts(folder))


def after_round(monkeypatch: pytest.MonkeyPatch, round: int, work: Callable[[], object]) -> None:
    """Do something in the sittings to come, once a round has been recorded."""
    shown = Showing.round

    def and_then(self: Showing, run: Any, metrics: Any, number: int) -> None:
        shown(self, run, metrics, number)
        if number == round:
            work()

    monkeypatch.setattr(Showing, "round", and_then)


def same_end(folder: Path, other: Path) -> None:
    """Two runs have ended alike: weights to the bit, all vectors of the last checkpoint, and every
    line of metrics but for times.
    """
    ours, theirs = read_summary(folder), read_summary(other)
    assert ours["status"] == theirs["status"] == "finished" and ours["rounds"] == theirs["rounds"]
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert timeless(read_rows(folder)) == timeless(read_rows(other))
    mine, other_state = Checkpoints(folder).load_latest(), Checkpoints(other).load_latest()
    assert (
        mine is not None
        and other_state is not None
        and mine.tensors.keys() == other_state.tensors.keys()
    )
    assert all(torch.equal(t, other_state.tensors[name]) for name, t in mine.tensors.items())


def copied(folder: Path, name: str) -> Path:
    """Copy a run's folder to one beside it."""
    shutil.copytree(folder, folder.with_name(name))
    return folder.with_name(name)


def last_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoint").glob("round_*"))


MINE = '''"""An algorithm with a fault in round 2, at client 3."""
import os
import time

import torch

from inco.algorithms.fedavg import Algorithm
from inco.engine.engine import Engine


class Faulty(Algorithm):
    def local_end(self, run):
        out = super().local_end(run)
        if run.task.round == 2 and run.task.client == 3:
            out = self.fault(run, out)
        return out

    def fault(self, run, out):
        raise ZeroDivisionError("of its own making")


class OnOtherWorker(Algorithm):
    def local_end(self, run):
        if run.task.round == 2 and os.environ.get("LOCAL_RANK") == "1":
            raise ZeroDivisionError("of its own making")
        return super().local_end(run)


class NotFinite(Faulty):
    def fault(self, run, out):
        out = {name: vector.clone() for name, vector in out.items()}
        out["delta"][-1] = float(os.environ["MINE_VALUE"])
        return out


class OutOfMemory(Faulty):
    """Once, or in every attempt."""

    times = int(os.environ.get("MINE_TIMES", "1"))

    def fault(self, run, out):
        if OutOfMemory.times:
            OutOfMemory.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return out


class Slow(Algorithm):
    def local_end(self, run):
        if run.task.round >= 3:
            time.sleep(60)
        return super().local_end(run)


class SlowServer(Algorithm):
    """Its round 3 is being applied for a minute."""

    rounds = 0

    def server_update(self, server, aggregate):
        self.rounds += 1
        if self.rounds == 3:
            time.sleep(60)
        return super().server_update(server, aggregate)


class SlowScores(Algorithm):
    """What it has made in round 3 is scored for a minute."""

    rounds = 0

    def server_update(self, server, aggregate):
        self.rounds += 1
        if self.rounds == 3:
            Engine.evaluate = lambda *_: time.sleep(60)
        return super().server_update(server, aggregate)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own with faults in it, allowed as a target.

    Returns how its classes are chosen, less the name.
    """
    import sys

    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("INCO_ALLOW_TARGETS", "mine")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return "algorithm._target_=mine."

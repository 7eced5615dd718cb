"""Runs of the project on the pretended GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from support import settings_of, timeless

import inco.assembly
from gpu.pretend import CUDA, Counts, Pretend
from inco.callbacks import Callback
from inco.config.validate import validate
from inco.engine.ranks import Ranks
from inco.errors import ConfigError
from inco.fast.cuda_graphs import CapturedPasses
from inco.run.resume import begin, pack
from inco.run.summary import sha256
from inco.types import ClientTask, Metrics, ServerState

Capture = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass
class Outcome:
    """What a run has left. `counts`: by phase: "assembly", "round N" (what the server does in it),
    "clients N" (what its clients do), "record", "resume"; `trained`: clients of a round.
    """

    state: ServerState
    digest: str
    rows: list[dict[str, Any]]
    problems: Counter[str]
    counts: dict[str, Counts]
    trained: int
    replays: int

    def same_as(self, other: Outcome) -> bool:
        """Tell whether another run has ended with the same bits and metrics."""
        # a metric may be not-a-number, which is not equal to itself
        return self.digest == other.digest and str(self.rows) == str(other.rows)


@dataclass
class Phases(Callback):
    """Counts each phase of a run apart, and keeps its rows."""

    gpu: Pretend
    counts: dict[str, Counts] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    trained: int = 0
    round: int = 1

    def enter(self, phase: str) -> None:
        """Count what follows in this phase."""
        self.gpu.counts = self.counts.setdefault(phase, Counts())

    def on_start(self, state: ServerState) -> None:
        self.enter("round 1")

    def on_client_start(self, task: ClientTask) -> None:
        self.enter(f"clients {self.round}")

    def on_client_end(self, task: ClientTask, done: int, of: int) -> None:
        self.trained = of
        self.enter(f"round {self.round}")

    def on_round(self, state: ServerState, metrics: Metrics) -> None:
        self.rows.append(dict(metrics))
        self.round = state.round + 1
        self.enter(f"round {self.round}")


@lru_cache
def _composed(*overrides: str) -> dict[str, Any]:
    """Return a sound configuration; composing it takes longer than a small round."""
    settings = settings_of(*overrides)
    problems = validate(settings)
    if problems:
        raise ConfigError(problems)
    return settings


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Compute convolutions without oneDNN.

    On a GPU the models leave out what keeps them clear of its faults on CPUs.
    """
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def run(
    overrides: Sequence[str],
    mode: str = "eager",
    *,
    rounds: int = 2,
    strict: bool = True,
    resume: bool = True,
    capture: Callable[[Pretend], Capture] = lambda gpu: gpu.graph,
) -> Outcome:
    """Run a configuration on the pretended GPU, record it, and take it up again from the record.

    `mode`: eager or graph; `capture`: what captures passes.
    """
    settings = _composed(*overrides, "engine.mode=eager")
    ranks = Ranks(0, 1, CUDA)
    with Pretend(strict) as gpu:
        phases = Phases(gpu)
        phases.enter("assembly")
        assembly = inco.assembly.assemble(settings, ranks)
        replays: Counter[str] = Counter()
        if mode == "graph":
            local = settings["local"]
            counted = _counted(capture(gpu), replays)
            assembly.trainer.passes = CapturedPasses(
                local["batch_size"], local["precision"], counted, required=True
            )
        state = assembly.simulator.start(settings["seed"])
        assembly.simulator.run(state, rounds, [phases])
        phases.enter("record")
        saved = pack(assembly, state, settings, 0.0)
        digest = sha256(state)
        if resume:
            phases.enter("resume")
            again = begin(inco.assembly.assemble(settings, ranks), ranks, settings, saved)
            assert sha256(again) == digest and again.w.device == CUDA
    rows = timeless(phases.rows)
    return Outcome(
        state, digest, rows, gpu.problems, phases.counts, phases.trained, replays.total()
    )


def _counted(capture: Capture, replays: Counter[str]) -> Capture:
    """Return a capture whose replays are counted."""

    def captured(work: Callable[[], None]) -> Callable[[], None]:
        replay = capture(work)

        def again() -> None:
            replays["of a graph"] += 1
            replay()

        return again

    return captured

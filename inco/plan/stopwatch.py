"""Where a client's time goes: stamps at the hooks that every round passes, set from outside."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import torch

from inco.algorithms.fedavg import Algorithm
from inco.callbacks import Callback
from inco.types import ClientTask, LocalRun


@dataclass
class Seen:
    """One client of one round, in seconds: its local start, each of its steps, all of it.

    `images`: of one step.
    """

    level: int
    images: int
    start: float = 0.0
    steps: list[float] = field(default_factory=list)
    whole: float = 0.0

    @property
    def step(self) -> float:
        """The typical step: on a busy machine a few take longer."""
        return statistics.median(self.steps)

    @property
    def overhead(self) -> float:
        """Loading, upload and exact sum."""
        return max(0.0, self.whole - self.start - sum(self.steps))


class Stopwatch(Callback):
    """Times the clients of a round, and their steps by the hooks of its algorithm.

    On a CPU it counts the time that this process had a core: others who are busy meanwhile change
    little.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        self.seen: list[Seen] = []
        self._cuda = device.type == "cuda"
        self._began = 0.0
        self._last = 0.0
        self._clock = perf_counter if self._cuda else process_time
        self._wall = perf_counter()
        self._own = process_time()
        start = algorithm.local_start
        step = algorithm.local_step
        end = algorithm.local_end
        hooks: Any = algorithm
        hooks.local_start = self._around_start(start)
        hooks.local_step = self._after_step(step)
        hooks.local_end = self._before_end(end)

    def now(self) -> float:
        """Return the time after all that the device has been given."""
        if self._cuda:
            torch.cuda.synchronize()
        return self._clock()

    def share(self) -> float:
        """Return which share of a core this process has had since the stopwatch was made."""
        return (process_time() - self._own) / max(perf_counter() - self._wall, 1e-9)

    def on_client_start(self, task: ClientTask) -> None:
        self._began = self.now()
        self.seen.append(Seen(task.level, len(task.examples)))

    def on_client_end(self, task: ClientTask, done: int, of: int) -> None:
        self.seen[-1].whole = self.now() - self._began

    def _around_start(self, inner: Callable[[LocalRun], None]) -> Callable[[LocalRun], None]:
        def start(run: LocalRun) -> None:
            before = self.now()
            inner(run)
            self._last = self.now()
            self.seen[-1].start = self._last - before

        return start

    def _after_step(self, inner: Callable[[LocalRun], None]) -> Callable[[LocalRun], None]:
        def step(run: LocalRun) -> None:
            inner(run)
            # waiting for a GPU after each step would take time that a run does not spend
            if not self._cuda:
                now = self._clock()
                self.seen[-1].steps.append(now - self._last)
                self._last = now

        return step

    def _before_end(
        self, inner: Callable[[LocalRun], dict[str, torch.Tensor]]
    ) -> Callable[[LocalRun], dict[str, torch.Tensor]]:
        def end(run: LocalRun) -> dict[str, torch.Tensor]:
            if self._cuda and run.steps:
                self.seen[-1].steps = [(self.now() - self._last) / run.steps] * run.steps
            return inner(run)

        return end

"""Where a round's time goes: the named stretches of one whole round, and the operations of some
local steps of the next.

A session's first round warms up, its second is timed; of its third, operations are recorded, which
slows it down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from inco.spans import Times, timed

# else the recorder complains of GPUs that are not there
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# local steps whose operations are recorded: they are alike, and each leaves a thousand records
_STEPS = 20
_ROWS = 15


class _Operations(Times):
    """Records the operations of so many local steps, from now on."""

    def __init__(self, device: torch.device, steps: int) -> None:
        super().__init__()
        self.left = steps
        self.cuda = device.type == "cuda"
        self._recorder = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        )
        self._recorder.start()

    def add(self, name: str, seconds: float) -> None:
        if name == "optimizer" and self.left:
            self.left -= 1
            if not self.left:
                self._recorder.stop()

    def table(self) -> str:
        """Stop, and return the longest operations."""
        if self.left:
            self._recorder.stop()
        by = "self_device_time_total" if self.cuda else "self_cpu_time_total"
        return self._recorder.key_averages().table(
            sort_by=by, row_limit=_ROWS, max_name_column_width=50
        )


class RoundProfile:
    """Follows the rounds of one worker of a session; `report` is the text so far."""

    def __init__(self, device: torch.device, rank: int, world: int) -> None:
        self.device = device
        self.report = f"worker {rank} of {world}, {device}\n"
        self._rounds = 0
        self._began = 0.0
        self._watch = ExitStack()

    def finished(self) -> None:
        """Take note that a round is over, and get ready for the next."""
        self._watch.close()
        self._rounds += 1
        if self._rounds == 1:
            self._began = perf_counter()
            times = self._watch.enter_context(
                timed(Times(torch.cuda.synchronize if self.device.type == "cuda" else lambda: None))
            )
            self._watch.callback(self._tell_stretches, times)
        elif self._rounds == 2:
            operations = _Operations(self.device, _STEPS)
            self._watch.enter_context(timed(operations))
            self._watch.callback(self._tell_operations, operations)

    def close(self) -> None:
        """Stop watching; nothing is told of a round that is not over."""
        self._rounds = -1
        self._watch.close()

    def _tell_stretches(self, times: Times) -> None:
        whole = perf_counter() - self._began
        if self._rounds > 0:
            self.report += _table(times, whole)

    def _tell_operations(self, operations: _Operations) -> None:
        table = operations.table()
        steps = _STEPS - operations.left
        if self._rounds > 0:
            self.report += (
                f"\nOperations of the next round's first {steps} local steps; recording slows them"
                f" down.\n{table}\n"
            )


def _table(times: Times, whole: float) -> str:
    rows = sorted(times.seconds.items(), key=lambda row: -row[1])
    rows.append(("elsewhere", whole - sum(times.seconds.values())))
    lines = [f"{'stretch':<44} {'times':>7} {'seconds':>10} {'share':>7}"]
    lines += [
        f"{name:<44} {times.calls.get(name, 1):>7,} {seconds:>10.4f} {100 * seconds / whole:>6.1f}%"
        for name, seconds in rows
    ]
    return "\n".join(
        [f"\nOne round, {whole:.4f} s; local steps are those of this worker's clients.", *lines, ""]
    )


@contextmanager
def profiled(
    path: Path, device: torch.device, rank: int, world: int
) -> Iterator[Callable[[], None]]:
    """Profile the rounds of a session, and keep the report in `path`.

    What is yielded is to be called after each round.
    """
    watching = RoundProfile(device, rank, world)
    path.unlink(missing_ok=True)  # of a former session

    def finished() -> None:
        before = watching.report
        watching.finished()
        if watching.report != before:
            path.write_text(watching.report)

    try:
        yield finished
    finally:
        watching.close()

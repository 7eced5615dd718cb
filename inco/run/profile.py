"""Where a round's time goes: the named stretches of one whole round, and the operations of some
local steps of the next.

A session's first round warms up, its second is timed; of its third, operations are recorded, which
slows it down.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from inco.callbacks import Callback
from inco.spans import Times, timed

# else the recorder complains of GPUs that are not there
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# local steps whose operations are recorded: they are alike, and each leaves a thousand records
_STEPS = 20
_ROWS = 15


class _Operations(Times):
    """Records the operations of the next local steps."""

    def __init__(self, cuda: bool) -> None:
        super().__init__()
        self.left = _STEPS
        self._sort_by = "self_device_time_total" if cuda else "self_cpu_time_total"
        gpu = [ProfilerActivity.CUDA] if cuda else []
        self._recorder = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._recorder.start()

    def add(self, name: str, seconds: float) -> None:
        if name == "optimizer" and self.left:
            self.left -= 1
            if not self.left:
                self._recorder.stop()

    def stop(self) -> None:
        if self.left:
            self._recorder.stop()

    def table(self) -> str:
        averages = self._recorder.key_averages()
        table = averages.table(self._sort_by, row_limit=_ROWS, max_name_column_width=50)
        return (
            f"\nOperations of the next round's first {_STEPS - self.left} local steps; recording"
            f" slows them down.\n{table}\n"
        )


class RoundProfile(Callback):
    """Profiles the rounds of one worker's session, and writes the report so far to `path`.

    Nothing is reported of a round that is not over.
    """

    def __init__(self, path: Path, device: torch.device, rank: int, world: int) -> None:
        self.path = path
        self._cuda = device.type == "cuda"
        self._report = f"worker {rank} of {world}, {device}\n"
        self._rounds = 0
        self._began = 0.0
        self._watch = ExitStack()
        self._times = Times(torch.cuda.synchronize if self._cuda else lambda: None)
        self._operations: _Operations

    def __enter__(self) -> Self:
        self.path.unlink(missing_ok=True)  # of a former session
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()

    def on_round(self, state: object, metrics: object) -> None:
        self._watch.close()
        self._rounds += 1
        if self._rounds == 1:
            self._began = perf_counter()
            self._watch.enter_context(timed(self._times))
        elif self._rounds == 2:
            self._add(_table(self._times, perf_counter() - self._began))
            self._operations = _Operations(self._cuda)
            self._watch.callback(self._operations.stop)
            self._watch.enter_context(timed(self._operations))
        elif self._rounds == 3:
            self._add(self._operations.table())

    def _add(self, text: str) -> None:
        self._report += text
        self.path.write_text(self._report)


def _table(times: Times, whole: float) -> str:
    rows = sorted(times.seconds.items(), key=lambda row: -row[1])
    rows.append(("elsewhere", whole - sum(times.seconds.values())))
    lines = [
        f"\nOne round, {whole:.4f} s; local steps are those of this worker's clients.",
        f"{'stretch':<44} {'times':>7} {'seconds':>10} {'share':>7}",
    ]
    for name, seconds in rows:
        count = times.calls.get(name, 1)
        share = 100 * seconds / whole
        lines.append(f"{name:<44} {count:>7,} {seconds:>10.4f} {share:>6.1f}%")
    return "\n".join([*lines, ""])

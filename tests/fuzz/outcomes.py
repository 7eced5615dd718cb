"""What fuzz cases came to: counts of clean ends, and of each fault its first and smallest case."""

from __future__ import annotations

import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from inco.errors import InCoError

LIMIT_S = 15.0  # of the processor: a case that takes longer hangs
PATIENCE = 12  # times as long may pass on the clock, on a machine with other work


class Hang(BaseException):
    """A case took too long. No `except Exception` on the way may swallow it."""


@dataclass(frozen=True)
class Fault:
    """Something that must not happen: what, where, and the case that shows it."""

    what: str
    where: str
    case: str


@dataclass
class Report:
    """Counts of ends by name, and the faults: one for each (what, where), the shortest case of
    it.
    """

    ends: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def fault(self, fault: Fault) -> None:
        key = (fault.what.partition(":")[0], fault.where)
        self.ends["FAULT"] += 1
        self.seen[key] += 1
        if key not in self.faults or len(fault.case) < len(self.faults[key].case):
            self.faults[key] = fault

    def __str__(self) -> str:
        lines = [
            f"{sum(self.ends.values())} cases: "
            + ", ".join(f"{n} {end}" for end, n in self.ends.most_common())
        ]
        for key, fault in self.faults.items():
            lines.append(
                f"\n{self.seen[key]} x {fault.what}\n    at {fault.where}\n    {fault.case}"
            )
        return "\n".join(lines)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang in the block once it has computed so long, or waited much longer.

    In the main thread only.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang(f"took longer than {seconds:g} s")

    clocks = (
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, PATIENCE * seconds),
    )
    before = [signal.signal(number, ring) for number, _, _ in clocks]
    for _, clock, limit in clocks:
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def place(error: BaseException) -> str:
    """Name the innermost line of the package on an error's way, which is what a bucket of faults is
    known by.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/inco/" in f.filename] or frames
    return f"{ours[-1].filename.rpartition('/inco/')[2]}:{ours[-1].lineno} {ours[-1].name}"


def judged(
    report: Report,
    case: str,
    work: Callable[[], Any],
    judge: Callable[[Any], str | None],
    seconds: float = LIMIT_S,
) -> None:
    """Do `work` and note how it ends: refused in an InCoError, or with a result of which `judge`
    says what is wrong, or None.
    """
    try:
        with limited(seconds):
            wrong = judge(work())
    except InCoError as error:
        if str(error).strip() and error.exit_code in (1, 2, 3, 4, 74):
            report.ends[f"refused ({error.exit_code})"] += 1
        else:
            report.fault(Fault(f"empty message of {type(error).__name__}", place(error), case))
    except (Exception, Hang) as error:
        report.fault(Fault(f"{type(error).__name__}: {str(error)[:300]}", place(error), case))
    else:
        if wrong is None:
            report.ends["valid"] += 1
        else:
            report.fault(Fault(wrong, "its result", case))

"""What /proc says of this machine: its name, the memory and CPU time of a family of processes, and
the CPU time of everybody else.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inco import machine

PEERS = ("flwr", "ray", "pfl")
# the environment variable by which processes of a trial are known, whoever started them
MARK = "INCO_BENCHMARK"
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """One look: `wall` seconds, `busy` CPU seconds of the machine, `ours` of the trial, `rss` bytes
    of the trial's processes.
    """

    wall: float
    busy: float
    ours: float
    rss: int

    def foreign(self, before: Sample) -> float:
        """Return the CPUs that others kept busy since `before`, on average."""
        spent = (self.busy - before.busy) - (self.ours - before.ours)
        return max(0.0, spent / max(self.wall - before.wall, 1e-9))


class Watch:
    """Looks at the processes whose environment has `mark`, and their children.

    This process counts as ours by time, not by memory.
    """

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[tuple[int, str], bool] = {}
        self._cpu: dict[tuple[int, str], float] = {}
        self.peak_rss = 0

    def sample(self) -> Sample:
        """Look now. CPU time of processes that have ended stays counted as it was last seen."""
        ours = self._ours()
        rss = 0
        for key, (_, ticks, pages) in ours.items():
            self._cpu[key] = ticks / _TICK
            rss += 0 if key[0] == os.getpid() else pages * _PAGE
        self.peak_rss = max(self.peak_rss, rss)
        return Sample(time.monotonic(), _busy(), sum(self._cpu.values()), rss)

    def left(self) -> list[int]:
        """Return the processes of the trial that are still there."""
        return [pid for pid, _ in self._ours() if pid != os.getpid()]

    def _ours(self) -> dict[tuple[int, str], tuple[int, int, int]]:
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError):  # it may end while we look
                    pid, start, facts = _stat(int(name))
                    found[(pid, start)] = facts
        # parents first
        for key, (parent, _, _) in sorted(found.items(), key=lambda item: int(item[0][1])):
            if key not in self._known:
                self._known[key] = self._is_ours(key[0], parent, found)
        return {key: facts for key, facts in found.items() if self._known[key]}

    def _is_ours(
        self, pid: int, parent: int, found: dict[tuple[int, str], tuple[int, int, int]]
    ) -> bool:
        if pid == os.getpid() or any(key[0] == parent and self._known.get(key) for key in found):
            return True
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


def _stat(pid: int) -> tuple[int, str, tuple[int, int, int]]:
    """Return (pid, start time, (parent, CPU ticks, resident pages))."""
    rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return pid, rest[19], (int(rest[1]), int(rest[11]) + int(rest[12]), int(rest[21]))


def _busy() -> float:
    """Return the CPU seconds that all processes of the machine have used, time stolen by its host
    included.
    """
    fields = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICK


def describe() -> dict[str, Any]:
    """Return the machine and the versions of what is compared."""
    versions = machine.versions() | {package: machine.version(package) for package in PEERS}
    cores = len(os.sched_getaffinity(0))
    return machine.describe() | {"cores": cores, "versions": versions}

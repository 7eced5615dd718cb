"""What is measured beside what: each system's module, threads, environment and what it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# glibc's malloc gives large blocks back to the system at once and asks for them again a moment
# later; these settings make it keep them.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@dataclass(frozen=True)
class System:
    """One row of the table. `module`: has `measure(job, reporter)`; `needs`: packages without which
    the row says so; `threads`: of torch, 0 to leave it to the system; `ranks`: processes that
    torchrun starts, 0 for none; `options`: for the module.
    """

    name: str
    module: str
    threads: int = 1
    ranks: int = 0
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Return the packages that are not installed here."""
        return [package for package in self.needs if importlib.util.find_spec(package) is None]


def product(workers: int, precision: str, mode: str = "auto") -> System:
    """InCo itself; `mode`: `engine.mode`."""
    ways = "" if mode == "auto" else f", {mode}"
    name = f"inco {precision}, {workers} worker{'s' if workers > 1 else ''}{ways}"
    options = {"workers": workers, "precision": precision, "mode": mode}
    return System(name, "benchmarks.systems.product", 0, options=options)


FLOOR = System("floor", "benchmarks.systems.floor", 2)
# The same, but threads that wait sleep instead of spinning: by far the faster on a machine that is
# not ours alone.
FLOOR_ASLEEP = System(
    "floor, OMP passive", FLOOR.module, 2, environment={"OMP_WAIT_POLICY": "passive"}
)
PLAIN = System("plain loop", "benchmarks.systems.plain", 2)
FLOWER = System(
    "flower, 2 actors",
    "benchmarks.systems.flower",
    1,
    needs=("flwr", "ray"),
    options={"actors": 2, "server_threads": 2},
)
_PFL = "benchmarks.systems.pfl_research"
PFL = (
    System("pfl-research, 1 x 2", _PFL, 2, needs=("pfl",)),
    System("pfl-research, 2 x 1", _PFL, 1, ranks=2, needs=("pfl",)),
    System("pfl-research, 2 x 1, tuned", _PFL, 1, 2, ("pfl",), _ALLOCATOR, {"eval_batch": 250}),
)

OURS = tuple(product(workers, precision) for precision in ("fp32", "bf16") for workers in (1, 2))
PEERS = (FLOWER, *PFL)

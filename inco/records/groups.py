"""Groups of runs: what differs in the seed alone, and its means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum, sqrt
from typing import Any, NamedTuple

import numpy as np

from inco.records.names import natural
from inco.records.runs import Run


class Spread(NamedTuple):
    """A mean, the sample standard deviation (n - 1; none of a single value), and of how many."""

    mean: float | None
    sd: float | None
    n: int


def spread(values: Sequence[float | None]) -> Spread:
    """Return mean and standard deviation of the values that there are."""
    known = [float(v) for v in values if v is not None]
    if not known:
        return Spread(None, None, 0)
    mean = fsum(known) / len(known)
    sd = sqrt(fsum((v - mean) ** 2 for v in known) / (len(known) - 1)) if len(known) > 1 else None
    return Spread(mean, sd, len(known))


class Curve(NamedTuple):
    """A metric over rounds: mean and standard deviation over `n` seeds (None of one seed)."""

    rounds: np.ndarray
    mean: np.ndarray
    sd: np.ndarray | None
    n: int


def over_seeds(table: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean and sample standard deviation (None of one row) over the first dimension."""
    return table.mean(0), table.std(0, ddof=1) if len(table) > 1 else None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone, by seed.

    `facts`: the choices, the number of rounds, and the settings with dotted keys; `label`: how it
    differs from other groups.
    """

    facts: Mapping[str, Any]
    runs: Sequence[Run]
    label: str = ""

    @cached_property
    def counted(self) -> list[Run]:
        """The runs that means are of: finished ones, one a seed."""
        found: dict[Any, Run] = {}
        for run in self.runs:
            if run.status == "finished":
                found.setdefault(str(run.folder) if run.seed is None else run.seed, run)
        return list(found.values())

    @property
    def left_out(self) -> list[str]:
        """The runs that are not counted, and why."""
        lines = []
        for run in self.runs:
            if run not in self.counted:
                why = "repeated" if run.status == "finished" else run.outcome
                lines.append(f"seed {'none' if run.seed is None else run.seed} {why}")
        return lines

    @property
    def experiment(self) -> str | None:
        """The first experiment of the paper that one of its runs names (table2_resnet), or None."""
        named = (str(run.about.get("experiment") or "") for run in self.runs)
        return next((name for name in named if name.startswith(("table", "figure"))), None)

    @property
    def scale(self) -> str:
        """The scale of its experiment: paper, or mini."""
        recorded = (run.about.get("scale") for run in self.runs)
        return str(next(filter(None, recorded), "paper"))

    def spread(self, key: str) -> Spread:
        """Return mean and standard deviation of a number of the summary."""
        return spread([run.summary.get(key) for run in self.counted])

    def size(self, key: str) -> float | None:
        """Return the mean of a number that is known of a run from its start on."""
        return spread([run.known.get(key) for run in self.runs]).mean

    def keys(self, prefix: str) -> list[str]:
        """Return what follows a prefix in the names of metrics of some run, in natural order."""
        rows = (row for run in self.runs for row in run.rows)
        found = {key for row in rows for key, value in row.items() if value is not None}
        named = {key.removeprefix(prefix) for key in found if key.startswith(prefix)}
        return sorted(named, key=natural)

    def curve(self, key: str) -> Curve:
        """Return a metric over the rounds in which every run that has it has it."""
        series = [run.series(key) for run in self.runs]
        series = [(rounds, values) for rounds, values in series if len(rounds)]
        if not series:
            return Curve(np.array([], dtype=int), np.array([]), None, 0)
        common = sorted(set.intersection(*(set(rounds.tolist()) for rounds, _ in series)))
        # [seeds, rounds]
        table = np.array([values[np.isin(rounds, common)] for rounds, values in series])
        return Curve(np.array(common, dtype=int), *over_seeds(table), len(table))

    def final(self, key: str = "test/acc", score: str = "last") -> np.ndarray:
        """Return each run's "last" or "best" value of a metric; runs without it are left out."""
        series = [run.series(key)[1] for run in self.runs]
        known = [values for values in series if len(values)]
        return np.array([values[-1] if score == "last" else values.max() for values in known])


def facts(run: Run) -> dict[str, Any]:
    """Return what a group's runs have in common: choices, rounds, and settings with dotted keys."""
    return {**run.choices, "rounds": run.planned, **run.settings}


def gather(runs: Iterable[Run], key: Callable[[Run], Hashable]) -> list[Group]:
    """Return groups of runs with equal keys, in the order of their first runs."""
    found: dict[Hashable, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    for members in found.values():
        members.sort(key=lambda run: natural(str(run.seed)))
    return [Group(facts(members[0]), members) for members in found.values()]

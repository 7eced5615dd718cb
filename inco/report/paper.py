"""The numbers that Chan et al.

(ICLR 2024) publish, and which of them a group of runs can stand beside.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from inco.records.groups import Group

# A setting of its own (10 clients; another batch size; noise): its numbers stand beside runs of its
# own experiment, and no others do.
_ALONE = {"Table 1", "Figure 7", "Figure 24", "Figure 25"}
# of all the paper's runs, unless a row of paper.csv says otherwise
_EVERYWHERE = {"server": "average", "uplink": "clean"}
# the other columns select
_TOLD = {"where", "method", "rounds", "measure", "part", "mean", "deviation", "printed", "note"}


@dataclass(frozen=True)
class Entry:
    """One published number. `selectors`: the choices and settings that a run must have to stand
    beside it.

    `measure`: test/acc and beta_positive in percent; params, comm (parameters a client, one way)
    and flops in millions; ratio, of parameters to those of the largest model. `part`: of which
    capacity or layer, "" for the mean over all. `deviation`: over three seeds, None where none is
    printed. `digits`: after the point, as printed. `printed`: false for what is read off a picture,
    to about one point. `row`: its place in the data, which is the paper's order.
    """

    row: int
    where: str
    method: str
    selectors: Mapping[str, str]
    rounds: int | None
    measure: str
    part: str
    mean: float
    deviation: float | None
    digits: int
    printed: bool
    note: str

    @property
    def key(self) -> str:
        """What it is a number of: test/acc, params/resnet10."""
        return f"{self.measure}/{self.part}" if self.part else self.measure

    @property
    def source(self) -> str:
        """Its table or figure without the panel: Figure 8a is of Figure 8."""
        return self.where.rstrip("abcdefgh")

    @property
    def text(self) -> str:
        """The number as it is printed."""
        mean = f"{self.mean:.{self.digits}f}"
        if self.deviation is None:
            return mean
        return f"{mean} \N{PLUS-MINUS SIGN} {self.deviation:.{self.digits}f}"


@cache
def entries() -> tuple[Entry, ...]:
    """Return all published numbers, in the paper's order."""
    text = (files("inco.report") / "paper.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(_entry(number, row) for number, row in enumerate(rows))


def _entry(number: int, row: Mapping[str, str]) -> Entry:
    selectors = {key: value for key, value in row.items() if value and key not in _TOLD}
    return Entry(
        row=number,
        where=row["where"],
        method=row["method"],
        selectors=_EVERYWHERE | selectors,
        rounds=int(row["rounds"]) if row["rounds"] else None,
        measure=row["measure"],
        part=row["part"],
        mean=float(row["mean"]),
        deviation=float(row["deviation"]) if row["deviation"] else None,
        digits=len(row["mean"].partition(".")[2]),
        printed=row["printed"] == "yes",
        note=row["note"],
    )


def published(one: Group) -> list[Entry]:
    """Return the published numbers that a group of one of the paper's experiments stands beside,
    one a measure and part.

    Of several, the one of the experiment's own table or figure, else a printed one, else one read
    off a picture.
    """
    found: dict[str, Entry] = {}
    for entry in candidates(one):
        found.setdefault(entry.key, entry)
    return sorted(found.values(), key=lambda entry: entry.row)


def candidates(one: Group, own: str = "") -> list[Entry]:
    """Return all published numbers whose selectors hold for a group, best first.

    `own`: as if of this table or figure.
    """
    source = own or of_experiment(one.experiment)
    if not source:
        return []
    facts = known(one)
    holding = [entry for entry in entries() if _counts(entry, source) and _holds(entry, facts)]
    return sorted(holding, key=lambda entry: (entry.source != source, not entry.printed))


def gain(entry: Entry, base: Group, own: str) -> float | None:
    """Return by how much a published accuracy is above that of the base; of the same table or
    figure where that has both.
    """
    others = [other for other in candidates(base, own) if other.key == entry.key]
    other = min(others, key=lambda other: other.source != entry.source, default=None)
    if other is None:
        return None
    return round(entry.mean - other.mean, max(entry.digits, other.digits))


def of_experiment(name: str | None) -> str:
    """Return the table or figure of an experiment, table2_resnet: Table 2; "" for other
    experiments.
    """
    found = re.match(r"(table|figure)(\d+)", name or "")
    return f"{found[1].capitalize()} {found[2]}" if found else ""


def known(one: Group) -> dict[str, Any]:
    """Return a group's choices and settings, with the alpha of a published partition file as its
    name says it.
    """
    facts = {**_EVERYWHERE, **one.facts}
    found = re.search(r"-(0\.5|1\.0)\.npy$", str(facts.get("partition.path", "")))
    if found and facts.get("partition") == "fixed":
        facts["partition.alpha"] = float(found[1])
    return facts


def _counts(entry: Entry, source: str) -> bool:
    return entry.source == source or not {entry.source, source} & _ALONE


def _holds(entry: Entry, facts: Mapping[str, Any]) -> bool:
    return all(key in facts and _is(facts[key], value) for key, value in entry.selectors.items())


def _is(value: Any, wanted: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return bool(value == wanted)

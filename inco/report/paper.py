"""The numbers that Chan et al. (ICLR 2024) publish, and which of them match a group of runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from inco.records.groups import Group

# settings of their own (10 clients, another batch size, noise): compared with their own runs alone
_ALONE = {"Table 1", "Figure 7", "Figure 24", "Figure 25"}
# of all the paper's runs, unless a row of paper.csv says otherwise
_EVERYWHERE = {"server": "average", "uplink": "clean"}
# the other columns select
_OTHERS = {"where", "method", "rounds", "measure", "part", "mean", "deviation", "printed", "note"}


@dataclass(frozen=True)
class Entry:
    """One published number.

    `row`: its place in the data, in the paper's order; `selectors`: the choices and settings of the
    runs it is compared with; `measure`: test/acc and beta_positive in percent, params, comm
    (parameters per client, one way) and flops in millions, ratio to the largest model's parameters;
    `part`: of which capacity or layer, "" for the mean; `deviation`: over three seeds; `digits`:
    after the point; `printed`: false for what is read off a picture, to about one point.
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
    text = (files("inco.report") / "paper.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(_entry(number, row) for number, row in enumerate(rows))


def _entry(number: int, row: Mapping[str, str]) -> Entry:
    selectors = {key: value for key, value in row.items() if value and key not in _OTHERS}
    return Entry(
        **{key: row[key] for key in ("where", "method", "measure", "part", "note")},
        row=number,
        selectors=_EVERYWHERE | selectors,
        rounds=int(row["rounds"]) if row["rounds"] else None,
        mean=float(row["mean"]),
        deviation=float(row["deviation"]) if row["deviation"] else None,
        digits=len(row["mean"].partition(".")[2]),
        printed=row["printed"] == "yes",
    )


def published(one: Group) -> list[Entry]:
    """Return the best match of each measure and part for a group of the paper's experiments."""
    found: dict[str, Entry] = {}
    for entry in candidates(one):
        found.setdefault(entry.key, entry)
    return sorted(found.values(), key=lambda entry: entry.row)


def candidates(one: Group, own: str = "") -> list[Entry]:
    """Return all published numbers that match a group: those of its own source (or `own`) first."""
    source = own or of_experiment(one.experiment)
    if not source:
        return []
    facts = known(one)
    found = [
        entry
        for entry in entries()
        if (entry.source == source or not {entry.source, source} & _ALONE)
        and all(key in facts and _is(facts[key], v) for key, v in entry.selectors.items())
    ]
    return sorted(found, key=lambda entry: (entry.source != source, not entry.printed))


def gain(entry: Entry, base: Group, own: str) -> float | None:
    """Return by how much a published accuracy is above the base's, of the same source if it can."""
    others = [other for other in candidates(base, own) if other.key == entry.key]
    other = min(others, key=lambda other: other.source != entry.source, default=None)
    if other is None:
        return None
    return round(entry.mean - other.mean, max(entry.digits, other.digits))


def of_experiment(name: str | None) -> str:
    """Return the table or figure of an experiment (Table 2 of table2_resnet); "" for others."""
    found = re.match(r"(table|figure)(\d+)", name or "")
    return f"{found[1].capitalize()} {found[2]}" if found else ""


def known(one: Group) -> dict[str, Any]:
    """Return a group's choices and settings, with alpha as a partition file's name has it."""
    facts = {**_EVERYWHERE, **one.facts}
    found = re.search(r"-(0\.5|1\.0)\.npy$", str(facts.get("partition.path", "")))
    if found and facts.get("partition") == "fixed":
        facts["partition.alpha"] = float(found[1])
    return facts


def _is(value: Any, wanted: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return bool(value == wanted)

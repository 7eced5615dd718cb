"""Ours beside theirs: the accuracies and sizes of groups beside the published numbers of the same
setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inco.report import groups, paper
from inco.report.facts import capacities
from inco.report.groups import Gain, Group
from inco.report.page import Section, section
from inco.report.paper import Entry
from inco.report.stats import Spread, spread
from inco.report.tables import Number, Table, as_markdown, plus_minus
from inco.report.text import MISSING, setting

TITLE = "Beside the paper"
_SIZES = {
    "params": "parameters",
    "ratio": "parameters, relative to the largest",
    "comm": "communication: parameters a client, one way",
    "flops": "FLOPs of one image's forward pass",
}
_ONE_CHANNEL = "images of one channel here, of three in the paper: a smaller first layer"


@dataclass(frozen=True)
class Line:
    """An accuracy of a group, a published one, and where the group has a base, both gains over it,
    in percentage points.
    """

    group: Group
    entry: Entry
    ours: Spread
    gain: Spread | None
    their_gain: float | None

    @property
    def difference(self) -> float | None:
        """By how much ours is above theirs."""
        return None if self.ours.mean is None else self.ours.mean - self.entry.mean

    @property
    def within(self) -> str:
        """Say whether ours is no farther from theirs than their deviation; "" where none is
        printed.
        """
        if self.difference is None or self.entry.deviation is None:
            return ""
        # 1e-9: for the rounding of 88.9 - 87.8
        return "yes" if abs(self.difference) <= self.entry.deviation + 1e-9 else "no"


@dataclass(frozen=True)
class Size:
    """A size of a group and the published one, both as they are: not in millions."""

    entry: Entry
    ours: float
    note: str

    @property
    def theirs(self) -> float:
        return self.entry.mean * self.unit

    @property
    def unit(self) -> float:
        return 1.0 if self.entry.measure == "ratio" else 1e6

    @property
    def text(self) -> str:
        """Ours with the digits of theirs."""
        return f"{self.ours / self.unit:.{self.entry.digits}f}"


@dataclass(frozen=True)
class Beside:
    """All that stands beside the paper, in its order: accuracies, and sizes with the group that
    they are of.
    """

    lines: Sequence[Line]
    sizes: Sequence[tuple[Group, Size]]

    def tables(self) -> dict[str, Table]:
        """Return the tables that have rows, by the name that they have on the page."""
        found = {
            "paper": accuracy_table(self.lines) if self.lines else None,
            "sizes": size_table(self.sizes) if self.sizes else None,
        }
        return {name: table for name, table in found.items() if table}

    def lead(self) -> str:
        """Say what the published numbers are, and what differs from the paper's runs."""
        parts = ["Theirs: Chan et al., ICLR 2024, means over three seeds; ours: the last round."]
        if any(line.group.scale == "mini" for line in self.lines):
            told = (
                "Runs with scale mini have smaller models, ViTs smaller images too, and fewer steps"
                " and rounds than the paper's"
            )
            parts.append(f"{told}, so only signs and orders can be compared.")
        if any(
            line.group.scale == "paper"
            and line.entry.rounds not in (None, line.group.facts["rounds"])
            for line in self.lines
        ):
            parts.append("Some runs have another number of rounds than the paper's.")
        if not all(line.entry.printed for line in self.lines):
            parts.append("Values of charts are read off pictures, to about one point.")
        return " ".join(parts)

    def section(self) -> Section | None:
        """Return the tables as a section of the page; None where nothing matches."""
        content = [table.html(f"{name}-table") for name, table in self.tables().items()]
        return section("paper", TITLE, content, lead=self.lead()) if content else None

    def markdown(self) -> list[str]:
        """Return the tables as Markdown, the sentence first; nothing where nothing matches."""
        found = [table.markdown() for table in self.tables().values()]
        return [f"{TITLE}. {as_markdown(self.lead())}\n", *found] if found else []

    def latex(self) -> list[str]:
        """Return the tables as LaTeX, the sentence first as a comment; nothing where nothing
        matches.
        """
        found = [table.latex() for table in self.tables().values()]
        return [f"% {TITLE}. {self.lead()}\n{found[0]}", *found[1:]] if found else []

    def columns(self, one: Group) -> dict[str, Any]:
        """Return a group's columns for CSV: none where nothing matches."""
        row: dict[str, Any] = {}
        for line in (line for line in self.lines if line.group is one):
            entry = line.entry
            name = f"paper {line.entry.part}" if line.entry.part else "paper"
            row |= {
                f"{name} where": entry.where,
                f"{name} method": entry.method,
                f"{name} printed": "yes" if entry.printed else "chart",
            }
            row |= {
                f"{name} rounds": entry.rounds,
                f"{name} mean": entry.mean,
                f"{name} sd": entry.deviation,
            }
            row |= {
                f"{name} difference": line.difference,
                f"{name} within": line.within or None,
                f"{name} gain": line.their_gain,
            }
        return row | {
            f"paper {size.entry.key}": round(size.theirs, 9)
            for group, size in self.sizes
            if group is one
        }


def beside(found: Sequence[Group], gains: Sequence[Gain]) -> Beside:
    """Return what stands beside published numbers. Sizes do at the paper's scale alone."""
    bases = {id(gain.group): gain.base for gain in gains}
    lines = []
    sizes = []
    for one in found:
        for entry in paper.published(one):
            if entry.measure == "test/acc" and entry.part in ("", *capacities(one.runs[0])):
                lines.append(_line(one, entry, bases.get(id(one))))
            elif entry.measure in _SIZES and one.scale == "paper":
                sizes += [(one, size) for size in _size(one, entry)]
    return Beside(
        sorted(lines, key=lambda line: line.entry.row),
        sorted(sizes, key=lambda pair: pair[1].entry.row),
    )


def _line(one: Group, entry: Entry, base: Group | None) -> Line:
    ours = one.spread(entry.key)
    if base is None:
        return Line(one, entry, ours, None, None)
    by_seed = groups.paired(one, base, entry.key)
    theirs = paper.gain(entry, base, paper.of_experiment(one.experiment))
    return Line(one, entry, ours, spread(list(by_seed.values())), theirs)


def _size(one: Group, entry: Entry) -> list[Size]:
    ours = one.size(
        {"comm": "mean_params", "flops": "mean_flops"}.get(entry.measure, f"params/{entry.part}")
    )
    if ours is None:
        return []
    if entry.measure == "ratio":
        ours /= max(
            one.size(f"params/{name}") or 0.0 for name in (*capacities(one.runs[0]), entry.part)
        )
    size = Size(entry, ours, entry.note)
    fewer = (one.facts.get("dataset"), one.facts.get("model")) == (
        "fashion_mnist",
        "resnet26",
    ) and entry.measure in ("params", "comm")
    return [
        (
            Size(entry, ours, "; ".join(filter(None, (entry.note, _ONE_CHANNEL))))
            if fewer and size.text != entry.text
            else size
        )
    ]


def accuracy_table(shown: Sequence[Line]) -> Table:
    """Return a row a published accuracy and group."""
    heads = [
        "where",
        "method",
        "dataset",
        "alpha",
        "scale",
        "rounds",
        "n",
        "ours, %",
        "theirs, %",
        "difference",
        "within theirs",
    ]
    heads += ["our gain", "their gain"]
    rows = []
    for line in shown:
        rounds = line.group.facts["rounds"]
        n = len(line.group.counted)
        cells: list[Any] = [
            *_named(line),
            Number(
                rounds, f"{rounds} of {line.entry.rounds}" if line.entry.rounds else str(rounds)
            ),
        ]
        cells += [
            Number(n, str(n)),
            line.ours,
            Number(line.entry.mean, line.entry.text),
            _signed(line.difference, 2),
            line.within,
        ]
        rows.append([*cells, _gain(line.gain), _signed(line.their_gain, 1)])
    names = [tuple(row[:5]) for row in rows]
    if len(set(names)) < len(names):  # two groups beside one number, as two rules of InCo
        heads.insert(2, "group")
        for row, line in zip(rows, shown, strict=True):
            row.insert(2, line.group.label)
    if any(line.entry.note for line in shown):
        heads.append("remark")
        for row, line in zip(rows, shown, strict=True):
            row.append(line.entry.note)
    told = (
        "Test accuracy beside the published; within theirs: no farther off than their deviation;"
        " gain: over transform=none, in points"
    )
    return Table(told, heads, rows)


def _named(line: Line) -> list[str]:
    entry = line.entry
    facts = paper.known(line.group)
    method = f"{entry.method}, {entry.part}" if entry.part else entry.method
    alpha = setting(facts["partition.alpha"]) if "partition.alpha" in facts else MISSING
    return [
        entry.where if entry.printed else f"{entry.where} (chart)",
        method,
        setting(facts.get("dataset")),
        alpha,
        line.group.scale,
    ]


def _signed(value: float | None, digits: int) -> Number:
    return Number(value, MISSING if value is None else f"{value:+.{digits}f}")


def _gain(gain: Spread | None) -> Number:
    return (
        Number(gain.mean, plus_minus(gain, "\N{PLUS-MINUS SIGN}", signed=True))
        if gain
        else Number(None, MISSING)
    )


def size_table(sizes: Sequence[tuple[Group, Size]]) -> Table:
    """Return a row a published size, once where groups agree in it."""
    rows = {(size.entry.row, size.text, size.note): size for _, size in sizes}
    cells: list[list[Any]] = []
    for size in rows.values():
        entry = size.entry
        letter = "" if size.entry.measure == "ratio" else "M"
        what = f"{_SIZES[entry.measure]}, {entry.part}" if entry.part else _SIZES[entry.measure]
        both = [Number(size.ours, size.text + letter), Number(size.theirs, entry.text + letter)]
        cells.append(
            [
                entry.where,
                entry.method,
                what,
                *both,
                "yes" if size.text == entry.text else "no",
                size.note,
            ]
        )
    heads = ["where", "method", "what", "ours", "theirs", "as printed", "remark"]
    return Table("Sizes beside the published, ours with as many digits", heads, cells)

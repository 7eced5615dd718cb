"""Ours beside theirs: the accuracies and sizes of groups beside the published numbers of the same
setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inco.records.groups import Group, Spread, spread
from inco.report import groups, paper
from inco.report.groups import Gain
from inco.report.page import Section, section
from inco.report.paper import Entry
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
        found = {}
        if self.lines:
            found["paper"] = accuracy_table(self.lines)
        if self.sizes:
            found["sizes"] = size_table(self.sizes)
        return found

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
            told = {
                "where": entry.where,
                "method": entry.method,
                "printed": "yes" if entry.printed else "chart",
                "rounds": entry.rounds,
                "mean": entry.mean,
                "sd": entry.deviation,
                "difference": line.difference,
                "within": line.within or None,
                "gain": line.their_gain,
            }
            name = f"paper {entry.part}" if entry.part else "paper"
            row |= {f"{name} {key}": value for key, value in told.items()}
        for group, size in self.sizes:
            if group is one:
                row[f"paper {size.entry.key}"] = round(size.theirs, 9)
        return row


def beside(found: Sequence[Group], gains: Sequence[Gain]) -> Beside:
    """Return what stands beside published numbers. Sizes do at the paper's scale alone."""
    bases = {id(gain.group): gain.base for gain in gains}
    lines = []
    sizes: list[tuple[Group, Size]] = []
    for one in found:
        for entry in paper.published(one):
            if entry.measure == "test/acc" and entry.part in ("", *one.runs[0].capacities):
                lines.append(_line(one, entry, bases.get(id(one))))
            elif entry.measure in _SIZES and one.scale == "paper":
                size = _size(one, entry)
                sizes += [(one, size)] if size else []
    lines.sort(key=lambda line: line.entry.row)
    sizes.sort(key=lambda pair: pair[1].entry.row)
    return Beside(lines, sizes)


def _line(one: Group, entry: Entry, base: Group | None) -> Line:
    ours = one.spread(entry.key)
    if base is None:
        return Line(one, entry, ours, None, None)
    by_seed = groups.paired(one, base, entry.key)
    theirs = paper.gain(entry, base, paper.of_experiment(one.experiment))
    return Line(one, entry, ours, spread(list(by_seed.values())), theirs)


def _size(one: Group, entry: Entry) -> Size | None:
    means = {"comm": "mean_params", "flops": "mean_flops"}
    ours = one.size(means.get(entry.measure, f"params/{entry.part}"))
    if ours is None:
        return None
    if entry.measure == "ratio":
        names = (*one.runs[0].capacities, entry.part)
        ours /= max(one.size(f"params/{name}") or 0.0 for name in names)
    size = Size(entry, ours, entry.note)
    model = (one.facts.get("dataset"), one.facts.get("model"))
    fewer = model == ("fashion_mnist", "resnet26") and entry.measure in ("params", "comm")
    if not fewer or size.text == entry.text:
        return size
    return Size(entry, ours, "; ".join(filter(None, (entry.note, _ONE_CHANNEL))))


def accuracy_table(shown: Sequence[Line]) -> Table:
    """Return a row a published accuracy and group."""
    heads = ["where", "method", "dataset", "alpha", "scale", "rounds", "n", "ours, %", "theirs, %"]
    heads += ["difference", "within theirs", "our gain", "their gain"]
    rows = []
    for line in shown:
        entry = line.entry
        rounds = line.group.facts["rounds"]
        of = f"{rounds} of {entry.rounds}" if entry.rounds else str(rounds)
        cells: list[Any] = [*_named(line), Number(rounds, of), Number.of(len(line.group.counted))]
        cells += [line.ours, Number(entry.mean, entry.text), _signed(line.difference, 2)]
        rows.append([*cells, line.within, _gain(line.gain), _signed(line.their_gain, 1)])
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
    where = entry.where if entry.printed else f"{entry.where} (chart)"
    return [where, method, setting(facts.get("dataset")), alpha, line.group.scale]


def _signed(value: float | None, digits: int) -> Number:
    return Number(value, MISSING if value is None else f"{value:+.{digits}f}")


def _gain(gain: Spread | None) -> Number:
    if gain is None:
        return Number(None, MISSING)
    return Number(gain.mean, plus_minus(gain, "\N{PLUS-MINUS SIGN}", signed=True))


def size_table(sizes: Sequence[tuple[Group, Size]]) -> Table:
    """Return a row a published size, once where groups agree in it."""
    rows = {(size.entry.row, size.text, size.note): size for _, size in sizes}
    cells: list[list[Any]] = []
    for size in rows.values():
        entry = size.entry
        letter = "" if entry.measure == "ratio" else "M"
        what = f"{_SIZES[entry.measure]}, {entry.part}" if entry.part else _SIZES[entry.measure]
        both = [Number(size.ours, size.text + letter), Number(size.theirs, entry.text + letter)]
        same = "yes" if size.text == entry.text else "no"
        cells.append([entry.where, entry.method, what, *both, same, size.note])
    heads = ["where", "method", "what", "ours", "theirs", "as printed", "remark"]
    return Table("Sizes beside the published, ours with as many digits", heads, cells)

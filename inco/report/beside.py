"""The accuracies and sizes of groups beside the published numbers of the same setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inco.records.groups import Group, Spread, spread
from inco.report import groups, paper
from inco.report.groups import Gain
from inco.report.page import Section, section
from inco.report.paper import Entry
from inco.report.tables import MARKDOWN, Number, Table, plus_minus
from inco.report.text import MISSING, setting

TITLE = "Beside the paper"
_SIZES = {
    "params": "parameters",
    "ratio": "parameters, relative to the largest",
    "comm": "communication: parameters per client, one way",
    "flops": "FLOPs of one image's forward pass",
}
_NAMES = ("where", "method", "dataset", "alpha", "scale")
_ONE_CHANNEL = "images of one channel here, of three in the paper: a smaller first layer"


@dataclass(frozen=True)
class Accuracy:
    """A group's accuracy and the published one; where the group has a base, both gains over it."""

    group: Group
    entry: Entry
    ours: Spread
    gain: Spread | None = None
    their_gain: float | None = None

    @property
    def difference(self) -> float | None:
        return None if self.ours.mean is None else self.ours.mean - self.entry.mean

    @property
    def within(self) -> str:
        """Say whether ours is no farther off than their deviation; "" where none is printed."""
        if self.difference is None or self.entry.deviation is None:
            return ""
        # 1e-9: for the rounding of 88.9 - 87.8
        return "yes" if abs(self.difference) <= self.entry.deviation + 1e-9 else "no"


@dataclass(frozen=True)
class Size:
    """A size of a group and the published one, neither in millions."""

    group: Group
    entry: Entry
    ours: float

    @property
    def unit(self) -> float:
        return 1.0 if self.entry.measure == "ratio" else 1e6

    @property
    def theirs(self) -> float:
        return self.entry.mean * self.unit

    @property
    def text(self) -> str:
        """Ours with the digits of theirs."""
        return f"{self.ours / self.unit:.{self.entry.digits}f}"

    @property
    def note(self) -> str:
        facts = self.group.facts
        model = (facts.get("dataset"), facts.get("model"), self.entry.measure in ("params", "comm"))
        smaller = model == ("fashion_mnist", "resnet26", True) and self.text != self.entry.text
        return "; ".join(filter(None, (self.entry.note, _ONE_CHANNEL if smaller else "")))


@dataclass(frozen=True)
class Beside:
    """All that can be compared with the paper, in its order."""

    accuracies: Sequence[Accuracy]
    sizes: Sequence[Size]

    def tables(self) -> dict[str, Table]:
        """Return the tables that have rows, by their names on the page."""
        found = {}
        if self.accuracies:
            found["paper"] = accuracy_table(self.accuracies)
        if self.sizes:
            found["sizes"] = size_table(self.sizes)
        return found

    def lead(self) -> str:
        """Say what the published numbers are, and what differs from the paper's runs."""
        parts = ["Theirs: Chan et al., ICLR 2024, means over three seeds; ours: the last round."]
        if any(one.group.scale == "mini" for one in self.accuracies):
            parts.append(
                "Runs with scale mini have smaller models, ViTs smaller images too, and fewer steps"
                " and rounds than the paper's, so only signs and orders can be compared."
            )
        full = [one for one in self.accuracies if one.group.scale == "paper"]
        if any(one.entry.rounds not in (None, one.group.facts["rounds"]) for one in full):
            parts.append("Some runs have another number of rounds than the paper's.")
        if not all(one.entry.printed for one in self.accuracies):
            parts.append("Values of charts are read off pictures, to about one point.")
        return " ".join(parts)

    def section(self) -> Section | None:
        content = [table.html(f"{name}-table") for name, table in self.tables().items()]
        return section("paper", TITLE, content, lead=self.lead()) if content else None

    def markdown(self) -> list[str]:
        found = [table.markdown() for table in self.tables().values()]
        return [f"{TITLE}. {self.lead().translate(MARKDOWN)}\n", *found] if found else []

    def latex(self) -> list[str]:
        found = [table.latex() for table in self.tables().values()]
        return [f"% {TITLE}. {self.lead()}\n{found[0]}", *found[1:]] if found else []

    def columns(self, group: Group) -> dict[str, Any]:
        """Return a group's columns for CSV."""
        row: dict[str, Any] = {}
        for one in (one for one in self.accuracies if one.group is group):
            entry = one.entry
            numbers = {
                "where": entry.where,
                "method": entry.method,
                "printed": "yes" if entry.printed else "chart",
                "rounds": entry.rounds,
                "mean": entry.mean,
                "sd": entry.deviation,
                "difference": one.difference,
                "within": one.within or None,
                "gain": one.their_gain,
            }
            name = f"paper {entry.part}" if entry.part else "paper"
            row |= {f"{name} {key}": value for key, value in numbers.items()}
        sizes = [size for size in self.sizes if size.group is group]
        return row | {f"paper {size.entry.key}": round(size.theirs, 9) for size in sizes}


def beside(found: Sequence[Group], gains: Sequence[Gain]) -> Beside:
    """Return what matches published numbers; sizes do so at the paper's scale alone."""
    bases = {id(gain.group): gain.base for gain in gains}
    accuracies = []
    sizes = []
    for group in found:
        for entry in paper.published(group):
            if entry.measure == "test/acc" and entry.part in ("", *group.runs[0].capacities):
                accuracies.append(_accuracy(group, entry, bases.get(id(group))))
            elif entry.measure in _SIZES and group.scale == "paper":
                ours = _size(group, entry)
                sizes += [] if ours is None else [Size(group, entry, ours)]
    accuracies.sort(key=lambda one: one.entry.row)
    sizes.sort(key=lambda size: size.entry.row)
    return Beside(accuracies, sizes)


def _accuracy(group: Group, entry: Entry, base: Group | None) -> Accuracy:
    ours = group.spread(entry.key)
    if base is None:
        return Accuracy(group, entry, ours)
    by_seed = groups.paired(group, base, entry.key)
    theirs = paper.gain(entry, base, paper.of_experiment(group.experiment))
    return Accuracy(group, entry, ours, spread(list(by_seed.values())), theirs)


def _size(group: Group, entry: Entry) -> float | None:
    means = {"comm": "mean_params", "flops": "mean_flops"}
    ours = group.size(means.get(entry.measure, f"params/{entry.part}"))
    if ours is None or entry.measure != "ratio":
        return ours
    names = (*group.runs[0].capacities, entry.part)
    return ours / max(group.size(f"params/{name}") or 0.0 for name in names)


def accuracy_table(found: Sequence[Accuracy]) -> Table:
    """Return a row per published accuracy and group."""
    rows = [_row(one) for one in found]
    names = {tuple(row[head] for head in _NAMES) for row in rows}
    # labels tell apart two groups that match one number, as two rules of InCo
    unused = {"group"} if len(names) == len(rows) else set()
    unused |= set() if any(row["remark"] for row in rows) else {"remark"}
    heads = [head for head in rows[0] if head not in unused]
    caption = (
        "Test accuracy beside the published; within theirs: no farther off than their deviation;"
        " gain: over transform=none, in points"
    )
    return Table(caption, heads, [[row[head] for head in heads] for row in rows])


def _row(one: Accuracy) -> dict[str, Any]:
    entry = one.entry
    facts = paper.known(one.group)
    rounds = one.group.facts["rounds"]
    gain = one.gain or Spread(None, None, 0)
    return {
        "where": entry.where if entry.printed else f"{entry.where} (chart)",
        "method": f"{entry.method}, {entry.part}" if entry.part else entry.method,
        "group": one.group.label,
        "dataset": setting(facts.get("dataset")),
        "alpha": setting(facts["partition.alpha"]) if "partition.alpha" in facts else MISSING,
        "scale": one.group.scale,
        "rounds": Number(f"{rounds} of {entry.rounds}" if entry.rounds else str(rounds), rounds),
        "n": Number.of(len(one.group.counted)),
        "ours, %": one.ours,
        "theirs, %": Number(entry.text, entry.mean),
        "difference": Number.of(one.difference, "{:+.2f}".format),
        "within theirs": one.within,
        "our gain": Number(plus_minus(gain, signed=True), gain.mean),
        "their gain": Number.of(one.their_gain, "{:+.1f}".format),
        "remark": entry.note,
    }


def size_table(sizes: Sequence[Size]) -> Table:
    """Return a row per published size, once where groups agree in it."""
    unique = {(size.entry.row, size.text, size.note): size for size in sizes}
    rows: list[list[Any]] = []
    for size in unique.values():
        entry = size.entry
        letter = "" if entry.measure == "ratio" else "M"
        what = f"{_SIZES[entry.measure]}, {entry.part}" if entry.part else _SIZES[entry.measure]
        both = [Number(size.text + letter, size.ours), Number(entry.text + letter, size.theirs)]
        same = "yes" if size.text == entry.text else "no"
        rows.append([entry.where, entry.method, what, *both, same, size.note])
    heads = ["where", "method", "what", "ours", "theirs", "as printed", "remark"]
    return Table("Sizes beside the published, ours with as many digits", heads, rows)

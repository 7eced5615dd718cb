"""A plan as tables: a row for each kind of run, or for each capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inco.plan.arithmetic import Estimate

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass
class Line:
    """A kind of run, its sizes, and what it is estimated to take where that was measured."""

    label: str
    runs: int
    finished: int
    rounds: int
    workers: int
    sizes: Mapping[str, Any]
    disk: Mapping[str, float]
    estimate: Estimate | None = None
    memory_bytes: float | None = None
    measured: str = ""
    share: float = 1.0  # of a core, that measuring has had
    left: Sequence[int] = ()  # rounds of each run
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Seconds of each run that is not finished."""
        known = self.estimate
        return [known.seconds(rounds) for rounds in self.left if rounds] if known else []

    def as_json(self) -> dict[str, Any]:
        """Return the line as plain data."""
        data = asdict(self)
        data["left"] = sum(self.left)
        data["seconds"] = sum(self.seconds) if self.estimate else None
        data["disk_bytes"] = sum(self.disk.values())
        if self.estimate:
            data["estimate"]["round_s"] = self.estimate.a_round
        return data


def plan_table(lines: Sequence[Line], console: Console) -> None:
    """Print what there is to do of each kind of run, and what it takes."""
    table = _table()
    for head in ("runs", "finished", "rounds", "steps a round", "a round", "in all", "a worker"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("disk a run", justify="right", no_wrap=True)
    table.add_column("measured", justify="right")
    for line in lines:
        known = line.estimate
        steps = line.sizes.get("steps")
        table.add_row(
            Text(line.label),
            str(line.runs),
            str(line.finished),
            f"{line.rounds:,}",
            f"{steps:,.0f}" if steps else "-",
            duration(known.a_round) if known else "-",
            duration(sum(line.seconds)) if known else "-",
            size(line.memory_bytes) if line.memory_bytes else "-",
            size(sum(line.disk.values())),
            line.measured or "-",
        )
    console.print(table)


def sizes_table(lines: Sequence[Line], console: Console) -> None:
    """Print parameters, FLOPs, and bytes each way of each kind and capacity; then the mean over the
    population.
    """
    table = _table()
    table.add_column("capacity", no_wrap=True)
    for head in ("parameters", "FLOPs", "down a round", "up a round"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        sizes: Mapping[str, float] = line.sizes["sizes"]
        label = line.label
        for name in [*line.sizes["capacities"], "mean"]:
            params, flops, down, up = (
                sizes[f"mean_{what}" if name == "mean" else f"{what}/{name}"]
                for what in ("params", "flops", "down_bytes", "up_bytes")
            )
            table.add_row(
                Text(label), name, f"{params:,.0f}", f"{flops:,.0f}", size(down), size(up)
            )
            label = ""
        table.add_section()
    console.print(table)


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("kind of run", overflow="fold")
    return table


def size(count: float) -> str:
    """Write bytes short: 1.25 GB."""
    for unit, letters in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {letters}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Write a time: 0.35 s, 42 s, 5.2 min, 3.4 h, 120 h."""
    for unit, letters in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            number = seconds / unit
            return f"{number:.1f} {letters}" if number < 100 else f"{number:,.0f} {letters}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"

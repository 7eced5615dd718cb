"""A plan as tables: a line a kind of run, or a line a capacity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inco.plan.arithmetic import Line

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def plan_table(lines: Sequence[Line], console: Console) -> None:
    """Print a line a kind of run: what there is to do, and what it takes."""
    table = _table()
    table.add_column("kind of run", overflow="fold")
    for head in (
        "runs",
        "finished",
        "rounds",
        "steps a round",
        "a round",
        "in all",
        "a worker",
        "disk a run",
        "measured",
    ):
        table.add_column(head, justify="right", no_wrap=head != "measured")
    for line in lines:
        took = line.estimate
        steps = line.sizes.get("steps")
        table.add_row(
            Text(line.label),
            str(line.runs),
            str(line.finished),
            f"{line.rounds:,}",
            f"{steps:,.0f}" if steps else "-",
            duration(took.a_round) if took else "-",
            duration(sum(line.seconds)) if took else "-",
            size(line.memory_bytes) if line.memory_bytes else "-",
            size(sum(line.disk.values())),
            line.measured or "-",
        )
    console.print(table)


def sizes_table(lines: Sequence[Line], console: Console) -> None:
    """Print a line a kind and capacity: parameters, FLOPs, and bytes each way; then the mean over
    the population.
    """
    table = _table()
    table.add_column("kind of run", overflow="fold")
    table.add_column("capacity", no_wrap=True)
    for head in ("parameters", "FLOPs", "down a round", "up a round"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        found: dict[str, Any] = line.sizes["sizes"]
        for place, name in enumerate([*line.sizes["capacities"], "mean"]):
            keys = [
                f"mean_{what}" if name == "mean" else f"{what}/{name}"
                for what in ("params", "flops", "down_bytes", "up_bytes")
            ]
            numbers = [found[key] for key in keys]
            shown = [f"{numbers[0]:,.0f}", f"{numbers[1]:,.0f}", size(numbers[2]), size(numbers[3])]
            table.add_row(Text("" if place else line.label), name, *shown)
        table.add_section()
    console.print(table)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


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

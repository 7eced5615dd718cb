"""The table that is shown, and the JSON that is kept."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.driver import DIRTY, Round, Trial
from benchmarks.machine import describe

Row = dict[str, Any]
FOLDER = Path("outputs") / "benchmarks"
WIDTH = 120  # of the table, where the terminal is narrower or unknown


def rows_of(trials: Sequence[Trial], floor: str | None = None) -> list[Row]:
    """Return a row a system, in the order in which they are first met: medians, extremes, and the
    ratio to the system called `floor`.

    Rounds in which others kept the machine busy are left out where there are clean ones; `clean` of
    `rounds` says how many there were. A ratio rests on clean rounds alone: two threads that wait
    for each other lose many times more to a busy machine than one does.
    """
    names = list(dict.fromkeys(t.system for t in trials))
    rows = [_row(name, [t for t in trials if t.system == name]) for name in names]
    base = next(
        (row["seconds"]["median"] for row in rows if row["system"] == floor and row["clean"]), None
    )
    for row in rows:
        row["to_floor"] = row["seconds"]["median"] / base if base and row["clean"] else None
    return rows


def _row(name: str, trials: Sequence[Trial]) -> Row:
    rounds = [r for t in trials for r in t.rounds if not t.failed]
    clean = [r for r in rounds if r.clean]
    failed = list(dict.fromkeys(t.failed for t in trials if t.failed))
    whole = [t for t in trials if not t.failed]
    return {
        "system": name,
        "failed": "; ".join(failed),
        "seconds": spread([r.seconds for r in clean or rounds]),
        "train": spread([r.train_s for r in clean or rounds]),
        "eval": spread([r.eval_s for r in clean or rounds]),
        "peak_mb": max((t.peak_mb for t in whole), default=None),
        "start": spread([t.start_s for t in whole]),
        "foreign": statistics.median(r.foreign for r in rounds) if rounds else None,
        "rounds": len(rounds),
        "clean": len(clean),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, least and most; None of nothing."""
    return (
        {"median": statistics.median(values), "min": min(values), "max": max(values)}
        if values
        else None
    )


def show(
    title: str, rows: Sequence[Row], notes: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print the table."""
    out = console or Console(highlight=False)
    out.width = max(out.width, WIDTH)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for head, side in (("system", "left"), *((h, "right") for h in COLUMNS)):
        table.add_column(head, justify=side, no_wrap=side == "right")  # type: ignore[arg-type]
    for row in rows:
        if row["seconds"]:
            table.add_row(row["system"], *_cells(row))
    out.print(table)
    failed = [f"{row['system']}: {row['failed']}" for row in rows if row["failed"]]
    for note in (*failed, *notes):
        out.print(note, markup=False)


COLUMNS = (
    "s/round",
    "min to max",
    "train",
    "eval",
    "/floor",
    "peak MB",
    "start s",
    "others",
    "clean",
)


def _cells(row: Row) -> list[str]:
    s = row["seconds"]
    return [
        number(s["median"]),
        f"{number(s['min'])} to {number(s['max'])}",
        number(row["train"]["median"]),
        number(row["eval"]["median"]),
        number(row["to_floor"]) if row["clean"] else "dirty",
        f"{row['peak_mb']:,.0f}",
        number(row["start"]["median"]) if row["start"] else "",
        number(row["foreign"]),
        f"{row['clean']}/{row['rounds']}",
    ]


def number(value: float | None) -> str:
    """Write a number with three digits; nothing for None."""
    return "" if value is None else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


NOTES = (
    (
        "s/round: median of training plus scoring, without the first round of each start. peak MB:"
        " resident memory of all processes."
    ),
    (
        f"others: CPUs that other programs kept busy, median; rounds above {DIRTY} are dirty, and"
        " left out where there are clean ones."
    ),
)


def dirty_note(rows: Sequence[Row]) -> list[str]:
    """Say which rows rest on dirty rounds alone."""
    named = [row["system"] for row in rows if row["rounds"] and not row["clean"]]
    return (
        [f"DIRTY: no clean round of {', '.join(named)}; measure again on a quiet machine"]
        if named
        else []
    )


def keep(kind: str, facts: Mapping[str, Any], out: str | None) -> Path:
    """Write the JSON and return its path."""
    now = datetime.now(UTC)
    path = Path(out) if out else FOLDER / f"{kind}-{now:%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "benchmark": kind,
                "when": now.isoformat(timespec="seconds"),
                "machine": describe(),
                **facts,
            },
            indent=1,
        )
    )
    return path


def sum_up(
    kind: str,
    trials: Sequence[Trial],
    floor: str | None,
    facts: Mapping[str, Any],
    out: str | None,
    title: str,
) -> list[Row]:
    """Make the rows of trials, print and keep them."""
    rows = rows_of(trials, floor)
    place = keep(
        kind,
        {**facts, "dirty_above": DIRTY, "rows": rows, "trials": [t.record() for t in trials]},
        out,
    )
    machine = describe()
    what = f"{machine['cpu']}, {machine['cores']} cores; torch {machine['versions']['torch']}"
    show(title, rows, [*NOTES, *dirty_note(rows), f"{what}; kept in {place}"])
    return rows


def median_of(rounds: Sequence[Round]) -> float:
    """Return the median seconds of some rounds."""
    return statistics.median(r.seconds for r in rounds)

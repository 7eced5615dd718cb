"""The plan itself: points, kinds, sizes, measurements, and the totals below the table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from inco.engine.workers import available_cores, how_many
from inco.errors import InCoError
from inco.plan import children
from inco.plan.arithmetic import (
    Line,
    Schedule,
    counts_from,
    disk_bytes,
    estimate,
    side_by_side,
    times_from,
)
from inco.plan.points import Job, Kind, kinds, plan_jobs
from inco.plan.table import duration, plan_table, size, sizes_table

_LIMIT_S = 60.0
_BUSY = 0.85  # of a core; below it, others were at work


def plan(args: argparse.Namespace, conf: Path) -> None:
    """Make the plan and print it. Raises InCoError."""
    jobs = plan_jobs(conf, args.words, args.config_dir)
    groups = kinds(jobs)
    distinct = {kind.layout: kind.settings for kind in groups}
    found = dict(zip(distinct, children.survey(list(distinct.values())), strict=True))
    surveyed = [found[kind.layout] for kind in groups]
    lines = [_line(kind, sizes, args.jobs) for kind, sizes in zip(groups, surveyed, strict=True)]
    if not (args.no_measure or args.sizes):
        _measure(
            groups,
            lines,
            args.measure == "full",
            args.limit or (None if args.measure == "full" else _LIMIT_S),
        )
    console = Console(
        highlight=False,
        soft_wrap=not sys.stdout.isatty(),
        width=None if sys.stdout.isatty() else 200,
    )
    (sizes_table if args.sizes else plan_table)(lines, console)
    totals = _totals(jobs, lines, args.jobs)
    for text in _told(totals, lines, args):
        console.print(Text(text), soft_wrap=True)
    command = _command(args, jobs, lines)
    console.print(Text(f"\nstart with  {command}"), soft_wrap=True)
    if args.json:
        kept = {"kinds": [line.as_json() for line in lines], "totals": totals, "command": command}
        args.json.write_text(json.dumps(kept, indent=2) + "\n")


def schedule_of(kind: Kind, workers: int = 1) -> Schedule:
    """Return when things happen in the runs of a kind."""
    settings = kind.settings
    every = settings["diagnostics"].get("every")
    return Schedule(
        settings["rounds"], settings["eval_every"], settings["checkpoint_every"], every, workers
    )


def _line(kind: Kind, sizes: dict[str, Any], jobs: int) -> Line:
    engine = kind.settings["engine"]
    workers = how_many(engine["workers"], engine["device"], sizes["cohort"])
    if engine["workers"] == "auto":
        workers = max(1, workers // jobs)
    disk = disk_bytes(sizes, schedule_of(kind), kind.settings["num_clients"])
    left = [job.left for job in kind.jobs]
    rounds = kind.settings["rounds"]
    return Line(
        kind.label,
        len(kind.jobs),
        kind.finished,
        rounds,
        workers,
        sizes,
        disk,
        left=left,
        notes=[note for note in [kind.jobs[0].note] if note],
    )


def _measure(
    groups: Sequence[Kind], lines: Sequence[Line], whole: bool, limit: float | None
) -> None:
    """Measure each unit once, and estimate all kinds that share it."""
    units: dict[str, list[int]] = {}
    for position, kind in enumerate(groups):
        units.setdefault(f"{position}" if whole else kind.unit, []).append(position)
    to_do = [
        members
        for members in units.values()
        if any(job.left for i in members for job in groups[i].jobs)
    ]
    for number, members in enumerate(to_do, start=1):
        print(
            f"measuring {number}/{len(to_do)}: {lines[members[0]].label}",
            file=sys.stderr,
            flush=True,
        )
        try:
            found = children.measure([groups[i].settings for i in members], limit, whole)
        except InCoError as error:
            for i in members:
                lines[i].notes.append(f"not measured: {error}")
            continue
        for i, own in zip(members, found["lines"], strict=True):
            _apply(groups[i], lines[i], found, own)


def _apply(kind: Kind, line: Line, found: dict[str, Any], own: dict[str, Any]) -> None:
    """Turn what was measured into a line's estimate."""
    counts = counts_from(own["counts"])
    times = times_from({**found, "transform": own["transform"]})
    schedule = schedule_of(kind, line.workers)
    line.estimate = estimate(counts, times, schedule)
    line.memory_bytes = found.get("memory_bytes")
    line.measured = found.get("measured", "")
    line.share = found.get("share", 1.0)
    sizes: dict[str, Any] = {
        key: found[key] for key in ("row_bytes", "arrays_bytes") if key in found
    }
    sizes["row_bytes"] = max(sizes.get("row_bytes", 0), line.sizes["row_bytes"])
    line.sizes = {**line.sizes, **sizes, "steps": counts.steps}
    line.disk = disk_bytes(line.sizes, schedule, kind.settings["num_clients"])
    line.notes = list(dict.fromkeys([*line.notes, *own["notes"], *found.get("notes", [])]))


def _totals(jobs: Sequence[Job], lines: Sequence[Line], side: int) -> dict[str, Any]:
    """Return what all kinds come to: of the runs that are not finished, but the disk of those alone
    too.
    """
    place = jobs[0].folder.absolute()
    while not place.exists():
        place = place.parent
    seconds = [s for line in lines for s in line.seconds]
    known = all(line.estimate for line in lines if any(line.left))
    return {
        "runs": len(jobs),
        "finished": sum(line.finished for line in lines),
        "rounds": sum(line.runs * line.rounds for line in lines),
        "rounds_left": sum(job.left for job in jobs),
        "seconds": sum(seconds) if seconds or known else None,
        "complete": known,
        "jobs": side,
        "seconds_side_by_side": side_by_side(seconds, side) if seconds or known else None,
        "memory_bytes": max(
            (side * line.workers * line.memory_bytes for line in lines if line.memory_bytes),
            default=None,
        ),
        "cores": available_cores(),
        "machine_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_bytes": sum(sum(line.disk.values()) * (line.runs - line.finished) for line in lines),
        "free_bytes": shutil.disk_usage(place).free,
    }


def _told(totals: dict[str, Any], lines: Sequence[Line], args: argparse.Namespace) -> list[str]:
    """Return the lines below the table."""
    notes = list(dict.fromkeys(note for line in lines for note in line.notes))
    share = min((line.share for line in lines), default=1.0)
    if share < _BUSY:
        notes.append(
            f"the machine is busy: measuring had {share:.0%} of a core at worst; times are those of"
            " a core of its own"
        )
    told = [*(f"note: {note}" for note in notes), ""]
    done = f", {totals['finished']} finished" if totals["finished"] else ""
    told.append(
        f"runs    {totals['runs']:,}{done}; {totals['rounds_left']:,} of {totals['rounds']:,}"
        " rounds to go"
    )
    if totals["seconds"] and totals["rounds_left"]:
        least = "" if totals["complete"] else "at least "
        workers = max(line.workers for line in lines)
        with_what = f"{workers} worker{'s' if workers > 1 else ''} each"
        told.append(
            f"time    {least}{duration(totals['seconds'])} one after the other"
            + (f", {with_what}" if args.jobs == 1 else "")
        )
        if args.jobs > 1:
            told.append(
                f"        {least}{duration(totals['seconds_side_by_side'])} with {args.jobs} side"
                f" by side, {with_what}"
            )
        told += _tight(totals, workers)
    told.append(
        f"disk    {size(totals['disk_bytes'])} for the runs to go; {size(totals['free_bytes'])}"
        " free"
    )
    if totals["disk_bytes"] > totals["free_bytes"]:
        told.append(
            "warning: the disk is too small; choose another with hydra.sweep.dir=PATH, or free some"
            " space"
        )
    return told


def _tight(totals: dict[str, Any], workers: int) -> list[str]:
    """Say where runs side by side would not find what they were measured with."""
    told = []
    need = totals["jobs"] * workers
    if totals["memory_bytes"]:
        told.append(
            f"memory  {size(totals['memory_bytes'])} at most at a time, without the tracker"
        )
        if totals["memory_bytes"] > totals["machine_memory_bytes"]:
            told.append(
                f"warning: this machine has {size(totals['machine_memory_bytes'])} of memory; take"
                " fewer --jobs"
            )
    if need > totals["cores"]:
        told.append(
            f"warning: {need} workers at a time on {totals['cores']} cores; the time holds where"
            " each has one of its own"
        )
    return told


def _command(args: argparse.Namespace, jobs: Sequence[Job], lines: Sequence[Line]) -> str:
    """Return what starts the runs."""
    sweep = len(jobs) > 1 or set(jobs[0].overrides) != set(args.words)
    words = [*args.words]
    if args.jobs > 1:
        words += [
            "hydra/launcher=joblib",
            f"hydra.launcher.n_jobs={args.jobs}",
            f"engine.workers={max(line.workers for line in lines)}",
        ]
        sweep = True
    words = [*(["--config-dir", args.config_dir] if args.config_dir else []), *words]
    return shlex.join(["python", "run.py", *(["-m"] if sweep else []), *words])

"""The plan itself: kinds of runs, sizes, measurements, and the totals below the table."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from inco.engine.workers import available_cores, how_many
from inco.errors import InCoError
from inco.plan.arithmetic import Measured, Schedule, disk_bytes, estimate, side_by_side
from inco.plan.points import Job, Kind, kinds, plan_jobs
from inco.plan.process import ask
from inco.plan.table import Line, duration, plan_table, size, sizes_table

_LIMIT_S = 60.0
_BUSY = 0.85  # of a core; below it, others were at work


def plan(args: argparse.Namespace, conf: Path) -> None:
    """Make the plan and print it. Raises InCoError."""
    jobs = plan_jobs(conf, args.words, args.config_dir)
    groups = kinds(jobs)
    distinct = {kind.layout: kind.settings for kind in groups}
    sizes = dict(zip(distinct, ask("survey", list(distinct.values())), strict=True))
    lines = [_line(kind, sizes[kind.layout], args.jobs) for kind in groups]
    if not (args.no_measure or args.sizes):
        _measure(groups, lines, args)
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else 200)
    (sizes_table if args.sizes else plan_table)(lines, console)
    totals = _totals(jobs, lines, args.jobs)
    command = _command(args, jobs, lines)
    for text in (*_notes(lines), "", *_summary(totals, lines), f"\nstart with  {command}"):
        console.print(Text(text), soft_wrap=True)
    if args.json:
        kept = {"kinds": [line.as_json() for line in lines], "totals": totals, "command": command}
        args.json.write_text(json.dumps(kept, indent=2) + "\n")


def _schedule(kind: Kind) -> Schedule:
    when = {key: kind.settings[key] for key in ("rounds", "eval_every", "checkpoint_every")}
    return Schedule(**when, every=kind.settings["diagnostics"].get("every"))


def _line(kind: Kind, sizes: Mapping[str, Any], jobs: int) -> Line:
    engine = kind.settings["engine"]
    workers = how_many(engine["workers"], engine["device"], sizes["cohort"])
    if engine["workers"] == "auto":
        workers = max(1, workers // jobs)
    left = [job.left for job in kind.jobs]
    return Line(
        kind.label,
        runs=len(left),
        finished=left.count(0),
        rounds=kind.settings["rounds"],
        workers=workers,
        sizes=sizes,
        disk=disk_bytes(sizes, _schedule(kind), kind.settings["num_clients"]),
        left=left,
        notes=[note for note in [kind.jobs[0].note] if note],
    )


def _measure(groups: Sequence[Kind], lines: Sequence[Line], args: argparse.Namespace) -> None:
    """Measure each unit once, and estimate all kinds that share it."""
    full = args.measure == "full"
    units: dict[object, list[tuple[Kind, Line]]] = {}
    for kind, line in zip(groups, lines, strict=True):
        units.setdefault(id(line) if full else kind.unit, []).append((kind, line))
    unfinished = [unit for unit in units.values() if any(any(line.left) for _, line in unit)]
    for number, unit in enumerate(unfinished, start=1):
        progress = f"measuring {number}/{len(unfinished)}: {unit[0][1].label}"
        print(progress, file=sys.stderr, flush=True)
        limit = args.limit or (None if full else _LIMIT_S)
        try:
            found = ask("full" if full else "steps", [kind.settings for kind, _ in unit], limit)
        except InCoError as error:
            for _, line in unit:
                line.notes.append(f"not measured: {error}")
            continue
        for position, (kind, line) in enumerate(unit):
            _apply(kind, line, found, position)


def _apply(kind: Kind, line: Line, found: Measured, position: int) -> None:
    """Turn what was measured into a line's estimate; `position`: the kind's, of those measured."""
    counts = found.counts[position]
    times = replace(found.times, transform=found.transforms[position])
    schedule = _schedule(kind)
    line.estimate = estimate(counts, times, schedule, line.workers)
    line.memory_bytes = found.memory_bytes
    line.measured = found.steps
    line.share = found.share
    row_bytes = max(found.row_bytes, line.sizes["row_bytes"])
    line.sizes = {**line.sizes, "row_bytes": row_bytes, "steps": counts.steps}
    if found.arrays_bytes is not None:
        line.sizes["arrays_bytes"] = found.arrays_bytes
    line.disk = disk_bytes(line.sizes, schedule, kind.settings["num_clients"])
    line.notes += found.notes


def _totals(jobs: Sequence[Job], lines: Sequence[Line], side: int) -> dict[str, Any]:
    """Return what all kinds come to: of the runs that are not finished, but the disk of those alone
    too.
    """
    place = jobs[0].folder.absolute()
    while not place.exists():
        place = place.parent
    seconds = [s for line in lines for s in line.seconds]
    complete = all(line.estimate for line in lines if any(line.left))
    known = bool(seconds) or complete
    memory = [side * line.workers * line.memory_bytes for line in lines if line.memory_bytes]
    return {
        "runs": len(jobs),
        "finished": sum(line.finished for line in lines),
        "rounds": sum(line.runs * line.rounds for line in lines),
        "rounds_left": sum(job.left for job in jobs),
        "seconds": sum(seconds) if known else None,
        "complete": complete,
        "jobs": side,
        "seconds_side_by_side": side_by_side(seconds, side) if known else None,
        "memory_bytes": max(memory, default=None),
        "cores": available_cores(),
        "machine_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_bytes": sum(sum(line.disk.values()) * (line.runs - line.finished) for line in lines),
        "free_bytes": shutil.disk_usage(place).free,
    }


def _notes(lines: Sequence[Line]) -> Iterator[str]:
    for note in dict.fromkeys(note for line in lines for note in line.notes):
        yield f"note: {note}"
    share = min(line.share for line in lines)
    if share < _BUSY:
        yield (
            f"note: the machine is busy: measuring had {share:.0%} of a core at worst; times are"
            " those of a core of its own"
        )


def _summary(totals: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    """Yield the lines below the table: runs, time, memory and disk."""
    done = f", {totals['finished']} finished" if totals["finished"] else ""
    yield (
        f"runs    {totals['runs']:,}{done}; {totals['rounds_left']:,} of {totals['rounds']:,}"
        " rounds to go"
    )
    if totals["seconds"] and totals["rounds_left"]:
        yield from _time_and_memory(totals, max(line.workers for line in lines))
    need = size(totals["disk_bytes"])
    yield f"disk    {need} for the runs to go; {size(totals['free_bytes'])} free"
    if totals["disk_bytes"] > totals["free_bytes"]:
        yield (
            "warning: the disk is too small; choose another with hydra.sweep.dir=PATH, or free some"
            " space"
        )


def _time_and_memory(totals: Mapping[str, Any], workers: int) -> Iterator[str]:
    """Yield what it takes, and where runs side by side would not find what they were measured
    with.
    """
    jobs = totals["jobs"]
    least = "" if totals["complete"] else "at least "
    each = f", {workers} worker{'s' if workers > 1 else ''} each"
    alone = f"time    {least}{duration(totals['seconds'])} one after the other"
    if jobs > 1:
        yield alone
        beside = duration(totals["seconds_side_by_side"])
        yield f"        {least}{beside} with {jobs} side by side{each}"
    else:
        yield alone + each
    memory = totals["memory_bytes"]
    there = totals["machine_memory_bytes"]
    if memory:
        yield f"memory  {size(memory)} at most at a time, without the tracker"
        if memory > there:
            yield f"warning: this machine has {size(there)} of memory; take fewer --jobs"
    if jobs * workers > totals["cores"]:
        yield (
            f"warning: {jobs * workers} workers at a time on {totals['cores']} cores; the time"
            " holds where each has one of its own"
        )


def _command(args: argparse.Namespace, jobs: Sequence[Job], lines: Sequence[Line]) -> str:
    """Return what starts the runs."""
    sweep = args.jobs > 1 or len(jobs) > 1 or set(jobs[0].overrides) != set(args.words)
    command = ["python", "run.py"]
    if sweep:
        command.append("-m")
    if args.config_dir:
        command += ["--config-dir", args.config_dir]
    command += args.words
    if args.jobs > 1:
        command += [
            "hydra/launcher=joblib",
            f"hydra.launcher.n_jobs={args.jobs}",
            f"engine.workers={max(line.workers for line in lines)}",
        ]
    return shlex.join(command)

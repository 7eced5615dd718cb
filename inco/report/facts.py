"""What a run's page says in words and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from inco.records.names import flat
from inco.records.runs import Run
from inco.report.markup import Html, tag
from inco.report.page import Section, folded, section, table
from inco.report.tables import Number
from inco.report.text import MISSING, amount, clock, percent, setting

RECENT = 9  # rounds whose median time the time left is estimated from
_MARKS = {
    "finished": "\N{CHECK MARK}",
    "running": "\N{BLACK RIGHT-POINTING TRIANGLE}",
    "interrupted": "\N{DOUBLE VERTICAL LINE}",
    "failed": "\N{MULTIPLICATION SIGN}",
    "no end recorded": "?",
}
_HEADLINE = ("dataset", "partition", "model", "split", "algorithm", "transform")
_UNITS = {"params": "", "flops": "", "down_bytes": "B", "up_bytes": "B"}
SIZE_HEADS = ["capacity", "parameters", "FLOPs", "down per round", "up per round", "last", "best"]


def badge(status: str) -> Html:
    """Return a status as a mark and a word: its colour says nothing alone."""
    mark = tag("span", _MARKS.get(status, "\N{BULLET}"), aria_hidden="true")
    return tag("span", mark, " ", status, class_=f"badge {status.partition(' ')[0]}")


def scores(run: Run) -> dict[str, tuple[float | None, float | None, int | None]]:
    """Return last and best accuracy and the first round of it: by capacity, and "" the mean."""
    found = {}
    for name in ["", *run.capacities]:
        key = f"test/acc/{name}" if name else "test/acc"
        having = [(row[key], row["round"]) for row in run.rows if row.get(key) is not None]
        best = max(having, key=lambda pair: (pair[0], -pair[1]), default=(None, None))
        found[name] = (having[-1][0] if having else None, *best)
    return found


def head(run: Run, live: bool) -> Html:
    """Return the name, the status, the numbers that matter most, and a live run's progress."""
    last, best, at = scores(run)[""]
    spent = sum(row.get("time/round_s") or 0 for row in run.rows)
    wall = None if live else run.summary.get("wall_s")
    scored = [row["round"] for row in run.rows if row.get("test/acc") is not None]
    tiles = [
        ("accuracy, last", percent(last), f"round {scored[-1]}" if scored else "not scored yet"),
        ("accuracy, best", percent(best), f"round {at}" if at else ""),
        ("rounds", f"{run.done:,}", f"of {run.planned:,}"),
        ("time", clock(wall or spent), "wall" if wall else "in rounds"),
        ("traffic", amount(_traffic(run), "B"), "up and down"),
    ]
    shown = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), " ", tag("small", more)))
        for name, value, more in tiles
    ]
    choices = run.about.get("choices") or {}
    words = [str(choices[group]) for group in _HEADLINE if choices.get(group)]
    if run.seed is not None:
        words.append(f"seed {run.seed}")
    return tag(
        "header",
        tag("h1", run.name, " ", badge("running" if live else run.outcome)),
        tag("p", " \N{MIDDLE DOT} ".join(words), class_="lead") if words else None,
        _progress(run) if live else None,
        tag("dl", shown, class_="tiles"),
        None if live else _trouble(run),  # a live run's summary is of an earlier session
    )


def _progress(run: Run) -> Html:
    """Return a bar, and the time left by the median of the last rounds."""
    done = run.done
    planned = run.planned
    rows = run.rows[-RECENT:]
    times = [row["time/round_s"] for row in rows if row.get("time/round_s") is not None]
    left = "about to end"
    if times and planned > done:
        left = f"about {clock(statistics.median(times) * (planned - done))} left"
    text = f"{100 * done // max(planned, 1)}% of the rounds, {left if done else 'first round'}"
    bar = tag("progress", value=done, max=max(planned, 1), aria_label="rounds done")
    return tag("p", bar, tag("span", text), class_="progress")


def _trouble(run: Run) -> Html | None:
    """Return why the run did not finish, and its warnings."""
    lines = []
    if "error" in run.summary:
        code = run.summary.get("exit_code")
        lines.append(f"{run.outcome}: {run.summary['error'] or 'no message'} (exit code {code})")
    lines += [f"warning: {warning}" for warning in run.summary.get("warnings") or ()]
    return tag("ul", (tag("li", line) for line in lines), class_="notice") if lines else None


def _traffic(run: Run) -> float | None:
    rows = [row for row in run.rows if "comm/up_bytes" in row]
    ways = ("comm/up_bytes", "comm/down_bytes")
    return sum(row.get(way) or 0 for row in rows for way in ways) if rows else None


def capacity_rows(run: Run) -> list[list[Any]]:
    """Return the rows of the table by capacity, the mean last; none where no number is known."""
    found = scores(run)
    rows: list[list[Any]] = []
    for name in [*run.capacities, ""]:
        keys = {what: f"{what}/{name}" if name else f"mean_{what}" for what in _UNITS}
        sizes = [(run.known.get(keys[what]), unit) for what, unit in _UNITS.items()]
        numbers = [Number(amount(size, unit), size) for size, unit in sizes]
        numbers += [Number.of(score, percent) for score in found[name][:2]]
        rows.append([name or "mean", *numbers])
    known = any(number.value is not None for row in rows for number in row[1:])
    return rows if known else []


def capacity_section(run: Run) -> Section | None:
    """Return sizes and accuracies by capacity."""
    lead = (
        "FLOPs of one image's forward pass, two per multiply-add. The mean's sizes are over all"
        " clients, its accuracies over capacities."
    )
    rows = [[name, *(number.text for number in more)] for name, *more in capacity_rows(run)]
    caption = "Sizes, and accuracy on the whole test set"
    content = table(caption, SIZE_HEADS, rows, foot=True) if rows else None
    return section("capacities", "By capacity", content, lead=lead)


def settings_section(run: Run) -> Section | None:
    """Return what differs from the defaults, and all settings folded away."""
    changes = run.about.get("difference")
    content: list[Html | None] = []
    if changes:
        rows = [[key, *(tag("code", setting(value)) for value in both)] for key, *both in changes]
        heads = ("setting", "here", "default")
        content.append(table("What differs from the defaults", heads, rows, words=range(3)))
    elif changes is not None:
        content.append(tag("p", "All settings are the defaults."))
    if run.recorded:
        every = {**(run.about.get("choices") or {}), **flat(run.recorded)}
        caption = "All choices and settings that a result depends on"
        summary = f"All {len(every)} choices and settings"
        content.append(folded("all-settings", summary, caption, every))
    return section("settings", "Settings", content)


def origin_section(run: Run) -> Section | None:
    """Return the command, the versions, the machine and the checksums."""
    known = run.known
    content: list[Html | None] = []
    if known.get("command"):
        copy = tag("button", "Copy", type="button", data_copy="command")
        command = tag("pre", tag("code", known["command"], id="command"))
        content.append(tag("div", command, copy, class_="command"))
    facts = _machine(_mapping(known.get("machine")), _mapping(known.get("git")))
    if "workers" in run.summary:
        device = run.summary.get("device", MISSING)
        facts["workers"] = f"{run.summary['workers']} on {device}"
    peak = run.summary.get("peak_rss_bytes")
    facts["peak memory"] = amount(peak, "B") if peak else None
    facts |= known.get("versions") or {}
    for name in ("weights", "dataset", "partition"):
        facts[f"{name} sha256"] = known.get(f"{name}_sha256")
    facts["digest of the settings"] = known.get("digest")
    caption = "Versions, machine and checksums"
    shown = {key: str(value) for key, value in facts.items() if value}
    content.append(folded("versions", caption, caption, shown, "what"))
    lead = "In a checkout, with the same versions and kind of device, the same bits."
    return section("origin", "How to get it again", content, lead=lead)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _machine(machine: Mapping[str, Any], git: Mapping[str, Any]) -> dict[str, Any]:
    commit = git.get("commit")
    if commit and not git.get("clean"):
        commit = f"{commit}, with changes"
    limits = ", ".join(f"{key}={value}" for key, value in _mapping(machine.get("limits")).items())
    return {
        "machine": machine.get("system"),
        "processor": machine.get("cpu"),
        "instruction set": " ".join(filter(None, [machine.get("instruction_set"), limits])),
        "GPU": ", ".join(machine.get("gpu") or ()),
        "CUDA": machine.get("cuda"),
        "cuDNN": machine.get("cudnn"),
        "commit": commit,
    }

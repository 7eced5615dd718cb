"""What a run's page says in words and tables: its head, its scores by capacity, its settings and
how it came about.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from inco.records.names import flat
from inco.records.runs import Run
from inco.report.markup import Html, html, tag
from inco.report.page import HINT, Section, folded, section, table
from inco.report.text import MISSING, amount, clock, percent, plural, setting

RECENT = 9  # rounds whose median time the time left is estimated from
_MARKS = {
    "finished": "\N{CHECK MARK}",
    "running": "\N{BLACK RIGHT-POINTING TRIANGLE}",
    "interrupted": "\N{DOUBLE VERTICAL LINE}",
    "failed": "\N{MULTIPLICATION SIGN}",
    "no end recorded": "?",
}
_WORDS = ("dataset", "partition", "model", "split", "algorithm", "transform")  # of the headline


def badge(word: str) -> Html:
    """Return a status as a mark and a word: its colour says nothing alone."""
    mark = tag("span", _MARKS.get(word, "\N{BULLET}"), aria_hidden="true")
    return tag("span", mark, " ", word, class_=f"badge {word.partition(' ')[0]}")


def scores(run: Run) -> dict[str, tuple[float | None, float | None, int | None]]:
    """Return last accuracy, best accuracy and its round (the first of equals): by capacity, and of
    the mean under "".
    """
    found = {}
    for key, name in [("test/acc", ""), *((f"test/acc/{name}", name) for name in run.capacities)]:
        having = [(row[key], row["round"]) for row in run.rows if row.get(key) is not None]
        best = max(having, key=lambda pair: (pair[0], -pair[1]), default=(None, None))
        found[name] = (having[-1][0] if having else None, *best)
    return found


def head(run: Run, live: bool) -> Html:
    """Return the name, the status, the numbers that matter most, and for a live run how far it
    is.
    """
    last, best, at = scores(run)[""]
    spent = sum(row.get("time/round_s") or 0 for row in run.rows)
    wall = None if live else run.summary.get("wall_s")
    scored = [row["round"] for row in run.rows if row.get("test/acc") is not None]
    tiles = [
        ("accuracy, last", percent(last), f"round {scored[-1]}" if scored else "not scored yet"),
        ("accuracy, best", percent(best), f"round {at}" if at else ""),
        ("rounds", f"{run.done:,}", f"of {run.planned:,}"),
        ("time", clock(wall or spent), "wall" if wall else "in rounds"),
        ("traffic", amount(_moved(run), "B"), "up and down"),
    ]
    shown = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), " ", tag("small", more)))
        for name, value, more in tiles
    ]
    choices = run.about.get("choices") or {}
    words = [str(choices[group]) for group in _WORDS if choices.get(group)]
    if run.seed is not None:
        words.append(f"seed {run.seed}")
    return tag(
        "header",
        tag("h1", run.name, " ", badge("running" if live else run.outcome)),
        tag("p", " \N{MIDDLE DOT} ".join(words), class_="lead") if words else None,
        _progress(run) if live else None,
        tag("dl", shown, class_="tiles"),
        _trouble(run, live),
    )


def _progress(run: Run) -> Html:
    """Return a bar, and the time left by the median of the last rounds."""
    done = run.done
    whole = run.planned
    rows = run.rows[-RECENT:]
    times = [row["time/round_s"] for row in rows if row.get("time/round_s") is not None]
    left = "about to end"
    if times and whole > done:
        left = f"about {clock(statistics.median(times) * (whole - done))} left"
    told = f"{100 * done // max(whole, 1)}% of the rounds, {left if done else 'first round'}"
    bar = tag("progress", value=done, max=max(whole, 1), aria_label="rounds done")
    return tag("p", bar, tag("span", told), class_="progress")


def _trouble(run: Run, live: bool) -> Html | None:
    """Return why the run did not finish, and its warnings."""
    if live:
        return None  # a summary that is there is of an earlier sitting
    lines = []
    if "error" in run.summary:
        code = run.summary.get("exit_code")
        lines.append(f"{run.outcome}: {run.summary['error'] or 'no message'} (exit code {code})")
    lines += [f"warning: {warning}" for warning in run.summary.get("warnings") or ()]
    return tag("ul", (tag("li", line) for line in lines), class_="notice") if lines else None


def _moved(run: Run) -> float | None:
    both = [
        (row.get("comm/up_bytes") or 0) + (row.get("comm/down_bytes") or 0)
        for row in run.rows
        if "comm/up_bytes" in row
    ]
    return sum(both) if both else None


def capacity_rows(run: Run) -> list[list[tuple[str, Any]]]:
    """Return the table by capacity, last row the mean: each cell as text, and the number behind
    it.
    """
    sizes = run.known
    rows = []
    found = scores(run)
    for name in [*run.capacities, ""]:
        cells: list[tuple[str, Any]] = [(name or "mean", None)]
        for what, unit in _SIZES.items():
            size = sizes.get(f"{what}/{name}" if name else f"mean_{what}")
            cells.append((amount(size, unit), size))
        last, best, _ = found[name]
        rows.append([*cells, (percent(last), last), (percent(best), best)])
    return rows if any(cell[1] is not None for row in rows for cell in row) else []


_SIZES = {"params": "", "flops": "", "down_bytes": "B", "up_bytes": "B"}
CAPACITY_HEADS = ("capacity", "parameters", "FLOPs", "down a round", "up a round", "last", "best")


def capacity_section(run: Run) -> Section | None:
    """Return sizes and accuracies by capacity."""
    rows = capacity_rows(run)
    told = (
        "FLOPs of one image's forward pass, two a multiply-add. The mean's sizes are over all"
        " clients, its accuracies over capacities."
    )
    shown = [[text for text, _ in row] for row in rows]
    caption = "Sizes, and accuracy on the whole test set"
    content = table(caption, CAPACITY_HEADS, shown, foot=True) if rows else None
    return section("capacities", "By capacity", content, lead=told)


def settings_section(run: Run) -> Section | None:
    """Return what differs from the defaults, and all settings folded away."""
    changes = run.about.get("difference")
    content: list[Html | None] = []
    if changes:
        rows = [
            [key, tag("code", setting(value)), tag("code", setting(default))]
            for key, value, default in changes
        ]
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
    summary = run.summary
    peak = summary.get("peak_rss_bytes")
    facts = _machine(_mapping(known.get("machine")), _mapping(known.get("git")))
    if "workers" in summary:
        facts["workers"] = f"{summary['workers']} on {summary.get('device', MISSING)}"
    facts["peak memory"] = amount(peak, "B") if peak else None
    facts |= known.get("versions") or {}
    for name in ("weights", "dataset", "partition"):
        facts[f"{name} sha256"] = known.get(f"{name}_sha256")
    facts["digest of the settings"] = known.get("digest")
    told = {key: str(value) for key, value in facts.items() if value}
    caption = "Versions, machine and checksums"
    content.append(folded("versions", caption, caption, told, "what"))
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


def footer(run: Run) -> Html:
    """Return where the numbers come from."""
    told = f"Made from {plural(len(run.rows), 'row')} of metrics.jsonl. " + HINT
    return tag("footer", html(tag("p", told)))

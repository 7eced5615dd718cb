"""What a run's page says in words and tables: its head, its scores by capacity, its settings and
how it came about.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from inco.records.names import flat
from inco.records.runs import Run
from inco.report.curves import after
from inco.report.markup import Html, html, tag
from inco.report.page import HINT, Section, section, table
from inco.report.text import MISSING, amount, clock, percent, plural, setting

RECENT = 9  # rounds whose median time the time left is estimated from
_MARKS = {
    "finished": "\N{CHECK MARK}",
    "running": "\N{BLACK RIGHT-POINTING TRIANGLE}",
    "interrupted": "\N{DOUBLE VERTICAL LINE}",
}
_MARKS |= {"failed": "\N{MULTIPLICATION SIGN}", "no end recorded": "?"}


def status(run: Run, live: bool = False) -> str:
    """Say how a run stands.

    One that has not said how it ended may be running, or may have been killed.
    """
    return "running" if live else "no end recorded" if run.status == "running" else run.status


def badge(word: str) -> Html:
    """Return a status as a mark and a word: its colour says nothing alone."""
    mark = tag("span", _MARKS.get(word, "\N{BULLET}"), aria_hidden="true")
    return tag("span", mark, " ", word, class_=f"badge {word.partition(' ')[0]}")


def capacities(run: Run) -> list[str]:
    """Return the names of the capacities, smallest first; of a run without about.json, those that
    its rows and summary speak of.
    """
    named = run.about.get("capacities")
    return list(
        named
        or (
            name
            for name in after("test/acc/", [run.summary, *run.rows])
            if not name.endswith("_best")
        )
    )


def scores(run: Run) -> dict[str, tuple[float | None, float | None, int | None]]:
    """Return last accuracy, best accuracy and its round (the first of equals): by capacity, and of
    the mean under "".
    """
    found = {}
    for key, name in [("test/acc", ""), *((f"test/acc/{name}", name) for name in capacities(run))]:
        having = [(row[key], row["round"]) for row in run.rows if row.get(key) is not None]
        best = max(having, key=lambda pair: (pair[0], -pair[1]), default=(None, None))
        found[name] = (having[-1][0] if having else None, *best)
    return found


def planned(run: Run) -> int:
    """Return how many rounds the run is to have."""
    done = run.rows[-1]["round"] if run.rows else 0
    return max(int(run.about.get("rounds") or run.summary.get("rounds") or done), done)


def head(run: Run, live: bool) -> Html:
    """Return the name, the status, the numbers that matter most, and for a live run how far it
    is.
    """
    last, best, at = scores(run)[""]
    done = run.rows[-1]["round"] if run.rows else 0
    spent = sum(row.get("time/round_s") or 0 for row in run.rows)
    wall = None if live else run.summary.get("wall_s")
    scored = [row["round"] for row in run.rows if row.get("test/acc") is not None]
    tiles = [
        ("accuracy, last", percent(last), f"round {scored[-1]}" if scored else "not scored yet"),
        ("accuracy, best", percent(best), f"round {at}" if at else ""),
        ("rounds", f"{done:,}", f"of {planned(run):,}"),
        ("time", clock(wall or spent), "wall" if wall else "in rounds"),
        ("traffic", amount(_moved(run), "B"), "up and down"),
    ]
    shown = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), " ", tag("small", more)))
        for name, value, more in tiles
    ]
    choices = run.about.get("choices") or {}
    words = [
        str(choices[g])
        for g in ("dataset", "partition", "model", "split", "algorithm", "transform")
        if choices.get(g)
    ]
    if run.about.get("seed", run.summary.get("seed")) is not None:
        words.append(f"seed {run.about.get('seed', run.summary.get('seed'))}")
    return tag(
        "header",
        tag("h1", run.name, " ", badge(status(run, live))),
        tag("p", " \N{MIDDLE DOT} ".join(words), class_="lead") if words else None,
        _progress(run, done) if live else None,
        tag("dl", shown, class_="tiles"),
        _trouble(run, live),
    )


def _progress(run: Run, done: int) -> Html:
    """Return a bar, and the time left by the median of the last rounds."""
    whole = planned(run)
    times = [
        row["time/round_s"] for row in run.rows[-RECENT:] if row.get("time/round_s") is not None
    ]
    left = (
        f"about {clock(statistics.median(times) * (whole - done))} left"
        if times and whole > done
        else "about to end"
    )
    bar = tag("progress", value=done, max=max(whole, 1), aria_label="rounds done")
    return tag(
        "p",
        bar,
        tag(
            "span",
            f"{100 * done // max(whole, 1)}% of the rounds, {left if done else 'first round'}",
        ),
        class_="progress",
    )


def _trouble(run: Run, live: bool) -> Html | None:
    """Return why the run did not finish, and its warnings."""
    if live:
        return None  # a summary that is there is of an earlier sitting
    lines = []
    if "error" in run.summary:
        lines.append(
            f"{status(run)}: {run.summary['error'] or 'no message'} (exit code"
            f" {run.summary.get('exit_code')})"
        )
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
    sizes = {**run.summary, **run.about}
    rows = []
    found = scores(run)
    for name in [*capacities(run), ""]:
        keys = [
            f"{what}/{name}" if name else f"mean_{what}"
            for what in ("params", "flops", "down_bytes", "up_bytes")
        ]
        params, flops, down, up = (sizes.get(key) for key in keys)
        last, best, _ = found[name]
        cells = [
            (amount(params), params),
            (amount(flops), flops),
            (amount(down, "B"), down),
            (amount(up, "B"), up),
        ]
        rows.append([(name or "mean", None), *cells, (percent(last), last), (percent(best), best)])
    return rows if any(cell[1] is not None for row in rows for cell in row) else []


CAPACITY_HEADS = ("capacity", "parameters", "FLOPs", "down a round", "up a round", "last", "best")


def capacity_section(run: Run) -> Section | None:
    """Return sizes and accuracies by capacity."""
    rows = capacity_rows(run)
    told = (
        "FLOPs of one image's forward pass, two a multiply-add. The mean's sizes are over all"
        " clients, its accuracies over capacities."
    )
    content = (
        table(
            "Sizes, and accuracy on the whole test set",
            CAPACITY_HEADS,
            [[c[0] for c in row] for row in rows],
            foot=True,
        )
        if rows
        else None
    )
    return section("capacities", "By capacity", content, lead=told)


def settings_section(run: Run) -> Section | None:
    """Return what differs from the defaults, and all settings folded away."""
    changes = run.about.get("difference")
    content = []
    if changes:
        rows = [
            [key, tag("code", setting(value)), tag("code", setting(default))]
            for key, value, default in changes
        ]
        content.append(
            table(
                "What differs from the defaults",
                ("setting", "here", "default"),
                rows,
                words=range(9),
            )
        )
    elif changes is not None:
        content.append(tag("p", "All settings are the defaults."))
    choices = run.about.get("choices") or {}
    every = run.about.get("settings") or run.summary.get("settings") or {}
    if every:
        listed = [
            [key, tag("code", setting(value))] for key, value in {**choices, **flat(every)}.items()
        ]
        whole = table(
            "All choices and settings that a result depends on",
            ("setting", "value"),
            listed,
            words=range(9),
        )
        content.append(
            tag(
                "details",
                tag("summary", f"All {len(listed)} choices and settings"),
                whole,
                id="all-settings",
            )
        )
    return section("settings", "Settings", content)


def origin_section(run: Run) -> Section | None:
    """Return the command, the versions, the machine and the checksums."""
    known: Mapping[str, Any] = {**run.summary, **run.about}
    content = []
    if known.get("command"):
        copy = tag("button", "Copy", type="button", data_copy="command")
        content.append(
            tag(
                "div",
                tag("pre", tag("code", known["command"], id="command")),
                copy,
                class_="command",
            )
        )
    facts = {
        **_machine(_mapping(known.get("machine")), _mapping(known.get("git"))),
        "workers": (
            f"{run.summary['workers']} on {run.summary.get('device', MISSING)}"
            if "workers" in run.summary
            else None
        ),
        "peak memory": (
            amount(run.summary["peak_rss_bytes"], "B")
            if run.summary.get("peak_rss_bytes")
            else None
        ),
        **(known.get("versions") or {}),
        **{
            key.replace("_sha256", " sha256"): known.get(key)
            for key in ("weights_sha256", "dataset_sha256", "partition_sha256")
        },
        "digest of the settings": known.get("digest"),
    }
    rows = [[key, tag("code", str(value))] for key, value in facts.items() if value]
    if rows:
        whole = table("Versions, machine and checksums", ("what", "value"), rows, words=range(9))
        content.append(
            tag("details", tag("summary", "Versions, machine and checksums"), whole, id="versions")
        )
    return section(
        "origin",
        "How to get it again",
        content,
        lead="In a checkout, with the same versions and kind of device, the same bits.",
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _machine(machine: Mapping[str, Any], git: Mapping[str, Any]) -> dict[str, Any]:
    commit = (
        f"{git['commit']}{'' if git.get('clean') else ', with changes'}"
        if git.get("commit")
        else None
    )
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

"""The comparison of runs: a page, and its tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inco.errors import ConfigError
from inco.records.groups import Group
from inco.records.record import atomic_write
from inco.records.runs import Run
from inco.report import facts, groups
from inco.report.beside import Beside, beside
from inco.report.curves import over_seeds
from inco.report.groups import Gain, note
from inco.report.markup import Html, html, tag
from inco.report.page import HINT, Section, document, folded, section, sections, table
from inco.report.run_page import NAME, figures
from inco.report.tables import MARKDOWN, PLUS_MINUS, Number, Table, as_csv
from inco.report.text import MISSING, amount, clock, percent, plural, setting

_FILES = ("comparison.csv", "comparison_runs.csv", "comparison.md", "comparison.tex")


def write_comparison(runs: Sequence[Run], out: Path, title: str) -> list[Path]:
    """Write comparison.html, .csv, .md, .tex and comparison_runs.csv; return their paths.

    Raises ConfigError without runs, DataError or StorageError where one is damaged.
    """
    if not runs:
        raise ConfigError(
            "no runs to compare: give the folders of some, or one above them, as outputs/"
        )
    found = groups.group(runs)
    gains = groups.gains(found)
    theirs = beside(found, gains)
    contents = {
        "comparison.html": _html(found, gains, theirs, Path(out), title),
        "comparison.csv": as_csv([_csv_row(one, found, gains, theirs) for one in found]),
        "comparison_runs.csv": as_csv([_csv_run(run, one) for one in found for run in one.runs]),
        "comparison.md": _markdown(found, gains, theirs, title),
        "comparison.tex": _latex(found, gains, theirs),
    }
    for name, text in contents.items():
        atomic_write(Path(out) / name, text)
    return [Path(out) / name for name in contents]


def _capacities(found: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(one.runs[0].capacities for one in found)))


def _varying(one: Group, keys: Sequence[str]) -> dict[str, str]:
    return {key: setting(one.facts[key]) for key in keys if key in one.facts}


def main_table(found: Sequence[Group], by_capacity: bool = True) -> Table:
    """Return a row per group: what differs, accuracies (also by capacity), sizes and time."""
    keys = groups.varying(found)
    names = _capacities(found) if by_capacity else []
    scores = ["test/acc", "test/acc_best", *(f"test/acc/{name}" for name in names)]
    rows = []
    for one in found:
        known = _varying(one, keys)
        row: list[Any] = [known.get(key, MISSING) for key in keys] or [one.label]
        row += [Number.of(len(one.counted)), *(one.spread(key) for key in scores)]
        row += [Number.of(one.size(key), amount) for key in ("mean_params", "mean_flops")]
        rows.append([*row, Number.of(one.spread("wall_s").mean, clock)])
    heads = [*(keys or ["group"]), "n", "last, %", "best, %", *(f"{name}, %" for name in names)]
    heads += ["parameters", "FLOPs", "wall time"]
    first = len(keys or ["group"]) + 1
    caption = (
        f"Test accuracy, mean {PLUS_MINUS} standard deviation over seeds (n - 1); sizes are means"
        " over clients"
    )
    return Table(caption, heads, rows, best=range(first, first + len(scores)))


def capacity_table(found: Sequence[Group], measure: str) -> Table | None:
    """Return the accuracy of each capacity, `last` or `best`; None where there is one capacity."""
    names = _capacities(found)
    if len(names) < 2:
        return None
    end = "_best" if measure == "best" else ""
    rows = [[one.label, *(one.spread(f"test/acc/{name}{end}") for name in names)] for one in found]
    caption = f"{measure.capitalize()} test accuracy by capacity, %"
    return Table(caption, ["group", *names], rows, best=range(1, len(names) + 1))


def gain_table(gains: Sequence[Gain]) -> Table:
    """Return a row per pair and measure: the mean gain, each seed's, and what can be said of it."""
    rows = []
    for gain in gains:
        each = ", ".join(f"{v:+.2f} (seed {setting(seed)})" for seed, v in gain.by_seed.items())
        row: list[Any] = [gain.group.label, gain.base.label, gain.measure, each or MISSING]
        rows.append([*row, gain.spread, Number.of(gain.p, "{:.3g}".format), note(gain.spread.n)])
    heads = ["group", "base", "accuracy", "gain by seed, points", "mean gain, points", "p", "note"]
    caption = "Gain over the same settings with transform=none, paired by seed"
    return Table(caption, heads, rows, signed=True)


def _markdown(found: Sequence[Group], gains: Sequence[Gain], theirs: Beside, title: str) -> str:
    parts = [
        f"# {' '.join(title.split()).translate(MARKDOWN)}\n",
        main_table(found).markdown(),
        _left_out(found).translate(MARKDOWN),
    ]
    if gains:
        parts += [
            "Gain over the same settings with `transform=none`, paired by seed:\n",
            gain_table(gains).markdown(),
            _caution(gains),
        ]
    return "\n".join(part for part in (*parts, *theirs.markdown()) if part)


def _latex(found: Sequence[Group], gains: Sequence[Gain], theirs: Beside) -> str:
    tables = [main_table(found), *([gain_table(gains)] if gains else [])]
    texts = [*(one.latex() for one in tables), *theirs.latex()]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(texts)


def _left_out(found: Sequence[Group]) -> str:
    """Say which runs are not in the means."""
    missing = [f"{one.label}: {', '.join(one.left_out)}" for one in found if one.left_out]
    count = sum(len(one.left_out) for one in found)
    return f"Not in the means: {plural(count, 'run')} ({'; '.join(missing)}).\n" if missing else ""


def _caution(gains: Sequence[Gain]) -> str:
    """Say how to read the p-values."""
    text = "p: exact sign-flip permutation test, two-sided, not corrected for the number of"
    text += " comparisons."
    if len(gains) > 2:
        text += f" There are {len(gains)} of them: with so many tests, small ones come by chance."
    return text + "\n"


def _html(
    found: Sequence[Group], gains: Sequence[Gain], theirs: Beside, out: Path, title: str
) -> str:
    data: dict[str, Any] = {"charts": {}, "maps": {}}
    runs = [(run, one) for one in found for run in one.runs]
    finished = sum(run.status == "finished" for run, _ in runs)
    lead = (
        f"{plural(len(runs), 'run')} in {plural(len(found), 'group')}; {finished} finished. A"
        " group's runs differ in their seed alone."
    )
    links = Html(" \N{MIDDLE DOT} ".join(tag("a", name, href=name) for name in _FILES))
    head = tag(
        "header",
        tag("h1", title),
        tag("p", lead, class_="lead"),
        tag("p", links, class_="files"),
        _filter(gains, found, theirs),
    )
    parts = [
        _groups(found),
        _gains(gains),
        theirs.section(),
        _curves(found, data),
        _runs(runs, out),
        _common(found),
    ]
    foot = tag("footer", tag("p", f"Click a head to sort. {HINT}"))
    return document(f"{title} \N{MIDDLE DOT} InCo", [head, sections(parts), foot], data)


def _filter(gains: Sequence[Gain], found: Sequence[Group], theirs: Beside) -> Html:
    measures = groups.MEASURES if capacity_table(found, "last") else ()
    names = ["groups", *measures, *(["gains"] if gains else []), *theirs.tables(), "runs"]
    tables = " ".join(f"{name}-table" for name in names)
    hints = {"placeholder": "words, as inco 0.5", "autocomplete": "off"}
    box = tag("input", type="search", id="filter", aria_controls=tables, **hints)
    count = tag("output", id="filter-told", for_="filter", aria_live="polite")
    return tag("p", tag("label", "Show rows with ", box), " ", count, class_="filter")


def _groups(found: Sequence[Group]) -> Section | None:
    left = _left_out(found)
    by_capacity = {measure: capacity_table(found, measure) for measure in groups.MEASURES}
    more = [shown.html(f"{measure}-table") for measure, shown in by_capacity.items() if shown]
    content = [main_table(found, by_capacity=False).html("groups-table"), *more]
    return section("groups", "Groups", content, tag("p", left, class_="notice") if left else None)


def _gains(gains: Sequence[Gain]) -> Section | None:
    if not gains:
        return None
    shown = gain_table(gains)
    most = max((abs(v) for gain in gains for v in gain.by_seed.values()), default=1.0) or 1.0
    for row, gain in zip(shown.rows, gains, strict=True):
        if gain.by_seed:
            row[3] = (html(row[3], _strip(list(gain.by_seed.values()), most)), gain.spread.mean)
    caution = tag("p", _caution(gains), class_="lead")
    return section("gains", "Gain over no transform", shown.html("gains-table"), caution)


def _strip(values: Sequence[float], most: float) -> Html:
    """Return a picture of gains from -most to most: a dot each, and the mean as a bar."""
    wide = 120.0
    high = 18.0
    mean = sum(values) / len(values)
    *dots, bar = [f"{wide / 2 + v / most * (wide / 2 - 5):.1f}" for v in (*values, mean)]
    size = {"width": wide, "height": high, "viewBox": f"0 0 {wide} {high}"}
    label = f"Gains by seed: {', '.join(f'{v:+.2f}' for v in values)}"
    inside = (
        tag("line", x1=wide / 2, x2=wide / 2, y1=0, y2=high, class_="axis"),
        [tag("circle", cx=x, cy=high / 2, r=3.2, class_="dot") for x in dots],
        tag("line", x1=bar, x2=bar, y1=2, y2=high - 2, class_="mean"),
    )
    return tag("svg", inside, **size, role="img", aria_label=label, class_="seeds")


def _curves(found: Sequence[Group], data: dict[str, Any]) -> Section | None:
    charts = [
        over_seeds("acc", "Test accuracy, %", found, "test/acc", unit="%"),
        over_seeds("loss", "Training loss, nats", found, "train/loss", log=True),
    ]
    lead = (
        "Means over seeds; bands: one standard deviation to both sides, where a group has two or"
        " more runs."
    )
    return section("curves", "Curves", figures(charts, data), lead=lead)


def _runs(runs: Sequence[tuple[Run, Group]], out: Path) -> Section | None:
    rows = []
    for run, one in runs:
        last, best, _ = facts.scores(run)[""]
        page = run.folder / NAME
        name: str = run.name
        if page.exists():
            name = tag("a", run.name, href=quote(os.path.relpath(page, out)))
        words = [name, one.label, facts.badge(run.outcome), setting(run.seed)]
        numbers = [(f"{run.done:,}", run.done), Number.of(last, percent), Number.of(best, percent)]
        rows.append([*words, *numbers, Number.of(run.summary.get("wall_s"), clock)])
    heads = ("run", "group", "status", "seed", "rounds", "last", "best", "wall time")
    shown = table("All runs", heads, rows, name="runs-table", words=range(3))
    return section("runs", "Runs", shown)


def _common(found: Sequence[Group]) -> Section | None:
    same = groups.common(found)
    chosen = [f"{key} {value}" for key, value in same.items() if key in found[0].runs[0].choices]
    count = f"{len(same)} choices and settings"
    content = folded("common-settings", count, "Choices and settings of all groups", same)
    return section("common", "The same in all groups", content, lead=", ".join(chosen))


def _csv_row(
    one: Group, found: Sequence[Group], gains: Sequence[Gain], theirs: Beside
) -> dict[str, Any]:
    row: dict[str, Any] = {"group": one.label}
    keys = groups.varying(found)
    row |= dict.fromkeys(keys) | _varying(one, keys)
    row["n"] = len(one.counted)
    row["seeds"] = " ".join(str(run.seed) for run in one.counted)
    row["not counted"] = ", ".join(one.left_out)
    for name in ("", *(f"/{name}" for name in _capacities(found))):
        for key in (f"test/acc{name}", f"test/acc{name}_best"):
            row |= {f"{key} mean": one.spread(key).mean, f"{key} sd": one.spread(key).sd}
    for key in ("mean_params", "mean_flops", "mean_up_bytes", "mean_down_bytes"):
        row[key] = one.size(key)
    row["wall_s"] = one.spread("wall_s").mean
    for name in groups.MEASURES:
        gain = next((gain for gain in gains if gain.group is one and gain.measure == name), None)
        numbers = (*gain.spread, gain.p) if gain else (None,) * 4
        columns = (f"gain {name} {what}" for what in ("mean", "sd", "n", "p"))
        row |= zip(columns, numbers, strict=True)
    return row | theirs.columns(one)


def _csv_run(run: Run, one: Group) -> dict[str, Any]:
    scores = facts.scores(run)
    last, best, at = scores.pop("")
    row = {
        "run": run.name,
        "group": one.label,
        "seed": run.seed,
        "status": run.outcome,
        "counted": run in one.counted,
        "rounds": run.done,
        "test/acc": last,
        "test/acc_best": best,
        "round_best": at,
        "wall_s": run.summary.get("wall_s"),
    }
    for name, (last, best, _) in scores.items():
        row |= {f"test/acc/{name}": last, f"test/acc/{name}_best": best}
    return row

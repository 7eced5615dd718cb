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
from inco.report.band import band
from inco.report.beside import Beside, beside
from inco.report.groups import Gain
from inco.report.markup import Html, html, tag
from inco.report.page import HINT, Section, document, folded, section, sections, table
from inco.report.run_page import NAME, figures
from inco.report.stats import note
from inco.report.tables import Number, Table, as_csv, as_markdown, joined
from inco.report.text import MISSING, amount, clock, percent, plural, setting

_FILES = ("comparison.csv", "comparison_runs.csv", "comparison.md", "comparison.tex")


def write_comparison(runs: Sequence[Run], out: Path, title: str) -> list[Path]:
    """Write comparison.html, comparison.csv, comparison_runs.csv, comparison.md and comparison.tex
    into the folder `out`.

    Returns their paths. Raises ConfigError without runs, DataError or StorageError where one is
    damaged.
    """
    if not runs:
        raise ConfigError(
            "no runs to compare: give the folders of some, or one above them, as outputs/"
        )
    found = groups.group(runs)
    gains = groups.gains(found)
    theirs = beside(found, gains)
    contents = {
        "comparison.html": comparison_html(found, gains, theirs, Path(out), title),
        "comparison.csv": as_csv(
            [_csv_row(one, found, gains) | theirs.columns(one) for one in found]
        ),
        "comparison_runs.csv": as_csv([_csv_run(run, one) for one in found for run in one.runs]),
        "comparison.md": comparison_markdown(found, gains, theirs, title),
        "comparison.tex": comparison_latex(found, gains, theirs),
    }
    for name, text in contents.items():
        atomic_write(Path(out) / name, text)
    return [Path(out) / name for name in contents]


def capacities(found: Sequence[Group]) -> list[str]:
    """Return the capacities of all groups, in the order of the first that has them."""
    return list(dict.fromkeys(chain.from_iterable(one.runs[0].capacities for one in found)))


def main_table(found: Sequence[Group], by_capacity: bool = True) -> Table:
    """Return a row a group: what differs, accuracies, sizes and time.

    `by_capacity`: the last accuracy of each capacity as well.
    """
    keys = groups.varying(found)
    names = capacities(found) if by_capacity else []
    scores = ["test/acc", "test/acc_best", *(f"test/acc/{name}" for name in names)]
    heads = [*(keys or ["group"]), "n", "last, %", "best, %", *(f"{name}, %" for name in names)]
    rows = []
    for one in found:
        told = [setting(one.facts[key]) if key in one.facts else MISSING for key in keys]
        params = one.size("mean_params")
        flops = one.size("mean_flops")
        wall = one.spread("wall_s").mean
        row: list[Any] = [*(told or [one.label]), Number.of(len(one.counted))]
        row += [one.spread(key) for key in scores]
        row += [Number(params, amount(params)), Number(flops, amount(flops))]
        rows.append([*row, Number(wall, clock(wall))])
    first = (len(keys) or 1) + 1
    caption = (
        "Test accuracy, mean \N{PLUS-MINUS SIGN} standard deviation over seeds (n - 1); sizes are"
        " means over clients"
    )
    heads += ["parameters", "FLOPs", "wall time"]
    return Table(caption, heads, rows, best=set(range(first, first + len(scores))))


def capacity_table(found: Sequence[Group], measure: str) -> Table | None:
    """Return the accuracy of each capacity, `last` or `best`, a row a group; None where there is
    one capacity.
    """
    names = capacities(found)
    if len(names) < 2:
        return None
    end = "_best" if measure == "best" else ""
    rows = [[one.label, *(one.spread(f"test/acc/{name}{end}") for name in names)] for one in found]
    caption = f"{measure.capitalize()} test accuracy by capacity, %"
    return Table(caption, ["group", *names], rows, best=set(range(1, len(names) + 1)))


def gain_table(gains: Sequence[Gain]) -> Table:
    """Return a row a pair and measure: the mean gain, each seed's, and what can be said of it."""
    rows = []
    for gain in gains:
        each = joined(f"{value:+.2f} (seed {setting(s)})" for s, value in gain.by_seed.items())
        p = Number(gain.p, MISSING if gain.p is None else f"{gain.p:.3g}")
        names = [gain.group.label, gain.base.label, gain.measure]
        rows.append([*names, each or MISSING, gain.spread, p, note(gain.spread.n)])
    heads = ["group", "base", "accuracy", "gain by seed, points", "mean gain, points", "p", "note"]
    caption = "Gain over the same settings with transform=none, paired by seed"
    return Table(caption, heads, rows, signed=True)


def comparison_markdown(
    found: Sequence[Group], gains: Sequence[Gain], theirs: Beside, title: str
) -> str:
    """Return the tables as Markdown."""
    parts = [
        f"# {as_markdown(' '.join(title.split()))}\n",
        main_table(found).markdown(),
        as_markdown(_left_out(found)),
    ]
    if gains:
        parts += [
            "Gain over the same settings with `transform=none`, paired by seed:\n",
            gain_table(gains).markdown(),
            _caution(gains),
        ]
    return "\n".join(part for part in (*parts, *theirs.markdown()) if part)


def comparison_latex(found: Sequence[Group], gains: Sequence[Gain], theirs: Beside) -> str:
    """Return the tables as LaTeX."""
    tables = [main_table(found), *([gain_table(gains)] if gains else [])]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(
        [*(one.latex() for one in tables), *theirs.latex()]
    )


def _left_out(found: Sequence[Group]) -> str:
    """Say which runs are not in the means."""
    missing = [f"{one.label}: {joined(one.left_out)}" for one in found if one.left_out]
    count = sum(len(one.left_out) for one in found)
    return f"Not in the means: {plural(count, 'run')} ({'; '.join(missing)}).\n" if missing else ""


def _caution(gains: Sequence[Gain]) -> str:
    """Say how to read the p-values."""
    told = "p: exact sign-flip permutation test, two-sided, not corrected for the number of"
    rest = (
        f" There are {len(gains)} of them: with so many tests, small ones come by chance."
        if len(gains) > 2
        else ""
    )
    return f"{told} comparisons.{rest}\n"


def comparison_html(
    found: Sequence[Group], gains: Sequence[Gain], theirs: Beside, out: Path, title: str
) -> str:
    """Return the page."""
    data: dict[str, Any] = {"charts": {}, "maps": {}}
    runs = [(run, one) for one in found for run in one.runs]
    finished = sum(run.status == "finished" for run, _ in runs)
    told = (
        f"{plural(len(runs), 'run')} in {plural(len(found), 'group')}; {finished} finished. A"
        " group's runs differ in their seed alone."
    )
    links = [tag("a", name, href=name) for name in _FILES]
    files = [html(" \N{MIDDLE DOT} " if k else "", link) for k, link in enumerate(links)]
    head = tag(
        "header",
        tag("h1", title),
        tag("p", told, class_="lead"),
        tag("p", files, class_="files"),
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
    box = tag(
        "input",
        type="search",
        id="filter",
        aria_controls=tables,
        placeholder="words, as inco 0.5",
        autocomplete="off",
    )
    told = tag("output", id="filter-told", for_="filter", aria_live="polite")
    return tag("p", tag("label", "Show rows with ", box), " ", told, class_="filter")


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
            row[3] = (html(row[3], strip(list(gain.by_seed.values()), most)), gain.spread.mean)
    lead = tag("p", _caution(gains), class_="lead")
    return section("gains", "Gain over no transform", shown.html("gains-table"), lead)


def strip(values: Sequence[float], most: float) -> Html:
    """Return a small picture of gains around zero: a dot each, and the mean as a bar.

    `most`: the size at its ends.
    """
    wide = 120.0
    high = 18.0
    mean = sum(values) / len(values)
    at = [f"{wide / 2 + v / most * (wide / 2 - 5):.1f}" for v in (*values, mean)]
    dots = [tag("circle", cx=x, cy=high / 2, r=3.2, class_="dot") for x in at[:-1]]
    zero = tag("line", x1=wide / 2, x2=wide / 2, y1=0, y2=high, class_="axis")
    bar = tag("line", x1=at[-1], x2=at[-1], y1=2, y2=high - 2, class_="mean")
    told = f"Gains by seed: {joined(f'{v:+.2f}' for v in values)}"
    return tag(
        "svg",
        zero,
        dots,
        bar,
        width=wide,
        height=high,
        viewBox=f"0 0 {wide} {high}",
        role="img",
        aria_label=told,
        class_="seeds",
    )


def _curves(found: Sequence[Group], data: dict[str, Any]) -> Section | None:
    charts = [
        band("acc", "Test accuracy, %", found, "test/acc", unit="%"),
        band("loss", "Training loss, nats", found, "train/loss", log=True),
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
        there = page.exists()
        name = tag("a", run.name, href=quote(os.path.relpath(page, out))) if there else run.name
        wall = run.summary.get("wall_s")
        words = [name, one.label, facts.badge(run.outcome), setting(run.seed)]
        numbers = [(f"{run.done:,}", run.done), (percent(last), last), (percent(best), best)]
        rows.append([*words, *numbers, (clock(wall), wall)])
    heads = ("run", "group", "status", "seed", "rounds", "last", "best", "wall time")
    shown = table("All runs", heads, rows, sortable=True, name="runs-table", words=range(3))
    return section("runs", "Runs", shown)


def _common(found: Sequence[Group]) -> Section | None:
    same = groups.common(found)
    chosen = [f"{key} {value}" for key, value in same.items() if key in found[0].runs[0].choices]
    count = f"{len(same)} choices and settings"
    content = folded("common-settings", count, "Choices and settings of all groups", same)
    return section("common", "The same in all groups", content, lead=joined(chosen))


def _csv_row(one: Group, found: Sequence[Group], gains: Sequence[Gain]) -> dict[str, Any]:
    row: dict[str, Any] = {"group": one.label}
    for key in groups.varying(found):
        row[key] = setting(one.facts[key]) if key in one.facts else None
    row |= {
        "n": len(one.counted),
        "seeds": " ".join(str(run.seed) for run in one.counted),
        "not counted": joined(one.left_out),
    }
    names = ["", *(f"/{name}" for name in capacities(found))]
    for key in (f"test/acc{name}{end}" for name in names for end in ("", "_best")):
        row |= {f"{key} mean": one.spread(key).mean, f"{key} sd": one.spread(key).sd}
    for key in ("mean_params", "mean_flops", "mean_up_bytes", "mean_down_bytes"):
        row[key] = one.size(key)
    row["wall_s"] = one.spread("wall_s").mean
    for name in groups.MEASURES:
        gain = next((gain for gain in gains if gain.group is one and gain.measure == name), None)
        told = (*gain.spread, gain.p) if gain else (None,) * 4
        columns = (f"gain {name} {what}" for what in ("mean", "sd", "n", "p"))
        row |= zip(columns, told, strict=True)
    return row


def _csv_run(run: Run, one: Group) -> dict[str, Any]:
    last, best, at = facts.scores(run)[""]
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
    for name in run.capacities:
        last, best, _ = facts.scores(run)[name]
        row |= {f"test/acc/{name}": last, f"test/acc/{name}_best": best}
    return row

"""The comparison of runs: a page, and its tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inco.errors import ConfigError
from inco.records.record import atomic_write
from inco.records.runs import Run
from inco.report import facts, groups
from inco.report.band import band
from inco.report.beside import Beside, beside
from inco.report.groups import Gain, Group
from inco.report.markup import Html, html, tag
from inco.report.page import HINT, Section, document, section, sections, table
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
    return list(
        dict.fromkeys(
            name for one in found for run in one.runs[:1] for name in facts.capacities(run)
        )
    )


def main_table(found: Sequence[Group], by_capacity: bool = True) -> Table:
    """Return a row a group: what differs, accuracies, sizes and time.

    `by_capacity`: the last accuracy of each capacity as well.
    """
    keys = groups.varying(found)
    names = capacities(found) if by_capacity else []
    scores = ["test/acc", "test/acc_best", *(f"test/acc/{name}" for name in names)]
    heads = [
        *(keys or ["group"]),
        "n",
        "last, %",
        "best, %",
        *(f"{name}, %" for name in names),
        "parameters",
        "FLOPs",
        "wall time",
    ]
    rows = []
    for one in found:
        head = [setting(one.facts[key]) if key in one.facts else MISSING for key in keys] or [
            one.label
        ]
        params = one.size("mean_params")
        flops = one.size("mean_flops")
        wall = one.spread("wall_s").mean
        sizes = [
            Number(params, amount(params)),
            Number(flops, amount(flops)),
            Number(wall, clock(wall)),
        ]
        rows.append(
            [
                *head,
                Number(len(one.counted), str(len(one.counted))),
                *(one.spread(key) for key in scores),
                *sizes,
            ]
        )
    first = len(keys) or 1
    caption = (
        "Test accuracy, mean \N{PLUS-MINUS SIGN} standard deviation over seeds (n - 1); sizes are"
        " means over clients"
    )
    return Table(caption, heads, rows, best=set(range(first + 1, first + 1 + len(scores))))


def capacity_table(found: Sequence[Group], measure: str) -> Table | None:
    """Return the accuracy of each capacity, `last` or `best`, a row a group; None where there is
    one capacity.
    """
    names = capacities(found)
    if len(names) < 2:
        return None
    rows = [
        [
            one.label,
            *(
                one.spread(f"test/acc/{name}{'_best' if measure == 'best' else ''}")
                for name in names
            ),
        ]
        for one in found
    ]
    caption = f"{measure.capitalize()} test accuracy by capacity, %"
    return Table(caption, ["group", *names], rows, best=set(range(1, len(names) + 1)))


def gain_table(gains: Sequence[Gain]) -> Table:
    """Return a row a pair and measure: the mean gain, each seed's, and what can be said of it."""
    rows = []
    for gain in gains:
        each = (
            joined(f"{value:+.2f} (seed {setting(s)})" for s, value in gain.by_seed.items())
            or MISSING
        )
        p = Number(gain.p, MISSING if gain.p is None else f"{gain.p:.3g}")
        rows.append(
            [
                gain.group.label,
                gain.base.label,
                gain.measure,
                each,
                gain.spread,
                p,
                note(gain.spread.n),
            ]
        )
    heads = ["group", "base", "accuracy", "gain by seed, points", "mean gain, points", "p", "note"]
    return Table(
        "Gain over the same settings with transform=none, paired by seed", heads, rows, signed=True
    )


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
    rest = (
        f" There are {len(gains)} of them: with so many tests, small ones come by chance."
        if len(gains) > 2
        else ""
    )
    return (
        "p: exact sign-flip permutation test, two-sided, not corrected for the number of"
        f" comparisons.{rest}\n"
    )


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
    head = tag(
        "header",
        tag("h1", title),
        tag("p", told, class_="lead"),
        tag("p", _spaced(links), class_="files"),
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


def _spaced(parts: Sequence[Html]) -> Html:
    return html(*(html(" \N{MIDDLE DOT} " if k else "", part) for k, part in enumerate(parts)))


def _filter(gains: Sequence[Gain], found: Sequence[Group], theirs: Beside) -> Html:
    names = [
        "groups",
        *(groups.MEASURES if capacity_table(found, "last") else ()),
        *(["gains"] if gains else []),
        *theirs.tables(),
        "runs",
    ]
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
    return section(
        "gains",
        "Gain over no transform",
        shown.html("gains-table"),
        tag("p", _caution(gains), class_="lead"),
    )


def strip(values: Sequence[float], most: float) -> Html:
    """Return a small picture of gains around zero: a dot each, and the mean as a bar.

    `most`: the size at its ends.
    """
    wide = 120.0
    high = 18.0
    at = [
        f"{wide / 2 + v / most * (wide / 2 - 5):.1f}" for v in (*values, sum(values) / len(values))
    ]
    dots = [tag("circle", cx=x, cy=high / 2, r=3.2, class_="dot") for x in at[:-1]]
    zero = tag("line", x1=wide / 2, x2=wide / 2, y1=0, y2=high, class_="axis")
    mean = tag("line", x1=at[-1], x2=at[-1], y1=2, y2=high - 2, class_="mean")
    told = f"Gains by seed: {joined(f'{v:+.2f}' for v in values)}"
    return tag(
        "svg",
        zero,
        dots,
        mean,
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
        name = (
            tag("a", run.name, href=quote(os.path.relpath(page, out)))
            if page.exists()
            else run.name
        )
        done = run.rows[-1]["round"] if run.rows else 0
        wall = run.summary.get("wall_s")
        words = [name, one.label, facts.badge(facts.status(run)), setting(groups.seed(run))]
        rows.append(
            [
                *words,
                (f"{done:,}", done),
                (percent(last), last),
                (percent(best), best),
                (clock(wall), wall),
            ]
        )
    heads = ("run", "group", "status", "seed", "rounds", "last", "best", "wall time")
    return section(
        "runs",
        "Runs",
        table("All runs", heads, rows, sortable=True, name="runs-table", words=range(3)),
    )


def _common(found: Sequence[Group]) -> Section | None:
    same = groups.common(found)
    rows = [[key, tag("code", setting(value))] for key, value in same.items()]
    chosen = [
        f"{key} {value}" for key, value in same.items() if key in groups.choices(found[0].runs[0])
    ]
    whole = table("Choices and settings of all groups", ("setting", "value"), rows, words=range(9))
    content = (
        tag(
            "details",
            tag("summary", f"{len(rows)} choices and settings"),
            whole,
            id="common-settings",
        )
        if rows
        else None
    )
    return section("common", "The same in all groups", content, lead=joined(chosen))


def _csv_row(one: Group, found: Sequence[Group], gains: Sequence[Gain]) -> dict[str, Any]:
    row: dict[str, Any] = {"group": one.label}
    row |= {
        key: setting(one.facts[key]) if key in one.facts else None for key in groups.varying(found)
    }
    row |= {
        "n": len(one.counted),
        "seeds": " ".join(str(groups.seed(run)) for run in one.counted),
        "not counted": joined(one.left_out),
    }
    names = ["", *(f"/{name}" for name in capacities(found))]
    for key in (f"test/acc{name}{end}" for name in names for end in ("", "_best")):
        row |= {f"{key} mean": one.spread(key).mean, f"{key} sd": one.spread(key).sd}
    row |= {
        key: one.size(key)
        for key in ("mean_params", "mean_flops", "mean_up_bytes", "mean_down_bytes")
    }
    row["wall_s"] = one.spread("wall_s").mean
    for name in groups.MEASURES:
        gain = next((gain for gain in gains if gain.group is one and gain.measure == name), None)
        mean, sd, n = gain.spread if gain else (None, None, None)
        row |= {
            f"gain {name} mean": mean,
            f"gain {name} sd": sd,
            f"gain {name} n": n,
            f"gain {name} p": gain.p if gain else None,
        }
    return row


def _csv_run(run: Run, one: Group) -> dict[str, Any]:
    last, best, at = facts.scores(run)[""]
    done = run.rows[-1]["round"] if run.rows else 0
    row = {
        "run": run.name,
        "group": one.label,
        "seed": groups.seed(run),
        "status": facts.status(run),
        "counted": run in one.counted,
    }
    row |= {
        "rounds": done,
        "test/acc": last,
        "test/acc_best": best,
        "round_best": at,
        "wall_s": run.summary.get("wall_s"),
    }
    for name in facts.capacities(run):
        last, best, _ = facts.scores(run)[name]
        row |= {f"test/acc/{name}": last, f"test/acc/{name}_best": best}
    return row

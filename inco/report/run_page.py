"""The page of one run: `report.html` in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from inco.records.record import atomic_write
from inco.records.runs import Run
from inco.report import facts, maps
from inco.report.curves import Chart, Curve, after, by_layer, kept, over_rounds
from inco.report.markup import Html, tag
from inco.report.page import Section, document, section, sections, table
from inco.report.tables import Number, Table
from inco.report.text import amount, plural

NAME = "report.html"


def write_run(folder: Path, live: bool = False) -> Path:
    """Write a run's report.html in one step, and return its path. `live`: the run goes on, and the
    page reloads itself.

    Raises DataError or StorageError where the folder's files are damaged, or the page cannot be
    written.
    """
    path = Path(folder) / NAME
    atomic_write(path, run_html(Run(Path(folder)), live))
    return path


def run_html(run: Run, live: bool = False) -> str:
    """Return the page of a run."""
    data: dict[str, Any] = {"charts": {}, "maps": {}}
    capacities = run.capacities
    parts = [
        _scores(run, capacities, data),
        facts.capacity_section(run),
        _clients(run, data),
        _similarity(run, data),
        _mixing(run, data),
        _gradients(run, data),
        _costs(run, capacities, data),
        facts.settings_section(run),
        facts.origin_section(run),
    ]
    body = [facts.head(run, live), sections(parts), facts.footer(run)]
    return document(f"{run.name} \N{MIDDLE DOT} InCo", body, data, live)


def run_markdown(run: Run) -> str:
    """Return the table by capacity as Markdown."""
    rows = [
        [cells[0][0], *(Number(value, text) for text, value in cells[1:])]
        for cells in facts.capacity_rows(run)
    ]
    return Table("", list(facts.CAPACITY_HEADS), rows).markdown() if rows else ""


def figures(
    charts: Iterable[Chart | None], data: dict[str, Any], *more: Html | None
) -> Html | None:
    """Return the frames of charts, and leave what is drawn in them in `data`; after them what else
    there is.
    """
    there = [chart for chart in charts if chart]
    data["charts"] |= {chart.name: chart.data() for chart in there}
    frames = [chart.figure() for chart in there]
    return tag("div", *frames, *more, class_="figures") if there else None


def _scores(run: Run, capacities: list[str], data: dict[str, Any]) -> Section | None:
    accuracy = {"test/acc": "mean"} | {f"test/acc/{name}": name for name in capacities}
    if len(capacities) == 1:
        accuracy = {"test/acc": capacities[0]}
    losses = {"train/loss": "training", "test/loss": "test"}
    mean = "test/acc"
    caption = "Test accuracy by capacity, %"
    charts = [
        over_rounds("acc", caption, run.rows, accuracy, bold=mean, best=mean, unit="%"),
        over_rounds("loss", "Loss, nats", run.rows, losses, log=True),
    ]
    return section("accuracy", "Accuracy and loss", figures(charts, data))


def _clients(run: Run, data: dict[str, Any]) -> Section | None:
    found = maps.partition(run)
    if found is None:
        return None
    data["maps"]["partition"] = found
    shown = len(found["clients"])
    classes = len(found["classes"])
    of = found["of"]
    lead = f"{of:,} clients" if shown == of else f"The first {shown} of {of:,} clients"
    lead += f", sorted by capacity; {plural(found['classes_of'], 'class', 'classes')}"
    lead += f", of which the first {classes} are shown." if found["classes_of"] > classes else "."
    told = (
        f"Map of examples: {shown} clients by {classes} classes."
        f" {min(found['totals'])} to {max(found['totals'])} each."
    )
    caption = "Training examples by client (across) and class (down); bars: of each client in all"
    figure = _frame(caption, told, data_map="partition")
    return section("clients", "Who holds what", figure, lead=lead)


def _slider(name: str, count: int, extra: Html | None = None) -> Html:
    """Return a slider over measured rounds with a button that plays them."""
    slider = tag(
        "input",
        type="range",
        id=f"{name}-round",
        min=0,
        max=count - 1,
        value=count - 1,
        step=1,
        aria_label="measured round",
    )
    play = tag(
        "button", "Play", type="button", id=f"{name}-play", aria_pressed="false", disabled=count < 2
    )
    told = tag("output", for_=f"{name}-round", id=f"{name}-told")
    return tag("div", play, slider, told, extra, class_="controls slider")


def _select(name: str, label: str, options: Iterable[str]) -> Html:
    """Return a labelled choice of how maps are drawn."""
    return tag("label", label, tag("select", [tag("option", o) for o in options], id=name))


def _note(shown: int, of: int, word: str) -> str:
    return f" {shown} of {plural(of, word)} are shown." if of > shown else ""


def _similarity(run: Run, data: dict[str, Any]) -> Section | None:
    found = maps.cka(run)
    taps = {f"cka/{tap}": tap for tap in after("cka/", run.rows)}
    means = over_rounds("cka", "Mean CKA of all pairs, by layer", run.rows, taps)
    told = (
        "Linear CKA of every pair of models at a layer: 1 where they see images alike, 0 where not."
    )
    inside = None
    if found:
        data["maps"]["cka"] = found
        rounds = len(found["rounds"])
        told += _note(len(found["rounds"][-1]["names"]), found["models"], "model")
        told += _note(rounds, found["measured"], "measured round")
        scale = _select("cka-scale", "colours over ", ("0 to 1", "the data's range"))
        frames = tag("div", [_frame(tap) for tap in found["taps"]], class_="maps")
        slider = _slider("cka", rounds, scale)
        inside = tag("div", slider, frames, tag("div", class_="scale"), data_map="cka")
    return section("cka", "How alike models are", inside, figures([means], data), lead=told)


def _frame(caption: str, told: str = "", **attributes: object) -> Html:
    """Return an empty drawing with its caption, and what it shows in words where that is more."""
    drawing = tag("div", class_="drawing", role="img", aria_label=told or caption)
    readout = tag("p", class_="readout")
    return tag("figure", tag("figcaption", caption), drawing, readout, **attributes)


def _mixing(run: Run, data: dict[str, Any]) -> Section | None:
    theta = ("inco/theta/", "gradients/theta/")
    beta = ("inco/beta_positive/", "gradients/beta_positive/")
    charts = [
        by_layer("theta", "Theta, mean over a layer's kernels", run.rows, theta, reference=1.0),
        by_layer("beta", "Kernels with beta > 0, %", run.rows, beta, reference=50.0, unit="%"),
    ]
    used = any(key.startswith("inco/") for row in run.rows for key in row)
    lead = (
        "Theta is the weight of a layer's reference in InCo's rule, beta their inner product"
        " (Theorem 3.1), over the layer's kernels."
    )
    title = "What InCo mixes" if used else "What InCo would mix"
    return section("mixing", title, figures(charts, data), lead=lead)


def _gradients(run: Run, data: dict[str, Any]) -> Section | None:
    found = maps.histograms(run)
    inside = None
    lead = "What the server adds; by layer, what comes in before the transform."
    if found:
        data["maps"]["histograms"] = found
        rounds = len(found["rounds"])
        lead += (
            " Histograms: how entries are distributed; areas: clients' deltas, lines: the"
            " aggregated update."
        )
        lead += _note(len(found["layers"]), found["of"], "layer")
        lead += _note(rounds, found["measured"], "measured round")
        frames = tag("div", [_frame(layer) for layer in found["layers"]], class_="maps small")
        scale = _select("histograms-scale", "drawn as ", ("density", "log |x|"))
        slider = _slider("histograms", rounds, scale)
        inside = tag("div", slider, frames, data_map="histograms")
    norm = {"update/norm": "update"}
    noise = "Standard deviation of the noise that is added"
    charts = [
        over_rounds("update", "Norm of what the server adds", run.rows, norm, log=True),
        by_layer("norm", "Norm by layer", run.rows, ("gradients/norm/",), log=True),
        by_layer("noise", noise, run.rows, ("noise/std/",)),
    ]
    return section("gradients", "Updates", figures(charts, data), inside, lead=lead)


def _costs(run: Run, capacities: list[str], data: dict[str, Any]) -> Section | None:
    rows = [{**row, "other": _rest(row)} for row in run.rows]
    names = {
        "time/train_s": "training",
        "time/eval_s": "scoring",
        "time/cka_s": "of it CKA",
        "time/gradients_s": "of it gradients",
    }
    other = {"other": "other"} if any((row["other"] or 0) > 0.005 for row in rows) else {}
    charts = [over_rounds("time", "Seconds a round", rows, names | other, unit="s")]
    ways = ("comm/up_bytes", "comm/down_bytes")
    moved = [row for row in run.rows if all(row.get(way) is not None for way in ways)]
    if moved:
        charts += [_traffic(moved, capacities), _against_traffic(moved)]
    totals = _traffic_table(moved, capacities)
    return section("costs", "Time and traffic", figures(charts, data, totals))


def _rest(row: Mapping[str, Any]) -> float | None:
    whole = row.get("time/round_s")
    if whole is None:
        return None
    return max(0.0, whole - (row.get("time/train_s") or 0.0) - (row.get("time/eval_s") or 0.0))


def _total(rows: Iterable[Mapping[str, Any]], *keys: str) -> list[float]:
    """Return the sums so far of one or more numbers together."""
    return list(accumulate(sum(row.get(key) or 0 for key in keys) for row in rows))


def _traffic(rows: list[dict[str, Any]], capacities: list[str]) -> Chart:
    """Return bytes so far: all, up and down where they differ, and those of each capacity where
    rows say so.
    """
    chosen = kept(len(rows), 3 + len(capacities))
    up = _total(rows, "comm/up_bytes")
    down = _total(rows, "comm/down_bytes")
    lines = {"all": _total(rows, "comm/up_bytes", "comm/down_bytes")}
    if up != down:
        lines |= {"up": up, "down": down}
    if any(f"comm/up_bytes/{name}" in row for row in rows for name in capacities):
        for name in capacities:
            lines[name] = _total(rows, f"comm/up_bytes/{name}", f"comm/down_bytes/{name}")
    caption = "Traffic so far, up and down" + (", half each way" if up == down else "")
    curves = [
        Curve(name, [line[k] for k in chosen], name == "all", n - 1)
        for n, (name, line) in enumerate(lines.items())
    ]
    return Chart("traffic", caption, [rows[k]["round"] for k in chosen], curves, unit="B")


def _against_traffic(rows: list[dict[str, Any]]) -> Chart | None:
    """Return accuracy against all bytes sent so far."""
    both = _total(rows, "comm/up_bytes", "comm/down_bytes")
    scored = [k for k, row in enumerate(rows) if row.get("test/acc") is not None]
    if not scored:
        return None
    best = max(range(len(scored)), key=lambda k: rows[scored[k]]["test/acc"])
    chosen = [scored[k] for k in kept(len(scored), 1, [best])]
    line = Curve("mean accuracy", [rows[k]["test/acc"] for k in chosen], bold=True, style=-1)
    x = [both[k] for k in chosen]
    caption = "Accuracy against traffic, up and down, %"
    return Chart("budget", caption, x, [line], unit="%", x_unit="B")


def _traffic_table(rows: list[dict[str, Any]], capacities: list[str]) -> Html | None:
    """Return what has been sent and computed in all, by capacity."""
    lines = []
    for name, end in [*((name, f"/{name}") for name in capacities), ("all", "")]:
        sums = [
            sum(row.get(f"{key}{end}") or 0 for row in rows)
            for key in ("comm/up_bytes", "comm/down_bytes", "compute/flops")
        ]
        up, down, flops = sums
        if any(sums):
            lines.append([name, amount(up, "B"), amount(down, "B"), amount(flops, "FLOP")])
    caption = "In all rounds so far, over all clients"
    heads = ("capacity", "up", "down", "training")
    return table(caption, heads, lines, foot=True) if lines else None

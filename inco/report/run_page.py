"""The page of one run: `report.html` in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inco.records.record import atomic_write
from inco.records.runs import Run
from inco.report import facts, maps
from inco.report.curves import Chart, Curve, after, by_layer, over_rounds, picked
from inco.report.markup import Html, tag
from inco.report.page import HINT, Section, document, section, sections, table
from inco.report.tables import Table
from inco.report.text import amount, plural

NAME = "report.html"


def write_run(folder: Path, live: bool = False) -> Path:
    """Write a run's report.html in one step, and return its path.

    `live`: the run goes on, and the page reloads itself. Raises DataError or StorageError where the
    folder's files are damaged, or the page cannot be written.
    """
    path = Path(folder) / NAME
    atomic_write(path, run_html(Run(Path(folder)), live))
    return path


def run_html(run: Run, live: bool = False) -> str:
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
    origin = f"Made from {plural(len(run.rows), 'row')} of metrics.jsonl. {HINT}"
    body = [facts.head(run, live), sections(parts), tag("footer", tag("p", origin))]
    return document(f"{run.name} \N{MIDDLE DOT} InCo", body, data, live)


def run_markdown(run: Run) -> str:
    """Return the table by capacity as Markdown."""
    rows = facts.capacity_rows(run)
    return Table("", facts.SIZE_HEADS, rows).markdown() if rows else ""


def figures(
    charts: Iterable[Chart | None], data: dict[str, Any], *more: Html | None
) -> Html | None:
    """Return the frames of charts, and `more` after them; what is drawn is added to `data`."""
    there = [chart for chart in charts if chart]
    data["charts"] |= {chart.name: chart.data() for chart in there}
    frames = [chart.figure() for chart in there]
    return tag("div", *frames, *more, class_="figures") if there else None


def _scores(run: Run, capacities: list[str], data: dict[str, Any]) -> Section | None:
    accuracy = {"test/acc": "mean"} | {f"test/acc/{name}": name for name in capacities}
    if len(capacities) == 1:
        accuracy = {"test/acc": capacities[0]}
    losses = {"train/loss": "training", "test/loss": "test"}
    caption = "Test accuracy by capacity, %"
    charts = [
        over_rounds("acc", caption, run.rows, accuracy, bold="test/acc", unit="%"),
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
    totals = f"{min(found['totals'])} to {max(found['totals'])} each"
    text = f"Map of examples: {shown} clients by {classes} classes. {totals}."
    caption = "Training examples by client (across) and class (down); bars: of each client in all"
    figure = _frame(caption, text, data_map="partition")
    return section("clients", "Who holds what", figure, lead=lead)


def _controls(name: str, count: int, label: str, options: Iterable[str]) -> Html:
    """Return a slider over measured rounds, a button that plays them, and how maps are drawn."""
    slider = {"id": f"{name}-round", "min": 0, "max": count - 1, "value": count - 1, "step": 1}
    button = {"id": f"{name}-play", "aria_pressed": "false", "disabled": count < 2}
    choice = tag("select", [tag("option", one) for one in options], id=f"{name}-scale")
    return tag(
        "div",
        tag("button", "Play", type="button", **button),
        tag("input", type="range", **slider, aria_label="measured round"),
        tag("output", for_=f"{name}-round", id=f"{name}-told"),
        tag("label", label, choice),
        class_="controls slider",
    )


def _note(shown: int, of: int, word: str) -> str:
    return f" {shown} of {plural(of, word)} are shown." if of > shown else ""


def _similarity(run: Run, data: dict[str, Any]) -> Section | None:
    found = maps.cka(run)
    taps = {f"cka/{tap}": tap for tap in after("cka/", run.rows)}
    means = over_rounds("cka", "Mean CKA of all pairs, by layer", run.rows, taps)
    lead = (
        "Linear CKA of every pair of models at a layer: 1 where they see images alike, 0 where not."
    )
    inside = None
    if found:
        data["maps"]["cka"] = found
        rounds = len(found["rounds"])
        lead += _note(len(found["rounds"][-1]["names"]), found["models"], "model")
        lead += _note(rounds, found["measured"], "measured round")
        controls = _controls("cka", rounds, "colours over ", ("0 to 1", "the data's range"))
        frames = tag("div", [_frame(tap) for tap in found["taps"]], class_="maps")
        inside = tag("div", controls, frames, tag("div", class_="scale"), data_map="cka")
    return section("cka", "How alike models are", inside, figures([means], data), lead=lead)


def _frame(caption: str, label: str = "", **attributes: object) -> Html:
    """Return an empty drawing with its caption."""
    drawing = tag("div", class_="drawing", role="img", aria_label=label or caption)
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
        controls = _controls("histograms", rounds, "drawn as ", ("density", "log |x|"))
        inside = tag("div", controls, frames, data_map="histograms")
    update = {"update/norm": "update"}
    noise = "Standard deviation of the noise that is added"
    charts = [
        over_rounds("update", "Norm of what the server adds", run.rows, update, log=True),
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
    charts = [over_rounds("time", "Seconds per round", rows, names | other, unit="s")]
    ways = ("comm/up_bytes", "comm/down_bytes")
    moved = [row for row in run.rows if all(row.get(way) is not None for way in ways)]
    if moved:
        charts += _traffic(moved, capacities)
    totals = _traffic_table(moved, capacities)
    return section("costs", "Time and traffic", figures(charts, data, totals))


def _rest(row: Mapping[str, Any]) -> float | None:
    whole = row.get("time/round_s")
    if whole is None:
        return None
    return max(0.0, whole - (row.get("time/train_s") or 0.0) - (row.get("time/eval_s") or 0.0))


def _traffic(rows: list[dict[str, Any]], capacities: list[str]) -> list[Chart | None]:
    """Return charts of bytes so far, and of accuracy against them."""
    parts = {"all": ["up_bytes", "down_bytes"], "up": ["up_bytes"], "down": ["down_bytes"]}
    if any(f"comm/up_bytes/{name}" in row for row in rows for name in capacities):
        parts |= {name: [f"up_bytes/{name}", f"down_bytes/{name}"] for name in capacities}
    sums = dict.fromkeys(parts, 0)
    totals = []
    for row in rows:
        for line, keys in parts.items():
            sums[line] += sum(row.get(f"comm/{key}") or 0 for key in keys)
        totals.append(row | {f"sum/{line}": total for line, total in sums.items()})
    caption = "Traffic so far, up and down"
    if all(row["sum/up"] == row["sum/down"] for row in totals):
        caption += ", half each way"
        del parts["up"], parts["down"]
    lines = {f"sum/{line}": line for line in parts}
    charts = [over_rounds("traffic", caption, totals, lines, bold="sum/all", unit="B")]
    scored = picked(totals, ["test/acc"], best="test/acc")
    if scored:
        curve = Curve("mean accuracy", [row["test/acc"] for row in scored], bold=True, style=-1)
        x = [row["sum/all"] for row in scored]
        caption = "Accuracy against traffic, up and down, %"
        charts.append(Chart("budget", caption, x, [curve], unit="%", x_unit="B"))
    return charts


def _traffic_table(rows: list[dict[str, Any]], capacities: list[str]) -> Html | None:
    """Return what has been sent and computed in all, by capacity."""
    lines = []
    units = {"comm/up_bytes": "B", "comm/down_bytes": "B", "compute/flops": "FLOP"}
    for name, end in [*((name, f"/{name}") for name in capacities), ("all", "")]:
        sums = {key: sum(row.get(f"{key}{end}") or 0 for row in rows) for key in units}
        if any(sums.values()):
            lines.append([name, *(amount(total, units[key]) for key, total in sums.items())])
    caption = "In all rounds so far, over all clients"
    heads = ("capacity", "up", "down", "training")
    return table(caption, heads, lines, foot=True) if lines else None

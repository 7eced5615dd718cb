"""Curves: which points of a long series are kept, and what the page's script is told to draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inco.records.names import natural
from inco.report.markup import Html, tag
from inco.report.text import sig4

MOST = 500  # points a curve
BUDGET = 8_000  # points a chart: many curves get fewer each, so that the file stays small
LEAST = 40

Row = Mapping[str, Any]


@dataclass
class Curve:
    """One line of a chart: a value, or none, at each x.

    `spread`: how far a band reaches to both sides; `view`: shown when chosen.
    """

    name: str
    y: Sequence[float | None]
    bold: bool = False
    style: int = 0
    spread: Sequence[float | None] | None = None
    view: str = ""


@dataclass
class Chart:
    """Curves over a common x.

    `unit`: %, s, B (bytes) or none; `reference`: a dashed level; `log`: offers a logarithmic scale.
    """

    name: str
    caption: str
    x: Sequence[float]
    curves: list[Curve]
    unit: str = ""
    x_unit: str = "round"
    reference: float | None = None
    log: bool = False
    told: str = ""
    views: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """Return what the script draws."""
        return {
            "x": [sig4(v) if self.x_unit != "round" else int(v) for v in self.x],
            "unit": self.unit,
            "xUnit": self.x_unit,
            "reference": self.reference,
            "series": [_series(curve) for curve in self.curves],
        }

    def figure(self) -> Html:
        """Return the frame that the script fills."""
        controls = []
        if self.views:
            options = [tag("option", view) for view in self.views]
            controls.append(tag("label", "show ", tag("select", options, id=f"{self.name}-view")))
        if self.log:
            box = tag("input", type="checkbox", id=f"{self.name}-log")
            controls.append(tag("label", box, " log scale"))
        above = tag("div", controls, class_="controls") if controls else None
        legend = f"{self.caption}: curves to show or hide"
        return tag(
            "figure",
            tag("div", tag("figcaption", self.caption), above, class_="head"),
            tag("div", class_="plot", role="img", aria_label=self.told or self._told()),
            tag("div", class_="legend", role="group", aria_label=legend),
            class_="chart",
            id=f"{self.name}-chart",
            data_chart=self.name,
        )

    def _told(self) -> str:
        """Say the chart in words: its first curves, from their first to their last value."""
        parts = []
        unit = self.unit if self.unit == "%" else ""
        for curve in [c for c in self.curves if not self.views or c.view == self.views[0]][:8]:
            known = [v for v in curve.y if v is not None]
            if known:
                parts.append(f"{curve.name} from {sig4(known[0])} to {sig4(known[-1])}{unit}")
        return f"Line chart. {self.caption}: {'; '.join(parts)}."


def _series(curve: Curve) -> dict[str, Any]:
    told: dict[str, Any] = {"name": curve.name, "y": [sig4(v) for v in curve.y]}
    told["style"] = curve.style
    if curve.bold:
        told["bold"] = True
    if curve.spread is not None:
        told["spread"] = [sig4(v) for v in curve.spread]
    if curve.view:
        told["view"] = curve.view
    return told


def kept(count: int, curves: int, always: Iterable[int] = ()) -> list[int]:
    """Return which of `count` points a chart of some curves keeps: evenly spaced ones, the first,
    the last, and those of `always`.
    """
    most = max(LEAST, min(MOST, BUDGET // max(1, curves)))
    if count <= most:
        return list(range(count))
    must = {0, count - 1, *always}
    even = np.linspace(0, count - 1, max(2, most - len(must))).round()
    return sorted(set(even.astype(int).tolist()) | must)


def picked(rows: Sequence[Row], keys: Iterable[str], curves: int = 0, best: str = "") -> list[Row]:
    """Return the rows to draw of those that have any of the keys.

    `best`: a key whose largest value stays.
    """
    keys = list(keys)
    having = [row for row in rows if any(row.get(key) is not None for key in keys)]
    tops = [k for k, row in enumerate(having) if best and row.get(best) is not None]
    always = [max(tops, key=lambda k: having[k][best])] if tops else []
    return [having[k] for k in kept(len(having), curves or len(keys), always)]


def over_rounds(
    name: str,
    caption: str,
    rows: Sequence[Row],
    keys: Mapping[str, str],
    *,
    best: str = "",
    bold: str = "",
    **more: Any,
) -> Chart | None:
    """Return a chart of metrics (key -> what the curve is called) over rounds; None where no row
    has any of them.
    """
    have = [key for key in keys if any(row.get(key) is not None for row in rows)]
    chosen = picked(rows, have, best=best)
    if not chosen:
        return None
    styles = iter(range(len(have)))
    curves = []
    for key in have:
        style = -1 if key == bold else next(styles)
        curves.append(Curve(keys[key], [row.get(key) for row in chosen], key == bold, style))
    return Chart(name, caption, [row["round"] for row in chosen], curves, **more)


def by_layer(
    name: str, caption: str, rows: Sequence[Row], prefixes: Sequence[str], **more: Any
) -> Chart | None:
    """Return a chart of a number that each layer has, of the first prefix (`inco/theta/`) that any
    row has.

    It shows the means of groups of layers (stages of a ResNet, kinds of a ViT) first, and the
    layers of one group when chosen.
    """
    for prefix in prefixes:
        layers = layers_of(rows, prefix)
        if layers:
            return _layers(name, caption, rows, prefix, layers, more)
    return None


def after(prefix: str, rows: Sequence[Row]) -> list[str]:
    """Return what stands after a prefix in the keys of rows, each once, in the order of the
    rows.
    """
    every: dict[str, Any] = {}
    for row in rows:
        every |= row  # faster than a look at each key of each row
    return [key.removeprefix(prefix) for key in every if key.startswith(prefix)]


def layers_of(rows: Sequence[Row], prefix: str) -> list[str]:
    """Return the layers that have a metric, in the order of the first row; by name where that row
    has not all of them.
    """
    found = after(prefix, rows)
    return found if found == after(prefix, rows[:1]) else sorted(found, key=natural)


def grouped(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return layers by group: by the first part of their names (`layer3`), or by the last where the
    first is always the same.
    """
    firsts, lasts = ([layer.split(".")[k] for layer in layers] for k in (0, -1))
    names = firsts if len(set(firsts)) > 1 else lasts
    groups: dict[str, list[str]] = {}
    for group, layer in zip(names, layers, strict=True):
        groups.setdefault(group, []).append(layer)
    return groups


def _layers(
    name: str,
    caption: str,
    rows: Sequence[Row],
    prefix: str,
    layers: list[str],
    more: dict[str, Any],
) -> Chart:
    groups = grouped(layers)
    few = len(groups) == 1 or len(layers) <= 6
    count = len(layers) + (0 if few else len(groups))
    chosen = picked(rows, [prefix + layer for layer in layers], count)
    x = [row["round"] for row in chosen]
    values = {layer: [row.get(prefix + layer) for row in chosen] for layer in layers}
    if few:
        curves = [Curve(layer, values[layer], style=k) for k, layer in enumerate(layers)]
        return Chart(name, caption, x, curves, **more)
    first = "means of groups"
    means = []
    parts = []
    for k, (group, inside) in enumerate(groups.items()):
        mean = _means([values[layer] for layer in inside])
        means.append(Curve(f"{group} (mean of {len(inside)})", mean, style=k, view=first))
        parts += [Curve(one, values[one], style=i, view=group) for i, one in enumerate(inside)]
    return Chart(name, caption, x, means + parts, views=[first, *groups], **more)


def _means(columns: Sequence[Sequence[float | None]]) -> list[float | None]:
    known = ([v for v in values if v is not None] for values in zip(*columns, strict=True))
    return [sum(values) / len(values) if values else None for values in known]

"""Curves: which points of a long series are kept, and what the page's script draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inco.records.groups import Group, Spread, spread
from inco.records.names import natural
from inco.report.markup import Html, tag
from inco.report.text import sig4

MOST = 500  # points per curve
BUDGET = 8_000  # points per chart: many curves get fewer each, so that the file stays small
LEAST = 40

Row = Mapping[str, Any]
Values = Sequence[float | None]


@dataclass
class Curve:
    """One line of a chart: a value, or none, at each x.

    `spread`: how far a band reaches to both sides; `view`: shown when chosen.
    """

    name: str
    y: Values
    bold: bool = False
    style: int = 0
    spread: Values | None = None
    view: str = ""

    def data(self) -> dict[str, Any]:
        more = {"bold": self.bold, "spread": list(map(sig4, self.spread or ())), "view": self.view}
        found = {"name": self.name, "y": list(map(sig4, self.y)), "style": self.style}
        return found | {key: value for key, value in more.items() if value}


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
    views: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        """Return what the script draws."""
        return {
            "x": [sig4(v) if self.x_unit != "round" else int(v) for v in self.x],
            "unit": self.unit,
            "xUnit": self.x_unit,
            "reference": self.reference,
            "series": [curve.data() for curve in self.curves],
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
            tag("div", class_="plot", role="img", aria_label=self._in_words()),
            tag("div", class_="legend", role="group", aria_label=legend),
            class_="chart",
            id=f"{self.name}-chart",
            data_chart=self.name,
        )

    def _in_words(self) -> str:
        """Name the first curves, with their first and last values."""
        parts = []
        unit = self.unit if self.unit == "%" else ""
        for curve in [c for c in self.curves if not self.views or c.view == self.views[0]][:8]:
            known = [v for v in curve.y if v is not None]
            if known:
                parts.append(f"{curve.name} from {sig4(known[0])} to {sig4(known[-1])}{unit}")
        return f"Line chart. {self.caption}: {'; '.join(parts)}."


def kept(count: int, curves: int, always: Iterable[int] = ()) -> list[int]:
    """Return which points are kept: the first, the last, those of `always`, and some between."""
    most = max(LEAST, min(MOST, BUDGET // max(1, curves)))
    if count <= most:
        return list(range(count))
    must = {0, count - 1, *always}
    even = np.linspace(0, count - 1, max(2, most - len(must))).round()
    return sorted(set(even.astype(int).tolist()) | must)


def picked(rows: Sequence[Row], keys: Iterable[str], curves: int = 0, best: str = "") -> list[Row]:
    """Return the rows to draw of those that have any of the keys, with the largest of `best`."""
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
    bold: str = "",
    **more: Any,
) -> Chart | None:
    """Return a chart of metrics (key: the curve's name) over rounds; None where no row has any.

    `bold`: the key of the main curve, whose largest value stays.
    """
    have = [key for key in keys if any(row.get(key) is not None for row in rows)]
    chosen = picked(rows, have, best=bold)
    if not chosen:
        return None
    plain = [key for key in have if key != bold]
    curves = []
    for key in have:
        style = -1 if key == bold else plain.index(key)
        curves.append(Curve(keys[key], [row.get(key) for row in chosen], key == bold, style))
    return Chart(name, caption, [row["round"] for row in chosen], curves, **more)


def over_seeds(
    name: str, caption: str, groups: Sequence[Group], key: str, **more: Any
) -> Chart | None:
    """Return a chart of means over seeds, in the rounds that all counted runs of a group have."""
    found = [(group, _by_round(group, key)) for group in groups]
    found = [(group, by_round) for group, by_round in found if by_round]
    every = sorted({round for _, by_round in found for round in by_round})
    if not every:
        return None
    x = [every[k] for k in kept(len(every), 3 * len(found))]
    curves = []
    for k, (group, by_round) in enumerate(found):
        points = [by_round.get(round, Spread(None, None, 0)) for round in x]
        sds = [point.sd for point in points]
        band = sds if any(sd is not None for sd in sds) else None
        curves.append(Curve(group.label, [p.mean for p in points], style=k, spread=band))
    return Chart(name, caption, x, curves, **more)


def _by_round(group: Group, key: str) -> dict[int, Spread]:
    series = [
        {row["round"]: row[key] for row in run.rows if row.get(key) is not None}
        for run in group.counted
    ]
    shared = set.intersection(*map(set, series)) if series else set()
    return {round: spread([values[round] for values in series]) for round in sorted(shared)}


def by_layer(
    name: str, caption: str, rows: Sequence[Row], prefixes: Sequence[str], **more: Any
) -> Chart | None:
    """Return a chart of a number that each layer has, of the first prefix that any row has.

    It shows the means of groups of layers (stages of a ResNet, kinds of a ViT) first, and the
    layers of one group when chosen.
    """
    prefix = next((one for one in prefixes if after(one, rows)), None)
    if prefix is None:
        return None
    layers = _layers(rows, prefix)
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
        mean = [_mean(column) for column in zip(*(values[one] for one in inside), strict=True)]
        means.append(Curve(f"{group} (mean of {len(inside)})", mean, style=k, view=first))
        parts += [Curve(one, values[one], style=i, view=group) for i, one in enumerate(inside)]
    return Chart(name, caption, x, means + parts, views=[first, *groups], **more)


def _mean(values: Values) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def after(prefix: str, rows: Sequence[Row]) -> list[str]:
    """Return what follows a prefix in the keys of rows, each once, in the order of the rows."""
    every: dict[str, Any] = {}
    for row in rows:
        every |= row  # faster than a look at each key of each row
    return [key.removeprefix(prefix) for key in every if key.startswith(prefix)]


def _layers(rows: Sequence[Row], prefix: str) -> list[str]:
    """Return layers in the order of the first row; by name where that row has not all of them."""
    found = after(prefix, rows)
    return found if found == after(prefix, rows[:1]) else sorted(found, key=natural)


def grouped(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return layers by the first part of their names (layer3), or the last where all share it."""
    part = 0 if len({layer.split(".")[0] for layer in layers}) > 1 else -1
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.split(".")[part], []).append(layer)
    return groups

"""Gradients across environments and rounds: the paper's Figures 2, 3 and 12 to 16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inco.errors import ConfigError
from inco.paper.figures import style
from inco.paper.figures.layers import (
    by_stage,
    chosen,
    layers_of,
    measured,
    need_gradients,
    paired,
    pooled,
    rounds_of,
    stage,
    two_groups,
    updates,
)
from inco.paper.figures.measures import coarse, cosine, density, linear_cka, reach, spearman
from inco.paper.figures.options import Options
from inco.records.groups import Curve, Group, over_seeds
from inco.records.names import natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES = 2
_COLUMNS = 4
Measure = Callable[[np.ndarray, np.ndarray], float]
_MEASURES: dict[str, Measure] = {"cka": linear_cka, "cosine": cosine}
_STATISTICS = ("mean", "variance", "covariance", "difference")
_NAMES = {"cka": "CKA", "cosine": "cosine"}


def across_environments(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 2: how alike two environments' updates are by round, and each one's gradients."""
    one, other, layers = two_groups("figure 2", groups)
    named = chosen(layers, options)
    stages = by_stage(named or layers)
    shown = list(stages)[: len(stages) if named else _STAGES]
    drawn = [layer for name in shown for layer in stages[name]]
    measure = _MEASURES[options.measure]
    found = similarity("figure 2", one, other, drawn, measure)
    by_chance = similarity("figure 2", one, other, drawn, _shuffled(measure))
    figure = style.page(style.DOUBLE, 4.6)
    top, below = style.stack(figure, 1, 1)
    panels = top.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for k, (axes, name) in enumerate(zip(panels, sorted(shown, key=natural), strict=True)):
        _draw_layers(axes, {layer: found[layer] for layer in stages[name]})
        _draw_chance(axes, [by_chance[layer] for layer in stages[name]])
        style.letter(axes, k, f"{_NAMES[options.measure]} of the updates of two runs, {name}")
    low, high = panels[0].get_ylim()
    rows = max(-(-len(axes.lines) // 3) for axes in panels)
    panels[0].set_ylim(low, high + 0.1 * rows * (high - low))  # room for the legends
    panels[0].set_ylabel(f"{_NAMES[options.measure]}: {one.label}\nand {other.label}")
    first = stages[sorted(shown, key=natural)[0]]
    ends = [(group, _last(group, first, options.of)) for group in groups]
    panels = below.subplots(1, 2, sharex=True, sharey=True)
    wide = _reach(ends, first, options.of)
    for k, (axes, (group, last)) in enumerate(zip(panels, ends, strict=True)):
        _draw_densities(axes, group, first, options.of, last, wide)
        style.letter(axes, len(shown) + k, f"{group.label}, round {last}")
    _tidy(panels[0], wide)
    return figure


def distributions(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 3: distributions of gradients, a line per measured round; a column per layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    need_gradients("figure 3", groups)
    layers = layers_of("figure 3", groups, options.of)
    columns = chosen(layers, options) or _ends(layers)
    rounds = sorted({round for group in groups for round in rounds_of(group)})
    figure = style.page(style.DOUBLE, 0.4 + 1.6 * len(groups))
    panels = figure.subplots(len(groups), len(columns), squeeze=False, sharex="col", sharey="col")
    colours = dict(zip(rounds, style.ramp(len(rounds)), strict=True))
    for column, layer in enumerate(columns):
        where = [(group, round) for group in groups for round in rounds_of(group)]
        wide = _reach(where, [layer], options.of)
        for row, group in enumerate(groups):
            axes = panels[row, column]
            for round in rounds_of(group):
                line = {"color": colours[round], "linewidth": 0.9}
                _draw_density(axes, group, layer, options.of, round, wide, **line)
        _tidy(panels[0, column], wide)
        panels[0, column].set_title(layer)
    for row, group in enumerate(groups):
        panels[row, 0].set_ylabel(style.wrapped(group.label, 1.5) + "\ndensity")
    span = Normalize(rounds[0], max(rounds[-1], rounds[0] + 1))
    by_round = ScalarMappable(span, ListedColormap(style.ramp(256)))
    bar = style.scale(figure, by_round, panels, "round", len(groups))
    bar.locator = MaxNLocator(nbins=8, integer=True)
    figure.supxlabel(_what(options.of), fontsize=8)
    return figure


def relations(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 16: cross-environment CKA of layers against other statistics of their updates."""
    one, other, layers = two_groups("figure 16", groups)
    table = relative(statistics(one, other, chosen(layers, options) or layers))
    figure = style.page(style.DOUBLE, 2.3)
    names = sorted({stage(layer) for layer in table}, key=natural)
    every = {key: np.array([row[key] for row in table.values()]) for key in ("cka", *_STATISTICS)}
    panels = figure.subplots(1, 4, sharex=True)
    for k, (axes, what) in enumerate(zip(panels, _STATISTICS, strict=True)):
        for place, name in enumerate(names):
            own = [stage(layer) == name for layer in table]
            style.draw_marks(axes, every["cka"][own], every[what][own], place, label=name)
        rho = spearman(every["cka"], every[what])
        if every[what].max() > 10:
            axes.set_yscale("log")
        style.letter(axes, k, what + style.rho_text("  ", rho))
    figure.axes[0].set_ylabel("relative to the stage's smallest")
    figure.supxlabel("cross-environment CKA", fontsize=8)
    style.legend_above(figure, figure.axes[:1], 6)
    return figure


def similarity(
    figure: str, one: Group, other: Group, layers: Sequence[str], of: Measure
) -> dict[str, Curve]:
    """Return the similarity of two groups' updates over rounds, mean over pairs of equal seed."""
    pairs = paired(figure, one, other)
    rounds = sorted(set(rounds_of(one)) & set(rounds_of(other)))
    if not rounds:
        raise _no_round(figure, one, other)
    table = {layer: np.full((len(pairs), len(rounds)), np.nan) for layer in layers}
    for round, row, layer, x, y in updates(pairs, rounds, layers):
        table[layer][row, rounds.index(round)] = of(x, y)
    return {layer: _curve(np.array(rounds), values) for layer, values in table.items()}


def _no_round(figure: str, one: Group, other: Group) -> ConfigError:
    return ConfigError(
        f"{figure}: no round was measured in both {one.label} and {other.label}; run both with one"
        " diagnostics.every"
    )


def _shuffled(of: Measure) -> Measure:
    """Return what a measure says of updates that have nothing in common: rows are shuffled."""
    return lambda x, y: of(x, y[np.random.default_rng(0).permutation(len(y))])


def _curve(rounds: np.ndarray, table: np.ndarray) -> Curve:
    """Return mean and deviation over pairs, in rounds in which all of them have a number."""
    whole = np.isfinite(table).all(0)
    kept = table[:, whole]
    return Curve(rounds[whole], *over_seeds(kept), len(kept))


def statistics(one: Group, other: Group, layers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return statistics of two groups' updates X and Y of each layer, means over rounds and pairs.

    cka; mean: half of |mean X| + |mean Y|; variance: half of var X + var Y; covariance: |cov(X,
    Y)|; difference: mean |X - Y|.
    """
    pairs = paired("figure 16", one, other)
    found: dict[str, list[dict[str, float]]] = {}
    rounds = sorted({round for run, _ in pairs for round in measured(run)})
    for _, _, layer, x, y in updates(pairs, rounds, layers):
        a = x.astype(np.float64)
        b = y.astype(np.float64)
        numbers = {
            "cka": linear_cka(a, b),
            "mean": (abs(a.mean()) + abs(b.mean())) / 2,
            "variance": (a.var() + b.var()) / 2,
            "covariance": abs(((a - a.mean()) * (b - b.mean())).mean()),
            "difference": np.abs(a - b).mean(),
        }
        found.setdefault(layer, []).append(numbers)
    if not found:
        raise _no_round("figure 16", one, other)
    return {
        layer: {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for layer, rows in sorted(found.items(), key=lambda item: natural(item[0]))
    }


def relative(table: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Divide every statistic but CKA by the smallest of the layer's stage; 1 where that is 0."""
    out = {}
    for layer, numbers in table.items():
        peers = [other for name, other in table.items() if stage(name) == stage(layer)]
        least = {key: min(peer[key] for peer in peers) for key in numbers}
        out[layer] = {key: v / least[key] if least[key] else 1.0 for key, v in numbers.items()}
        out[layer]["cka"] = numbers["cka"]
    return out


def _draw_layers(axes: Axes, curves: dict[str, Curve]) -> None:
    """Draw a line per layer, dark to light from the shallowest to the deepest."""
    for k, (layer, colour) in enumerate(zip(curves, style.ramp(len(curves)), strict=True)):
        curve = curves[layer]
        line = {"marker": style.MARKERS[k % 7], "linestyle": style.DASHES[k % 5]}
        axes.plot(curve.rounds, curve.mean, color=colour, label=_short(layer), **line)
        style.draw_band(axes, curve, colour, 0.12)
    axes.set_xlabel("round")
    style.whole_numbers(axes)


def _draw_chance(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw the mean over layers, of updates whose rows were shuffled, as a grey line."""
    each = [dict(zip(curve.rounds.tolist(), curve.mean, strict=True)) for curve in curves]
    rounds = sorted(set().union(*each))
    means = [np.mean([of[round] for of in each if round in of]) for round in rounds]
    axes.plot(rounds, means, color="0.5", linestyle=":", linewidth=1.0, label="rows shuffled")
    axes.legend(ncols=3, fontsize=6, loc="upper left")


def _draw_densities(
    axes: Axes, group: Group, layers: Sequence[str], of: str, round: int, wide: float
) -> None:
    for k, (layer, colour) in enumerate(zip(layers, style.ramp(len(layers)), strict=True)):
        line = {"color": colour, "linestyle": style.DASHES[k % 5], "label": _short(layer)}
        _draw_density(axes, group, layer, of, round, wide, **line)
    axes.set_xlabel(_what(of))
    axes.set_ylabel("density")
    axes.legend(fontsize=6)


def _draw_density(
    axes: Axes, group: Group, layer: str, of: str, round: int, wide: float, **look: Any
) -> None:
    """Draw the density of one layer's gradients in one round, all seeds together."""
    histogram = pooled(group, layer, of, round)
    if histogram:
        at = coarse(histogram[0], wide)
        axes.plot((at[1:] + at[:-1]) / 2, density(*histogram, at), **look)


def _last(group: Group, layers: Sequence[str], of: str) -> int:
    """Return the last round in which somebody has sent one of the layers."""
    rounds = rounds_of(group)
    sent = (r for r in reversed(rounds) if any(pooled(group, layer, of, r) for layer in layers))
    return next(sent, rounds[-1])


def _reach(where: Sequence[tuple[Group, int]], layers: Sequence[str], of: str) -> float:
    """Return how far the x axis goes: most of the widest histogram."""
    found = [pooled(group, layer, of, round) for group, round in where for layer in layers]
    return max((reach(*histogram) for histogram in found if histogram), default=1.0)


def _tidy(axes: Axes, wide: float) -> None:
    axes.set_xlim(-wide, wide)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(style="sci", axis="x", scilimits=(-2, 3))
    axes.ticklabel_format(style="sci", axis="y", scilimits=(-2, 5))


def _ends(layers: Sequence[str]) -> list[str]:
    """Return the first and the last layer of the two largest stages, by depth."""
    largest = sorted(list(by_stage(layers).items())[:2], key=lambda item: natural(item[0]))
    ends = dict.fromkeys(layer for _, own in largest for layer in (own[0], own[-1]))
    return list(ends)[:_COLUMNS]


def _short(layer: str) -> str:
    """Return a layer within its stage: 1.conv2 for layer3.1.conv2, 7 for blocks.7.norm2."""
    name = stage(layer)
    if name.startswith("layer") and layer != name:
        return layer.removeprefix(f"{name}.")
    return layer.split(".")[1] if "*" in name else layer


def _what(of: str) -> str:
    return "entries of the clients' deltas" if of == "clients" else "entries of the update"

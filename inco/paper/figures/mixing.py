"""Theta and beta of InCo by layer and round, and features: the paper's Figure 9 and Table 4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from inco.errors import ConfigError
from inco.paper.figures import style
from inco.paper.figures.groups import command
from inco.paper.figures.layers import chosen, own_name
from inco.paper.figures.options import Options
from inco.paper.figures.points import draw_points, read_points
from inco.records.groups import Curve, Group
from inco.records.names import natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SOURCES = {"inco": "mean $\\theta$ in use", "gradients": "mean $\\beta / \\alpha$"}


def theta_and_beta(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 9: theta by layer, kernels with beta > 0 by round, and features of `--tsne`."""
    source, layers = mixed_layers(groups)
    two = chosen(layers, options) or layers[-2:]
    clouds = [read_points(path) for path in options.tsne]
    columns = max(1, min(3, len(clouds)))
    rows = -(-len(clouds) // columns)
    figure = style.page(style.DOUBLE, 4.4 + 2.2 * rows)
    parts = style.stack(figure, 2.4, 2.0, *[2.2] * rows)
    theta = parts[0].subplots()
    for k, group in enumerate(groups):
        style.draw_curve(theta, theta_by_layer(group, source, layers), k, group.label)
    theta.axhline(1.0, color="0.4", linestyle="--", linewidth=0.8)
    where: Any = ("axes fraction", "data")
    theta.annotate(
        "$\\theta$ = 1", (0.995, 1.0), (0, 2), where, "offset points", ha="right", fontsize=6
    )
    theta.set_xticks(
        range(len(layers)), layers, rotation=40, ha="right", rotation_mode="anchor", fontsize=6
    )
    theta.set_ylabel(f"{_SOURCES[source]}\nover kernels")
    style.letter(theta, 0, "$\\theta$ by layer")
    style.legend_above(parts[0], [theta])
    panels = parts[1].subplots(1, len(two), sharey=True, squeeze=False)[0]
    for place, (axes, layer) in enumerate(zip(panels, two, strict=True)):
        _draw_beta(axes, groups, source, layer)
        style.letter(axes, 1 + place, layer)
    panels[0].set_ylabel("kernels with $\\beta$ > 0 (%)")
    boxes = [part.subplots(1, columns, squeeze=False)[0] for part in parts[2:]]
    for k, axes in enumerate(chain.from_iterable(boxes)):
        axes.set_visible(k < len(clouds))
        if k < len(clouds):
            draw_points(axes, clouds[k])
            style.letter(axes, 1 + len(two) + k, str(clouds[k]["title"]))
    return figure


def beta_table(groups: Sequence[Group], options: Options) -> str:
    """Return Table 4 as Markdown."""
    source, layers = mixed_layers(groups)
    rows = []
    for layer in chosen(layers, options) or layers:
        each = [_values(group, source, "beta_positive", layer) for group in groups]
        rows.append([layer, *(f"{values.mean():.1f}" for values in each)])
    caption = "Kernels with beta > 0, in percent, mean over rounds and seeds"
    return f"{caption}\n\n" + style.markdown(["layer", *(g.label for g in groups)], rows)


def mixed_layers(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """Return where all groups' theta and beta can be read, and the layers they share.

    "inco": those in use, of runs with InCo; "gradients": Theorem 3.1's beta / alpha, of any run
    with `diagnostics=gradients`.
    """
    for source in _SOURCES:
        each = [
            {own_name(g.runs[0], layer) for layer in g.keys(f"{source}/theta/")} - {""}
            for g in groups
        ]
        common = set.intersection(*each)
        if common:
            return source, sorted(common, key=natural)
    without = (g for g in groups if not any(g.keys(f"{source}/theta/") for source in _SOURCES))
    run = next(without, groups[0]).runs[0]
    raise ConfigError(
        f"figure 9: no theta in {run.folder}, or none of the layers and the kind that the others"
        f" have; such a run is made by\n  {command(run, 'diagnostics=gradients')}"
    )


def _key(group: Group, source: str, what: str, layer: str) -> str:
    prefix = f"{source}/{what}/"
    run = group.runs[0]
    return prefix + next(name for name in group.keys(prefix) if own_name(run, name) == layer)


def _values(group: Group, source: str, what: str, layer: str) -> np.ndarray:
    key = _key(group, source, what, layer)
    return np.concatenate([run.series(key)[1] for run in group.runs])


def theta_by_layer(group: Group, source: str, layers: Sequence[str]) -> Curve:
    """Return each layer's theta: mean and standard deviation over measured rounds and seeds."""
    values = [_values(group, source, "theta", layer) for layer in layers]
    mean = np.array([v.mean() for v in values])
    sd = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
    return Curve(np.arange(len(layers)), mean, sd if sd.any() else None, len(group.runs))


def _draw_beta(axes: Axes, groups: Sequence[Group], source: str, layer: str) -> None:
    for k, group in enumerate(groups):
        key = _key(group, source, "beta_positive", layer)
        style.draw_curve(axes, group.curve(key), k, group.label)
    axes.axhline(50.0, color="0.4", linestyle="--", linewidth=0.8)
    axes.set_xlabel("round")
    style.whole_numbers(axes)

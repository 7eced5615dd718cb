"""Pictures of what diagnostics keep: how alike models are, one heat map a layer, and how updates
are distributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERS = 12  # models up to which each cell shows its number
_MOST_LAYERS = 12
_CLIENTS = "#0072B2"
_UPDATE = "#D55E00"


def draw_cka(arrays: Mapping[str, np.ndarray], title: str, path_png: Path) -> None:
    """Write a PNG of the arrays that `diagnostics=cka` keeps, models in the order of their
    capacities; white cells have no number.
    """
    taps = [key for key in arrays if key.startswith("cka/")]
    order = np.argsort(arrays["level"], kind="stable")
    names = [_name(int(arrays["client"][k]), str(arrays["name"][k])) for k in order]
    side = float(np.clip(0.45 * len(names) + 0.6, 2.4, 6.0))
    columns = ceil(sqrt(len(taps)))
    rows = ceil(len(taps) / columns)
    size = (columns * side + 2.0, rows * (side + 0.3) + 1.2)
    figure, maps = _panels(len(taps), columns, size, sharex=True, sharey=True)
    for axes, tap in zip(maps, taps, strict=False):
        matrix = arrays[tap][np.ix_(order, order)]
        image = axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap="cividis")
        axes.set_title(tap.removeprefix("cka/"), fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        if len(names) <= _MOST_NUMBERS:
            _write_numbers(axes, matrix)
    figure.colorbar(image, ax=maps, label="linear CKA", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path_png, dpi=110, format="png")


def _write_numbers(axes: Axes, matrix: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "black" if value > 0.55 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)


def draw_gradients(arrays: Mapping[str, np.ndarray], title: str, path_png: Path) -> None:
    """Write a PNG of the histograms that `diagnostics=gradients` keeps: a panel a layer, clients'
    deltas and the aggregated update.

    Beyond 12 layers those at equal distances are drawn, the first and the last among them.
    """
    layers = [key.removeprefix("update/") for key in arrays if key.startswith("update/")]
    chosen = np.linspace(0, len(layers) - 1, min(len(layers), _MOST_LAYERS)).round().astype(int)
    columns = min(4, len(chosen))
    size = (2.6 * columns + 0.4, 1.9 * ceil(len(chosen) / columns) + 0.8)
    figure, panels = _panels(len(chosen), columns, size)
    for axes, k in zip(panels, chosen, strict=False):
        _draw_layer(axes, arrays, layers[k])
    key = "density of clients' deltas (solid) and of the aggregated update (dashed)"
    figure.suptitle(f"{title}: {key}", fontsize=9)
    figure.savefig(path_png, dpi=110, format="png")


def _panels(
    count: int, columns: int, size: tuple[float, float], **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure (inches) and its panels, of which those beyond `count` are hidden."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(ceil(count / columns), columns, squeeze=False, **shared)
    panels = list(grid.flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def _draw_layer(axes: Axes, arrays: Mapping[str, np.ndarray], layer: str) -> None:
    lines = (
        (f"clients/{layer.rpartition('/')[2]}", _CLIENTS, "-"),
        (f"update/{layer}", _UPDATE, "--"),
    )
    edges = arrays["edges"]
    reach = max(_reach(edges, arrays[key]) for key, _, _ in lines if key in arrays)
    for key, colour, style in lines:
        if key in arrays:
            middles, density = _density(edges, arrays[key], reach)
            axes.plot(middles, density, color=colour, linestyle=style, linewidth=1.2)
    axes.set_title(layer, fontsize=8)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
    axes.tick_params(labelsize=7)
    axes.xaxis.get_offset_text().set_fontsize(7)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _density(edges: np.ndarray, counts: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of bins and the density there.

    Bins too narrow to be seen are joined: each would hold a few values by chance.
    """
    middle = len(edges) // 2
    side = [middle + int(np.searchsorted(edges[middle:], reach / 50))]
    for k in range(side[0] + 1, len(edges)):
        if edges[k] - edges[side[-1]] >= reach / 25:
            side.append(k)
    kept = np.array([len(edges) - 1 - k for k in reversed(side)] + side)
    bounds = edges[kept]
    joined = np.add.reduceat(counts, kept[:-1])
    return (bounds[:-1] + bounds[1:]) / 2, joined / (counts.sum() * np.diff(bounds))


def _reach(edges: np.ndarray, counts: np.ndarray) -> float:
    """Return how far from zero 99 of 100 values lie."""
    middle = len(counts) // 2
    sides = counts[:middle][::-1] + counts[middle + 1 :]
    inside = counts[middle] + np.cumsum(sides)
    last = min(np.searchsorted(inside, 0.99 * counts.sum()), len(sides) - 1)
    return float(edges[middle + 2 :][last])


def _name(client: int, capacity: str) -> str:
    return capacity if client < 0 else f"{capacity} · client {client}"

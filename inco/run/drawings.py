"""Pictures of what diagnostics keep: how alike models are, one heat map a layer, and how updates
are distributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

_MOST_NUMBERS = 12  # models up to which each cell says its number


def draw_cka(arrays: Mapping[str, np.ndarray], title: str, path_png: str | Path) -> None:
    """Write a PNG of the arrays that `diagnostics=cka` keeps, models in the order of their
    capacities; white cells have no number.

    `title`: above all maps.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    taps = [key for key in arrays if key.startswith("cka/")]
    order = np.argsort(arrays["level"], kind="stable")
    names = [_name(int(arrays["client"][k]), str(arrays["name"][k])) for k in order]
    columns = ceil(sqrt(len(taps)))
    side = float(np.clip(0.45 * len(names) + 0.6, 2.4, 6.0))
    rows = ceil(len(taps) / columns)
    figure = Figure(figsize=(columns * side + 2.0, rows * (side + 0.3) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    maps = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, tap in zip(maps, taps, strict=False):
        matrix = arrays[tap][np.ix_(order, order)]
        image = axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap=colormaps["cividis"])
        axes.set_title(tap.removeprefix("cka/"), fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        if len(names) <= _MOST_NUMBERS:
            for (i, j), value in np.ndenumerate(matrix):
                if np.isfinite(value):
                    axes.text(
                        j,
                        i,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=6,
                        color="black" if value > 0.55 else "white",
                    )
    for axes in maps[len(taps) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=maps.tolist(), label="linear CKA", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(Path(path_png), dpi=110, format="png")


_MOST_LAYERS = 12
_CLIENTS = "#0072B2"
_UPDATE = "#D55E00"


def draw_gradients(arrays: Mapping[str, np.ndarray], title: str, path_png: str | Path) -> None:
    """Write a PNG of the histograms that `diagnostics=gradients` keeps: a panel a layer, clients'
    deltas and the aggregated update.

    Beyond 12 layers those at equal distances are drawn, the first and the last among them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = [key.removeprefix("update/") for key in arrays if key.startswith("update/")]
    chosen = (
        np.linspace(0, len(layers) - 1, min(len(layers), _MOST_LAYERS)).round().astype(int).tolist()
    )
    columns = min(4, len(chosen))
    rows = ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.4, 1.9 * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, layer in zip(panels, [layers[k] for k in chosen], strict=False):
        _draw_layer(axes, arrays, layer)
    for axes in panels[len(chosen) :]:
        axes.set_visible(False)
    figure.suptitle(
        f"{title}: density of clients' deltas (solid) and of the aggregated update (dashed)",
        fontsize=9,
    )
    figure.savefig(Path(path_png), dpi=110, format="png")


def _draw_layer(axes: Any, arrays: Mapping[str, np.ndarray], layer: str) -> None:
    clients = f"clients/{layer.rpartition('/')[2]}"
    update = f"update/{layer}"
    reach = max(_reach(arrays["edges"], arrays[key]) for key in (clients, update) if key in arrays)
    for key, colour, style in ((clients, _CLIENTS, "-"), (update, _UPDATE, "--")):
        if key in arrays:
            axes.plot(
                *_density(arrays["edges"], arrays[key], reach),
                color=colour,
                linestyle=style,
                linewidth=1.2,
            )
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
    wide = reach / 25
    side = [len(edges) // 2 + int(np.searchsorted(edges[len(edges) // 2 :], reach / 50))]
    for at in range(side[0] + 1, len(edges)):
        if edges[at] - edges[side[-1]] >= wide:
            side.append(at)
    kept = np.array([len(edges) - 1 - at for at in reversed(side)] + side)
    joined = np.add.reduceat(counts, kept[:-1])
    return (edges[kept][:-1] + edges[kept][1:]) / 2, joined / (counts.sum() * np.diff(edges[kept]))


def _reach(edges: np.ndarray, counts: np.ndarray) -> float:
    """Return how far from zero 99 of 100 values lie."""
    middle = len(counts) // 2
    sides = counts[:middle][::-1] + counts[middle + 1 :]
    inside = counts[middle] + np.cumsum(sides)
    return float(
        edges[middle + 2 :][min(np.searchsorted(inside, 0.99 * counts.sum()), len(sides) - 1)]
    )


def _name(client: int, capacity: str) -> str:
    return capacity if client < 0 else f"{capacity} · client {client}"

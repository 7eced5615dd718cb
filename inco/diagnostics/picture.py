"""A picture of how alike models are: one heat map a layer."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path

import numpy as np

_MOST_NUMBERS = 12  # models up to which each cell says its number


def draw_cka(arrays: Mapping[str, np.ndarray], title: str, path_png: str | Path) -> None:
    """Write a PNG of the arrays that `diagnostics=cka` keeps, models in the order of their capacities; white cells have no number.

    `title`: above all maps.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    taps = [key for key in arrays if key.startswith("cka/")]
    order = np.argsort(arrays["level"], kind="stable")
    names = [_name(int(arrays["client"][k]), str(arrays["name"][k])) for k in order]
    columns, side = ceil(sqrt(len(taps))), float(np.clip(0.45 * len(names) + 0.6, 2.4, 6.0))
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
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="black" if value > 0.55 else "white")
    for axes in maps[len(taps) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=maps.tolist(), label="linear CKA", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(Path(path_png), dpi=110, format="png")


def _name(client: int, capacity: str) -> str:
    return capacity if client < 0 else f"{capacity} · client {client}"

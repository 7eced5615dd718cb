"""Drawings of what `python -m inco.paper.features` computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inco.errors import DataError
from inco.paper.figures.style import COLOURS, MARKERS
from inco.records.arrays import read_npz

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NEEDED = ("points", "name", "title", "separation")


def read_points(path: Path) -> dict[str, Any]:
    """Read a features.npz. DataError where it is none."""
    made = "make it with: python -m inco.paper.features tsne RUN"
    try:
        arrays = read_npz(path)
    except (OSError, ValueError) as error:
        raise DataError(f"--tsne {path}: cannot read it ({error}); {made}") from error
    lacking = [name for name in _NEEDED if name not in arrays]
    if lacking:
        raise DataError(f"--tsne {path}: no {lacking[0]} in it; {made}")
    return arrays


def draw_points(axes: Axes, arrays: dict[str, Any]) -> None:
    """Draw embedded features, a colour and marker per capacity; axes of t-SNE have no unit."""
    for k, name in enumerate(dict.fromkeys(arrays["name"].tolist())):
        x, y = arrays["points"][arrays["name"] == name].T
        look: dict[str, Any] = {"color": COLOURS[k % 7], "marker": MARKERS[k % 7]}
        axes.scatter(x, y, s=7, alpha=0.7, linewidths=0, label=name, **look)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("0.7")
    axes.legend(fontsize=6, handletextpad=0.1, borderpad=0.2, labelspacing=0.2)
    if np.isfinite(arrays["separation"]):  # of one capacity there is none
        axes.set_xlabel(f"within / between capacities: {float(arrays['separation']):.2f}")


def draw_surface(figure: Figure, axes: Axes, at: np.ndarray, loss: np.ndarray) -> None:
    """Draw the loss [first direction, second direction] as contours in its logarithm."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    seen = np.ma.masked_invalid(loss).T  # contours take [y, x]
    low = max(float(seen.min()), 1e-6)
    levels = np.geomspace(low, max(float(seen.max()), 1.01 * low), 19)
    inside = np.ma.clip(seen, levels[0], levels[-1])
    filled = axes.contourf(at, at, inside, levels=levels, norm=LogNorm(), cmap="cividis")
    axes.contour(at, at, seen, levels=levels[3:-1:3], colors="white", linewidths=0.4)
    axes.plot(0, 0, "+", color="white", markersize=6)
    # for axes of a fixed shape: the other would cut their labels
    figure.set_layout_engine("compressed")
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    ticks = levels[::6]
    bar = figure.colorbar(filled, ax=axes, label="loss", fraction=0.046, pad=0.04, ticks=ticks)
    bar.ax.set_yticklabels([f"{v:.3g}" if v < 1000 else f"{v:,.0f}" for v in ticks])
    bar.ax.minorticks_off()

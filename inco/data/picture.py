"""A picture of a partition: which client holds how many examples of which class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAX_CLIENTS = 200
# one colour and area: nothing to confuse, in any kind of colour vision or in print
BLUE = "#0072B2"
GREY = "#666666"


def draw_partition(counts: np.ndarray, classes: Sequence[str], path_png: str | Path) -> None:
    """Write a PNG: one bubble for each client and class, its area the number of examples, and each
    client's total as a bar. `counts` int [N, C]; beyond 200 clients the first 200 are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    total = len(counts)
    shown = np.asarray(counts)[:MAX_CLIENTS]
    num_clients, num_classes = shown.shape
    width = float(np.clip(1.8 + 0.32 * num_clients, 6, 15))
    height = float(np.clip(2.4 + 0.3 * num_classes, 3.6, 12))
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [1, max(2.5, 0.32 * num_classes)]
    bars, bubbles = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    bars.bar(np.arange(num_clients), shown.sum(1), width=0.8, color=GREY)
    bars.set_ylabel("examples")
    first = f"the first {num_clients} of {total:,} clients"
    which = first if total > num_clients else f"{total} clients"
    bars.set_title(f"Examples of each client ({which})", fontsize=11)
    client, label = np.nonzero(shown)
    cell = 60 * width / num_clients  # points between two clients; rows stand about 20 apart
    # many clients: large bubbles may touch
    full = min(19.0, 0.95 * cell if num_clients <= 60 else 3.5 * cell) ** 2
    held = shown[client, label]
    most = int(shown.max())
    areas = np.maximum(full * held / max(1, most), 0.6)
    bubbles.scatter(client, label, s=areas, color=BLUE, alpha=0.75, linewidths=0)
    bubbles.set_xlabel("client")
    # at most 40 names
    bubbles.set_yticks(range(0, num_classes, -(-num_classes // 40)))
    bubbles.set_yticklabels([str(classes[int(k)]) for k in bubbles.get_yticks()])
    bubbles.set_xlim(-0.8, num_clients - 0.2)
    bubbles.set_ylim(num_classes - 0.4, -0.6)
    bubbles.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    bubbles.grid(color="0.92", linewidth=0.6)
    bubbles.set_axisbelow(True)
    title = f"area: examples of the class; the largest bubble is {most:,}"
    bubbles.set_title(title, fontsize=9, color="0.3")
    for axes in (bars, bubbles):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(path_png), dpi=110, format="png")

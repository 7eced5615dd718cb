"""How figures look: the size of a column, small type, colours that all can tell apart, and files
that depend on the data alone.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inco.errors import ConfigError
from inco.records.groups import Curve
from inco.records.record import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure, SubFigure

# inches: one and two columns of a paper
SINGLE = 3.35
DOUBLE = 6.9
# Okabe and Ito's colours for all kinds of colour vision, without the yellow, which paper swallows.
# Shape and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (4, 1.2, 1, 1.2)),
    (0, (6, 1, 1, 1, 1, 1)),
)
# one fewer than colours: a second turn looks different
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "||")
RAMP = "viridis"  # for what is ordered: rounds, depth
_STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.75,
    "legend.handlelength": 2.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # whole TrueType outlines: text in the PDF stays text
    "figure.constrained_layout.use": False,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw and save inside: the same look whatever the user's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def page(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def stack(figure: Figure, *heights: float) -> list[SubFigure]:
    """Cut a figure into parts, one below the other."""
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=list(heights))
    return list(parts[:, 0])


def targets(out: Path) -> list[Path]:
    """Return the files that `--out` means: a PNG and a PDF, or the one that its suffix says."""
    if out.suffix in (".png", ".pdf"):
        return [out]
    if out.suffix:
        raise ConfigError(
            f"--out {out}: figures are written as .png and .pdf; use one of these, or no suffix for"
            " both"
        )
    return [out.with_suffix(".png"), out.with_suffix(".pdf")]


def save(figure: Figure, out: Path) -> list[Path]:
    """Write a figure, and return its files.

    Equal figures give equal bytes: no dates, no versions.
    """
    paths = targets(out)
    for path in paths:
        raw = io.BytesIO()
        told = ("Software",) if path.suffix == ".png" else ("CreationDate", "Creator", "Producer")
        silent = dict.fromkeys(told)
        figure.savefig(raw, format=path.suffix[1:], dpi=300, metadata=silent)
        atomic_write(path, raw.getvalue())
    return paths


def number_text(value: float) -> str:
    """Write a number with two digits after the point and a true minus."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def look(k: int) -> dict[str, Any]:
    """Return colour, marker and dashes of the k-th line."""
    return {
        "color": COLOURS[k % len(COLOURS)],
        "marker": MARKERS[k % len(MARKERS)],
        "linestyle": DASHES[k % len(DASHES)],
    }


def bar_look(k: int) -> dict[str, Any]:
    """Return colour and hatch of the k-th bar."""
    hatch = HATCHES[k % len(HATCHES)]
    return {"color": look(k)["color"], "hatch": hatch, "edgecolor": "white", "linewidth": 0.3}


def ramp(count: int) -> list[Any]:
    """Return `count` colours in order, dark to light, none of them too light for paper."""
    from matplotlib import colormaps

    return [colormaps[RAMP](x) for x in np.linspace(0.0, 0.85, max(count, 1))]


def draw_curve(axes: Axes, curve: Curve, k: int, label: str) -> None:
    """Draw the mean over seeds, and one standard deviation on both sides as a band; markers on
    twenty points at most.
    """
    every = 1 if len(curve.rounds) <= 20 else -(-len(curve.rounds) // 10)
    axes.plot(curve.rounds, curve.mean, label=label, markevery=every, **look(k))
    draw_band(axes, curve, look(k)["color"], 0.15)


def draw_band(axes: Axes, curve: Curve, colour: Any, alpha: float) -> None:
    """Draw one standard deviation on both sides as a band, where there is one."""
    if curve.sd is not None:
        low = curve.mean - curve.sd
        high = curve.mean + curve.sd
        axes.fill_between(curve.rounds, low, high, color=colour, alpha=alpha, linewidth=0)


def letter(axes: Axes, number: int, title: str = "", of: int = 2) -> None:
    """Title a panel: (a), (b), ...; the only one `of` 1 has no letter."""
    axes.set_title((f"({chr(ord('a') + number)}) " if of > 1 else "") + title, loc="left")


def wrapped(text: str, inches: float) -> str:
    """Break a label so that it fits a length at 8 pt."""
    return textwrap.fill(text, max(8, int(inches / 0.066)), break_long_words=False)


def scale(
    figure: Figure | SubFigure, colours: ScalarMappable, panels: np.ndarray, label: str, rows: int
) -> Colorbar:
    """Put one colour bar beside panels of so many rows, as wide for many as for one."""
    every = panels.ravel().tolist()
    return figure.colorbar(colours, ax=every, label=label, aspect=16 * rows, pad=0.01)


def whole_numbers(axes: Axes) -> None:
    """Put ticks of the x axis on whole numbers: rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def legend_above(
    figure: Figure | SubFigure, panels: Sequence[Axes], columns: int = 4, last: str = ""
) -> None:
    """Put one legend above all panels: each label once, `last` at the end."""
    unique = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    unique = dict(sorted(unique.items(), key=lambda item: item[0] == last))
    # entries that fit side by side
    room = int(figure.bbox.width / figure.dpi / (0.45 + 0.055 * max(map(len, unique), default=0)))
    columns = max(1, min(columns, room, len(unique)))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=columns)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plus_minus(values: np.ndarray, digits: int = 2) -> str:
    """Return mean and sample standard deviation as text; one value has none, and no value is a
    dash.
    """
    if not len(values):
        return "-"
    sd = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{sd}"

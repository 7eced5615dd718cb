"""How figures look: sizes, colours that all can tell apart, and files without dates."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inco.errors import ConfigError
from inco.records.groups import Curve, over_seeds
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


def paper_style() -> AbstractContextManager[None]:
    """Draw and save inside: the same look whatever the user's own matplotlibrc says."""
    import matplotlib.style

    style = Path(__file__).with_name("paper.mplstyle")
    return matplotlib.style.context(style, after_reset=True)


def page(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def stack(figure: Figure, *heights: float) -> list[SubFigure]:
    """Divide a figure into parts, one below the other."""
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
    """Write a figure, and return its files; equal figures give equal bytes."""
    paths = targets(out)
    for path in paths:
        raw = io.BytesIO()
        keys = ("Software",) if path.suffix == ".png" else ("CreationDate", "Creator", "Producer")
        figure.savefig(raw, format=path.suffix[1:], dpi=300, metadata=dict.fromkeys(keys))
        atomic_write(path, raw.getvalue())
    return paths


def rho_text(space: str, rho: float) -> str:
    """Write a rank correlation with a true minus; nothing for NaN."""
    number = f"{rho:.2f}".replace("-", "\N{MINUS SIGN}")
    return "" if np.isnan(rho) else rf"{space}$\rho$ = {number}"


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


def draw_bar(axes: Axes, x: float, wide: float, values: np.ndarray, k: int) -> None:
    """Draw the mean over seeds as the k-th bar, with a whisker of one standard deviation."""
    mean, sd = over_seeds(values)
    whisker = {"linewidth": 0.8, "capsize": 1.5, "ecolor": "0.2"}
    axes.bar(x, mean, wide, yerr=sd, error_kw=whisker, **bar_look(k))


def ramp(count: int) -> list[Any]:
    """Return colours of what is ordered, dark to light, none of them too light for paper."""
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0.0, 0.85, max(count, 1))]


def draw_curve(axes: Axes, curve: Curve, k: int, label: str) -> None:
    """Draw the mean over seeds and its band, with markers on twenty points at most."""
    every = 1 if len(curve.rounds) <= 20 else -(-len(curve.rounds) // 10)
    axes.plot(curve.rounds, curve.mean, label=label, markevery=every, **look(k))
    draw_band(axes, curve, look(k)["color"], 0.15)


def draw_marks(axes: Axes, x: np.ndarray, y: np.ndarray, k: int, **more: Any) -> None:
    """Draw points in the colour and with the marker of the k-th line."""
    axes.plot(x, y, look(k)["marker"], color=look(k)["color"], **more)


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


def plus_minus(values: np.ndarray) -> str:
    """Return mean and sample standard deviation as text; a dash for no values."""
    if not len(values):
        return "-"
    mean, sd = over_seeds(values)
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"

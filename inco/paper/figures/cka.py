"""How alike clients' models are, layer by layer: the paper's Figures 1, 10, 17, 18 and 19."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inco.errors import ConfigError
from inco.paper.figures import style
from inco.paper.figures.groups import labelled, labels_of, require
from inco.paper.figures.layers import chosen
from inco.paper.figures.measures import spearman
from inco.paper.figures.options import Options
from inco.records.groups import Curve, Group, over_seeds
from inco.records.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# by the first letters of a model's option
_FAMILIES = {"resnet": "ResNet", "vit": "ViT", "cnn": "CNN"}
# heat maps side by side
_MOST_MAPS = 6
_MOST_METHODS = 4


def similarity_and_accuracy(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 1: mean CKA by stage, and of the deepest stage against accuracy by round."""
    runs = [run for group in groups for run in group.runs]
    require("figure 1", runs, _has_cka, "CKA", "diagnostics=cka")
    families = _families(groups)
    names = list(dict.fromkeys(group.label for members in families.values() for group in members))
    figure = style.page(style.DOUBLE, 0.3 + 0.14 * -(-len(names) // 2) + 2.2 * len(families))
    panels = figure.subplots(len(families), 2, squeeze=False)
    for row, (family, members) in enumerate(families.items()):
        numbers = [names.index(group.label) for group in members]
        taps = common_taps("figure 1", members, options)
        draw_by_tap(panels[row, 0], members, taps, options.last, numbers)
        style.letter(panels[row, 0], 2 * row, f"{family}: similarity of clients")
        _draw_relation(panels[row, 1], members, taps[-1], numbers)
        style.letter(panels[row, 1], 2 * row + 1, f"{family}: similarity and accuracy")
    style.legend_above(figure, panels[:, 0].tolist(), 3)
    return figure


def methods(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 10: mean CKA by method, heat maps of the two deepest stages, and accuracies."""
    _need_maps("figure 10", groups)
    taps = common_taps("figure 10", groups, options)
    deepest = taps[-2:]
    columns = min(len(groups), _MOST_METHODS)
    blocks = -(-len(groups) // columns)
    above = 2.3 + 0.14 * -(-len(groups) // 2)
    under = min(2.0, 5.9 / columns) * len(deepest) * blocks
    figure = style.page(style.DOUBLE, above + under)
    top, below = style.stack(figure, above, under)
    curves, bars = top.subplots(1, 2)
    draw_by_tap(curves, groups, taps, options.last, range(len(groups)))
    style.letter(curves, 0, "similarity of clients")
    _draw_capacities(bars, groups, options.score)
    style.letter(bars, 1, f"accuracy by capacity ({options.score})")
    style.legend_above(top, [curves], 3)
    maps = below.subplots(len(deepest) * blocks, columns, squeeze=False)
    for k, group in enumerate(groups):
        arrays = last_arrays(group)
        block, column = divmod(k, columns)
        for row, tap in enumerate(deepest):
            axes = maps[block * len(deepest) + row, column]
            image = draw_map(axes, arrays, tap, names=True)
            axes.set_title(tap, loc="left")
        title = style.wrapped(group.label, 5.4 / columns) + f"\n{deepest[0]}"
        style.letter(maps[block * len(deepest), column], 2 + k, title)
    for axes in maps.ravel():
        axes.set_visible(bool(axes.images))
    style.scale(below, image, maps, "linear CKA", len(deepest) * blocks)
    return figure


def environments(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 17: heat maps of all pairs of clients, a row per environment, a column per stage."""
    _need_maps("figure 17", groups)
    taps = common_taps("figure 17", groups, options)
    if len(taps) > _MOST_MAPS:
        taps = [taps[k] for k in np.linspace(0, len(taps) - 1, _MOST_MAPS).round().astype(int)]
    side = (style.DOUBLE - 1.5) / max(len(taps), 3)
    figure = style.page(style.DOUBLE, 0.3 + (side + 0.1) * len(groups))
    maps = figure.subplots(len(groups), len(taps), squeeze=False)
    for row, group in enumerate(groups):
        arrays = last_arrays(group)
        for column, tap in enumerate(taps):
            image = draw_map(maps[row, column], arrays, tap, names=column == 0)
            if row == 0:
                maps[row, column].set_title(tap)
        maps[row, 0].set_ylabel(style.wrapped(group.label, side))
    style.scale(figure, image, maps, "linear CKA", len(groups))
    return figure


def common_taps(figure: str, groups: Sequence[Group], options: Options) -> list[str]:
    """Return the taps that all groups have, shallowest first; those asked for, where some are."""
    each = [group.keys("cka/") for group in groups]
    common = [tap for tap in each[0] if all(tap in taps for taps in each)]
    if not common:
        raise ConfigError(
            f"{figure}: the groups have no tap in common"
            f" ({'; '.join(','.join(taps) for taps in each)}); give one model per figure"
        )
    return chosen(common, options, "tap") or common


def draw_by_tap(
    axes: Axes, groups: Sequence[Group], taps: Sequence[str], last: int, looks: Sequence[int]
) -> None:
    """Draw mean CKA at each tap over the `last` measured rounds, a line per group."""
    places = np.arange(len(taps))
    for group, k in zip(groups, looks, strict=True):
        mean, sd = np.array([_mean_cka(group, tap, last) for tap in taps]).T
        curve = Curve(places, mean, None if np.isnan(sd).all() else sd, len(group.runs))
        style.draw_curve(axes, curve, k, group.label)
    found = [re.fullmatch(r"(layer|blocks\.)(\d+)", tap) for tap in taps]
    stages = [stage for stage in found if stage]
    whole = len(stages) == len(taps)
    axes.set_xticks(places, [stage[2] for stage in stages] if whole else taps)
    axes.set_xlabel({"layer": "stage", "blocks.": "block"}[stages[0][1]] if whole else "layer")
    axes.set_ylabel("mean CKA of all pairs")


def _mean_cka(group: Group, tap: str, last: int) -> tuple[float, float]:
    """Return mean and standard deviation over seeds; NaN of a single seed."""
    series = [run.series(f"cka/{tap}")[1] for run in group.runs]
    mean, sd = over_seeds(np.array([values[-last:].mean() for values in series if len(values)]))
    return float(mean), float("nan") if sd is None else float(sd)


def _draw_relation(axes: Axes, groups: Sequence[Group], tap: str, looks: Sequence[int]) -> None:
    for group, k in zip(groups, looks, strict=True):
        cka = group.curve(f"cka/{tap}")
        accuracy = group.curve("test/acc")
        x = cka.mean[np.isin(cka.rounds, accuracy.rounds)]
        y = accuracy.mean[np.isin(accuracy.rounds, cka.rounds)]
        rho = spearman(x, y)
        label = f"{style.rho_text('', rho)} ({len(x)} rounds)".strip()
        style.draw_marks(axes, x, y, k, alpha=0.8, label=label)
    axes.set_xlabel(f"mean CKA at {tap}")
    axes.set_ylabel("accuracy (%)")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.09 * -(-len(groups) // 2) * (high - low))  # room for the legend
    axes.legend(
        fontsize=6, handletextpad=0.1, borderpad=0.2, ncols=2, columnspacing=0.6, loc="upper left"
    )


def _draw_capacities(axes: Axes, groups: Sequence[Group], score: str) -> None:
    """Draw accuracies as bars, a colour per group; whiskers are standard deviations over seeds."""
    each = [group.runs[0].capacities for group in groups]
    each.sort(key=len, reverse=True)  # the longest has the order of most
    names = list(dict.fromkeys(itertools.chain(*each)))
    wide = 0.8 / len(groups)
    for k, group in enumerate(groups):
        for place, name in enumerate(names):
            values = group.final(f"test/acc/{name}", score)
            if len(values):
                x = place + (k - (len(groups) - 1) / 2) * wide
                style.draw_bar(axes, x, wide, values, k)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("accuracy (%)")
    axes.grid(visible=False, axis="x")


def last_arrays(group: Group) -> dict[str, Any]:
    """Return the last measured arrays of a group's first seed: others sample other clients."""
    arrays = group.runs[0].arrays
    return arrays.read("cka", arrays.rounds("cka")[-1])


def draw_map(axes: Axes, arrays: dict[str, Any], tap: str, names: bool) -> AxesImage:
    """Draw the similarity of all pairs of models; white lines part their capacities."""
    order = np.argsort(arrays["level"], kind="stable")
    levels = arrays["level"][order]
    matrix = arrays[f"cka/{tap}"][np.ix_(order, order)]
    image = axes.imshow(matrix, "cividis", vmin=0.0, vmax=1.0, interpolation="nearest")
    starts = np.flatnonzero(np.diff(levels, prepend=levels[0] - 1))
    stops = np.append(starts[1:], len(levels))
    for edge in starts[1:] - 0.5:
        axes.axhline(edge, color="white", linewidth=0.7)
        axes.axvline(edge, color="white", linewidth=0.7)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    if names:
        at = (starts + stops - 1) / 2
        axes.set_yticks(at, arrays["name"][order][starts].tolist(), fontsize=6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _families(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups by model family, which labels that were derived leave to a panel's title."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        model = group.facts.get("model", "model")
        names = (name for start, name in _FAMILIES.items() if model.startswith(start))
        found.setdefault(next(names, model), []).append(group)
    if [group.label for group in groups] != labels_of(groups):
        return found
    return {family: labelled(members, labels_of(members)) for family, members in found.items()}


def _has_cka(run: Run) -> bool:
    return any(key.startswith("cka/") for row in run.rows for key in row)


def _need_maps(figure: str, groups: Sequence[Group]) -> None:
    runs = [group.runs[0] for group in groups]
    require(figure, runs, lambda run: bool(run.arrays.rounds("cka")), "CKA", "diagnostics=cka")

"""Accuracy: the paper's Figures 7, 8, 20 and 21 to 25."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inco.errors import ConfigError
from inco.paper.figures import style
from inco.paper.figures.groups import PARTS, TRANSFORMS, differing, labels_of
from inco.paper.figures.options import Options
from inco.records.groups import Curve, Group, over_seeds
from inco.records.names import natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {"local.batch_size": "batch size", "uplink.scale": "noise of uploads (standard deviations)"}
_MARK: dict[str, Any] = {
    "marker": "_",
    "linestyle": "",
    "color": "0.2",
    "markersize": 9,
    "alpha": 0.6,
}
# a number at the foot of its bar
_INSIDE: dict[str, Any] = {
    "textcoords": "offset points",
    "rotation": 90,
    "ha": "center",
    "fontsize": 6,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8},
}
_BARS = ("inco", "no_normalization", "no_optimization", "neither", "none")
_PAPER = "paper, 500 rounds"
_TELLING = ("algorithm", "transform", "split", "model")  # choices that make a line of its own
# Figure 8 of Chan et al., ICLR 2024, ResNet-26 split by stage, FedAvg: read off the chart, so right
# to about one point. By dataset: Dirichlet 0.5 and 1.0 of each bar in the order of _BARS.
PAPER = {
    "fashion_mnist": ((90, 88), (87, 86), (88, 86.5), (88.5, 83), (87.5, 86)),
    "svhn": ((87, 89), (83, 87), (85.5, 86.5), (85, 86), (84.5, 86.5)),
    "cifar10": ((68, 71), (60, 68), (65, 69), (64, 68), (64, 67)),
    "cinic10": ((53, 57), (51, 56), (50, 56), (49, 56), (48, 56)),
}


class Panel(NamedTuple):
    """A panel of Figure 7: the setting along x, and the groups of each line with its value."""

    key: str
    title: str
    lines: Mapping[str, list[tuple[float, Group]]]


def robustness(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 7: accuracy against batch size, noise of uploads, or the setting of `--x`."""
    panels = robustness_panels(groups, options.x)
    figure, grid = _grid(len(panels), 0.4)
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for k, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        for name, members in panel.lines.items():
            members = sorted(members, key=lambda member: member[0])
            scores = [over_seeds(group.final(score=options.score)) for _, group in members]
            x = [value for value, _ in members]
            y = [mean for mean, _ in scores]
            errors = [0.0 if sd is None else float(sd) for _, sd in scores]
            yerr = errors if any(errors) else None
            axes.errorbar(x, y, yerr=yerr, capsize=2, label=name, **style.look(names.index(name)))
        values = sorted({value for line in panel.lines.values() for value, _ in line})
        if len(values) > 2 and values[0] > 0 and values[-1] / values[0] >= 8:
            axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(_AXES.get(panel.key, panel.key))
        axes.set_ylabel(f"{options.score} accuracy (%)")
        style.letter(axes, k, panel.title, len(panels))
    if len(names) > 1:
        style.legend_above(figure, grid)
    return figure


def _grid(count: int, above: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, two side by side, and room for a legend above them."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = style.page(style.SINGLE if columns == 1 else style.DOUBLE, above + 2.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def robustness_panels(groups: Sequence[Group], x: str) -> list[Panel]:
    """Return a panel per dataset and setting. ConfigError where no number varies."""
    _need_scores("figure 7", groups)
    others = [key for key in differing(groups) if not key.startswith("transform.")]
    varying = [key for key in _AXES if _varies(groups, key)]
    keys = [x] if x else varying or [key for key in others if _varies(groups, key)][:1]
    panels = []
    datasets = list(dict.fromkeys(PARTS["dataset"](group) for group in groups))
    for dataset in datasets:
        own = [group for group in groups if PARTS["dataset"](group) == dataset]
        for key in keys:
            # the other axis stays where most runs have it
            usual = {
                other: Counter(_value(group, other) for group in own).most_common(1)[0][0]
                for other in _AXES
                if other != key and _varies(own, other)
            }
            usual |= {"uplink.scale": 0.0} if "uplink.scale" in usual else {}
            kept = [g for g in own if all(_value(g, other) == v for other, v in usual.items())]
            if _varies(kept, key):
                panels.append(Panel(key, dataset if len(datasets) > 1 else "", _lines(kept, key)))
    if not panels:
        what = "figure 7: no number among the settings varies"
        if x:
            what = f"--x {x}: the same number, or none, in all groups"
        raise ConfigError(
            f"{what}; make runs that differ in one, as by\n  python run.py -m"
            " local.batch_size=32,64,128 transform=none,inco"
        )
    return panels


def _lines(groups: Sequence[Group], key: str) -> dict[str, list[tuple[float, Group]]]:
    """Return groups that differ in `key` alone, with its values, by their label."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        choices = {name: group.facts.get(name) for name in _TELLING}
        known = group.runs[0].settings | choices
        rest = repr(sorted((k, repr(v)) for k, v in known.items() if k != key))
        found.setdefault(rest, []).append(group)
    lines = list(found.values())
    names = labels_of([line[0] for line in lines], ("uplink", "dataset", "partition", key))
    named = sorted(zip(names, lines, strict=True), key=lambda item: natural(item[0]))
    return {name: [(_value(group, key), group) for group in line] for name, line in named}


def _value(group: Group, key: str) -> float:
    """Return a numeric setting; 0 for the noise of a clean uplink, NaN for what is no number."""
    value = group.facts.get(key, 0.0 if key == "uplink.scale" else None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return float("nan")


def _varies(groups: Sequence[Group], key: str) -> bool:
    values = {_value(group, key) for group in groups}
    return len(values) > 1 and not any(np.isnan(v) for v in values)


def ablation(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 8: accuracy of InCo, of its ablations and of its base, by partition."""
    panels = ablation_panels(groups)
    figure, grid = _grid(len(panels), 0.5)
    there = {transform for panel in panels.values() for _, transform in panel}
    shown = [name for name in dict.fromkeys((*_BARS, *TRANSFORMS)) if name in there]
    for k, (axes, (title, cells)) in enumerate(zip(grid, panels.items(), strict=True)):
        _draw_bars(axes, cells, shown, options)
        style.letter(axes, k, title, len(panels))
    style.legend_above(figure, grid, 3 * min(len(panels), 2), _PAPER)
    return figure


def ablation_panels(groups: Sequence[Group]) -> dict[str, dict[tuple[str, str], Group]]:
    """Return each panel's groups by partition and transform. ConfigError where two would be one."""
    _need_scores("figure 8", groups)
    panels: dict[str, dict[tuple[str, str], Group]] = {}
    for group in groups:
        algorithm = PARTS["method"](replace(group, facts={**group.facts, "transform": "none"}))
        cells = panels.setdefault(f"{PARTS['dataset'](group)}, {algorithm}", {})
        cell = (PARTS["partition"](group), group.facts.get("transform", ""))
        if cell in cells:
            keys = ", ".join(differing([cells[cell], group])[:3])
            raise ConfigError(
                f"figure 8: two groups would be one bar ({', '.join(cell)}); they differ in {keys};"
                " give one of them"
            )
        cells[cell] = group
    return panels


def _draw_bars(
    axes: Axes, cells: Mapping[tuple[str, str], Group], shown: Sequence[str], options: Options
) -> None:
    partitions = sorted({partition for partition, _ in cells})
    wide = 0.84 / len(shown)
    for k, transform in enumerate(shown):
        label = TRANSFORMS.get(transform, transform) or "base"
        # in the legend also where this panel lacks it
        axes.bar([np.nan], [np.nan], label=label, **style.bar_look(k))
        for place, partition in enumerate(partitions):
            group = cells.get((partition, transform))
            x = place + (k - (len(shown) - 1) / 2) * wide
            if group is None:
                continue
            values = group.final(score=options.score)
            style.draw_bar(axes, x, wide, values, k)
            axes.annotate(f"{values.mean():.1f}", (x, 0), (0, 4), **_INSIDE)
            theirs = paper_value(group) if options.paper else None
            if theirs is not None:
                axes.plot(x, theirs, **_MARK)
    if options.paper and any(paper_value(group) is not None for group in cells.values()):
        axes.plot([np.nan], [np.nan], label=_PAPER, **_MARK)
    axes.set_xticks(range(len(partitions)), partitions)
    axes.set_ylabel(f"{options.score} accuracy (%)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=False, axis="x")


def paper_value(group: Group) -> float | None:
    """Return the paper's accuracy in Figure 8 of this setting; None where it has none."""
    facts = group.facts
    alpha = facts.get("partition.alpha")
    transform = facts.get("transform")
    bars = PAPER.get(facts.get("dataset", ""))
    paper_runs = facts.get("algorithm") == "fedavg" and facts.get("split") == "stage"
    if not paper_runs or bars is None or transform not in _BARS or alpha not in (0.5, 1.0):
        return None
    return float(bars[_BARS.index(transform)][(0.5, 1.0).index(alpha)])


def convergence(groups: Sequence[Group], options: Options) -> Figure:
    """Figure 20: accuracy, the norm of what the server adds and the noise by round; a table."""
    _need_scores("figure 20", groups)
    noise = [k for k, group in enumerate(groups) if group.keys("noise/std/")]
    figure = style.page(style.DOUBLE, 2.6 + 0.16 * len(groups))
    top, below = style.stack(figure, 2.2, 0.4 + 0.16 * len(groups))
    panels = top.subplots(1, 3 if noise else 2)
    for k, group in enumerate(groups):
        style.draw_curve(panels[0], group.curve("test/acc"), k, group.label)
        style.draw_curve(panels[1], group.curve("update/norm"), k, group.label)
    for k in noise:
        style.draw_curve(panels[2], _mean_noise(groups[k]), k, groups[k].label)
    names = ("accuracy (%)", "norm of the update", "mean noise std")
    for k, (axes, what) in enumerate(zip(panels, names, strict=False)):
        axes.set_xlabel("round")
        axes.set_ylabel(what)
        style.whole_numbers(axes)
        style.letter(axes, k)
    style.legend_above(top, panels[:1].tolist())
    table = below.subplots()
    table.axis("off")
    head, rows = _table(groups)
    drawn = table.table([*rows], colLabels=head, loc="center", cellLoc="center", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7)
    for cell in drawn.get_celld().values():
        cell.set_linewidth(0.5)
    table.set_title(f"({chr(ord('a') + len(panels))}) accuracy (%)", loc="left")
    return figure


def _mean_noise(group: Group) -> Curve:
    """Return the noise's standard deviation over rounds, mean over layers."""
    curves = [group.curve(f"noise/std/{layer}") for layer in group.keys("noise/std/")]
    rounds = sorted(set.intersection(*(set(curve.rounds.tolist()) for curve in curves)))
    means = np.mean([curve.mean[np.isin(curve.rounds, rounds)] for curve in curves], axis=0)
    return curves[0]._replace(rounds=np.array(rounds), mean=means, sd=None)


def convergence_table(groups: Sequence[Group], options: Options) -> str:
    return style.markdown(*_table(groups))


def _table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for group in groups:
        last = group.final()
        scores = [style.plus_minus(values) for values in (last, group.final(score="best"))]
        rows.append([group.label, *scores, str(len(last))])
    return ["method", "last", "best", "seeds"], rows


def _need_scores(figure: str, groups: Sequence[Group]) -> None:
    empty = [group.runs[0].folder for group in groups if not len(group.final())]
    if empty:
        raise ConfigError(
            f"{figure}: no scored round yet in {empty[0]}; wait for one, or leave this run out"
        )

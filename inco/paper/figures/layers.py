"""What `diagnostics=gradients` keeps of each layer, read from run folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from inco.errors import ConfigError
from inco.paper.figures.groups import require
from inco.paper.figures.options import Options
from inco.records.groups import Group
from inco.records.names import natural
from inco.records.runs import Run

Arrays = dict[str, np.ndarray]


def need_gradients(figure: str, groups: Sequence[Group]) -> None:
    """Raise ConfigError where a run has no arrays of gradients."""
    runs = [run for group in groups for run in group.runs]
    require(figure, runs, lambda run: bool(measured(run)), "gradients", "diagnostics=gradients")


def two_groups(figure: str, groups: Sequence[Group]) -> tuple[Group, Group, list[str]]:
    """Return the two groups that a figure compares, and the layers they share."""
    need_gradients(figure, groups)
    if len(groups) != 2:
        labels = "; ".join(group.label for group in groups)
        raise ConfigError(
            f"{figure} compares two settings, and these runs make {len(groups)} ({labels}); give"
            " the runs of two, as made by\n  python run.py -m partition=iid,dirichlet"
            " diagnostics=gradients seed=0,1,2"
        )
    return groups[0], groups[1], layers_of(figure, groups, "values")


def read(run: Run, round: int, kind: str) -> Arrays:
    """Return a round's "clients", "update", "beta", "theta" or "values" arrays by layer."""
    return _of_kind(run, run.arrays.read("gradients", round), kind)


def _of_kind(run: Run, arrays: Arrays, kind: str) -> Arrays:
    found = {}
    for key, array in arrays.items():
        of, _, layer = key.partition("/")
        own = own_name(run, layer)
        if of == kind and own:
            found[own] = array
    return found


def own_name(run: Run, layer: str) -> str:
    """Return a layer's name within the largest model; "" for a layer of another capacity's."""
    owner, _, own = layer.rpartition("/")
    largest = str((run.about.get("capacities") or [""])[-1])
    return own if owner.partition("-")[2] in ("", largest) else ""


def measured(run: Run) -> list[int]:
    """Return the rounds whose gradients a run has."""
    return run.arrays.rounds("gradients")


def layers_of(figure: str, groups: Sequence[Group], kind: str) -> list[str]:
    """Return the layers that all groups have in some round, in natural order."""
    each = [
        {layer for run in group.runs for round in measured(run) for layer in read(run, round, kind)}
        for group in groups
    ]
    common = set.intersection(*each)
    if not common:
        firsts = (min(layers, key=natural) if layers else f"no {kind}" for layers in each)
        raise ConfigError(
            f"{figure}: the groups have no layer in common (first of each: {' and '.join(firsts)});"
            " compare runs of one model"
        )
    return sorted(common, key=natural)


def chosen(layers: Sequence[str], options: Options, kind: str = "layer") -> list[str]:
    """Return the layers, or taps, that `--layers` names; none where it is not given."""
    unknown = [layer for layer in options.layers if layer not in layers]
    if unknown:
        raise ConfigError(
            f"--layers {','.join(unknown)}: no such {kind} in all groups; use some of"
            f" {', '.join(layers)}"
        )
    return list(options.layers)


def stage(layer: str) -> str:
    """Return what a layer belongs to: layer3 of a ResNet, blocks.*.norm2 of a ViT, or itself."""
    found = re.match(r"(layer\d+)\.", layer)
    return found[1] if found else re.sub(r"\.\d+\.", ".*.", layer, count=1)


def by_stage(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return layers by stage, stages with most layers first; of equals the shallower."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(stage(layer), []).append(layer)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def pooled(group: Group, layer: str, kind: str, round: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return edges and counts of a layer's histogram, summed over seeds; None if nobody sent it."""
    found = []
    for run in group.runs:
        if round in measured(run):
            arrays = run.arrays.read("gradients", round)
            counts = _of_kind(run, arrays, kind).get(layer)
            found += [] if counts is None else [(arrays["edges"], counts)]
    total = np.asarray(sum(counts for _, counts in found))
    return (found[-1][0], total) if total.any() else None


def rounds_of(group: Group) -> list[int]:
    """Return the rounds measured in all of a group's runs. ConfigError where there is none."""
    common = sorted(set.intersection(*(set(measured(run)) for run in group.runs)))
    if not common:
        raise ConfigError(
            f"{group.label}: no round was measured in all of its {len(group.runs)} runs; wait for"
            " one, or leave a run out"
        )
    return common


def paired(figure: str, one: Group, other: Group) -> list[tuple[Run, Run]]:
    """Return the runs of two groups that have the same seed."""
    by_seed = {run.seed: run for run in other.runs}
    pairs = [(run, by_seed[run.seed]) for run in one.runs if run.seed in by_seed]
    if not pairs:
        seeds = [",".join(str(run.seed) for run in group.runs) for group in (one, other)]
        raise ConfigError(
            f"{figure} compares runs of equal seed, and there are none: {one.label} has"
            f" {seeds[0]}, {other.label} {seeds[1]}; run both with seed=0"
        )
    return pairs


def updates(
    pairs: Sequence[tuple[Run, Run]], rounds: Sequence[int], layers: Sequence[str]
) -> Iterator[tuple[int, int, str, np.ndarray, np.ndarray]]:
    """Yield round, number of the pair, layer, and both updates, where both have measured them."""
    for round in rounds:
        for number, runs in enumerate(pairs):
            if not all(round in measured(run) for run in runs):
                continue
            one, other = (read(run, round, "values") for run in runs)
            for layer in (layer for layer in layers if layer in one and layer in other):
                x, y = (side[layer] for side in (one, other))
                if x.shape != y.shape:
                    raise ConfigError(
                        f"{layer} has shape {x.shape} in one run and {y.shape} in the other;"
                        " compare runs of one model and one split"
                    )
                yield round, number, layer, x, y

"""What `diagnostics=gradients` keeps of each layer, read from run folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def need_two(figure: str, groups: Sequence[Group]) -> tuple[Group, Group]:
    """Return the two groups that a figure compares. ConfigError for another number of them."""
    if len(groups) != 2:
        told = "; ".join(group.label for group in groups)
        raise ConfigError(
            f"{figure} compares two settings, and these runs make {len(groups)} ({told}); give the"
            " runs of two, as made by\n  python run.py -m partition=iid,dirichlet"
            " diagnostics=gradients seed=0,1,2"
        )
    return groups[0], groups[1]


def read(run: Run, round: int, kind: str) -> Arrays:
    """Return one kind of a round's arrays by layer: "clients", "update", "beta", "theta" or
    "values".

    Where each capacity has a model of its own at the server, the layers are those of the largest.
    """
    return of_kind(run.arrays.read("gradients", round), kind, largest(run))


def largest(run: Run) -> str:
    """Return the name of the largest capacity; empty where about.json does not tell it."""
    return str((run.about.get("capacities") or [""])[-1])


def of_kind(arrays: Arrays, kind: str, largest: str) -> Arrays:
    """Return the arrays of one kind by layer, of the largest model where there are several."""
    found = {}
    for key, array in arrays.items():
        of, _, layer = key.partition("/")
        own = own_name(layer, largest)
        if of == kind and own:
            found[own] = array
    return found


def own_name(layer: str, largest: str) -> str:
    """Return a layer's name within its model; empty for 0-resnet10/layer1.0.conv2, a layer of
    another model than the largest.
    """
    owner, _, own = layer.rpartition("/")
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
        some = " and ".join(firsts)
        raise ConfigError(
            f"{figure}: the groups have no layer in common (first of each: {some}); compare runs of"
            " one model"
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
    """Return what a layer belongs to: layer3 of a ResNet, blocks.*.norm2 of a ViT; one that stands
    alone is its own.
    """
    found = re.match(r"(layer\d+)\.", layer)
    return found[1] if found else re.sub(r"\.\d+\.", ".*.", layer, count=1)


def by_stage(layers: Sequence[str]) -> dict[str, list[str]]:
    """Return layers by stage, stages with most layers first; of equals the shallower."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        found.setdefault(stage(layer), []).append(layer)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def pooled(group: Group, layer: str, kind: str, round: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return edges and counts of a layer's histogram in a round, summed over the group's seeds;
    None where nobody sent it.
    """
    edges = None
    total = None
    for run in group.runs:
        if round in measured(run):
            arrays = run.arrays.read("gradients", round)
            counts = of_kind(arrays, kind, largest(run)).get(layer)
            if counts is not None:
                edges, total = arrays["edges"], counts if total is None else total + counts
    return None if edges is None or total is None or not total.any() else (edges, total)


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
        told = f"{one.label} has {seeds[0]}, {other.label} {seeds[1]}"
        raise ConfigError(
            f"{figure} compares runs of equal seed, and there are none: {told}; run both with"
            " seed=0"
        )
    return pairs


def updates(
    pairs: Sequence[tuple[Run, Run]], round: int, layers: Sequence[str]
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return each pair's updates of a round by layer, those that both have; an empty dict for a
    pair that has not measured it.
    """
    found: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
    for runs in pairs:
        if not all(round in measured(run) for run in runs):
            found.append({})
            continue
        one, other = (read(run, round, "values") for run in runs)
        shared = [layer for layer in layers if layer in one and layer in other]
        found.append({layer: (one[layer], other[layer]) for layer in shared})
        for layer, (x, y) in found[-1].items():
            if x.shape != y.shape:
                raise ConfigError(
                    f"{layer} has shape {x.shape} in one run and {y.shape} in the other; compare"
                    " runs of one model and one split"
                )
    return found

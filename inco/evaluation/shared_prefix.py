"""Levels that are paths through the steps of one model: those that begin alike are scored alike,
once.

Of a global model's relatives by depth, every one starts with the same blocks, weights and
statistics included. A model that says in which `steps` it computes lets a batch go through each of
them once, however many levels it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from inco.flat import Slice
from inco.types import Output, SubModel

Steps = Mapping[str, Callable[[Tensor], Tensor | Output]]


@dataclass(frozen=True)
class Nested:
    """`host`: the level whose model holds every step; `paths`: the names of each level's steps in
    their order, the host's included.
    """

    host: int
    paths: Mapping[int, tuple[str, ...]]

    def outputs(
        self, steps: Steps, x: Tensor, levels: Sequence[int]
    ) -> Iterator[tuple[int, Output]]:
        """Yield the output of each of the levels for one batch. `steps`: the host's."""
        yield from _walk(steps, x, {level: self.paths[level] for level in levels})


def _walk(
    steps: Steps, x: Tensor, paths: Mapping[int, tuple[str, ...]]
) -> Iterator[tuple[int, Output]]:
    for name in dict.fromkeys(path[0] for path in paths.values()):
        found = steps[name](x)
        rest = {level: path[1:] for level, path in paths.items() if path[0] == name}
        if isinstance(found, Output):
            yield from ((level, found) for level in rest)
        else:
            yield from _walk(steps, found, rest)


def nested(submodels: Mapping[int, SubModel], models: Mapping[int, nn.Module]) -> Nested | None:
    """Return the levels that are paths through the model of one of them, or None where there are
    not two of them.
    """
    paths = {
        level: tuple(steps_of(models[level])) if _held_whole(sub, models[level]) else ()
        for level, sub in submodels.items()
    }
    host = max(paths, key=lambda level: len(paths[level]), default=None)
    if host is None:
        return None
    every = set(paths[host])
    held = _places(submodels[host])
    within = {
        level: path
        for level, path in paths.items()
        if path and every.issuperset(path) and _places(submodels[level]) <= held
    }
    return Nested(host, within) if len(within) > 1 else None


def steps_of(model: nn.Module) -> Steps:
    """Return a model's named steps, whose last gives its Output; none where it does not name
    them.
    """
    steps = getattr(model, "steps", None)
    return steps() if callable(steps) else {}


def _held_whole(sub: SubModel, model: nn.Module) -> bool:
    """Tell whether the server knows all of a model: frozen parameters are each model's own."""
    return all(name in sub.params.layout.entries for name, _ in model.named_parameters())


def _places(sub: SubModel) -> set[tuple[object, ...]]:
    """Return the name, the shape and the place at the server of every tensor of a sub-model; None
    for a place in pieces, unlike any.
    """
    return {
        (name, *where)
        for name, part in (("params", sub.params), ("buffers", sub.buffers))
        for where in _of(part, sub.level)
    }


def _of(part: Slice, level: int) -> Iterator[tuple[object, ...]]:
    for entry in part.layout.entries.values():
        start = part.start_of(entry)
        yield entry.name, entry.shape, (level, "in pieces") if start is None else start

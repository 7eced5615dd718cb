"""What a split is, and the sub-models that are one global model cut by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from torch import Tensor

from inco.flat import Layout, Slice, layouts_of
from inco.models.base import Family, fresh
from inco.types import Pair, SubModel


class Split(Protocol):
    """A way to give each level of clients a part of the server's vectors.

    `names`: short names of the levels, smallest first; `params`, `buffers`: layouts of the server's vectors, [P] and [B];
    `moving`: whether what a level holds changes from round to round.
    """

    moving: bool

    names: tuple[str, ...]
    params: Layout
    buffers: Layout

    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return the server's first parameters [P] and buffers [B]; they depend on the seed alone."""
        ...

    def submodel(self, level: int, round: int) -> SubModel:
        """Return what clients of a level (0 is the smallest) hold in a round."""
        ...

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Return the cross-layer pairs among the server's tensors."""
        ...


class BlockSplit:
    """A global model and its relatives that keep the first blocks of each group. `levels`: blocks kept, smallest first."""

    moving = False

    def __init__(self, family: Family, levels: Sequence[Sequence[int]]) -> None:
        self.family = family
        self.names = _names(family, levels)
        self.params, self.buffers = layouts_of(family.build(), family.axes())
        self._submodels = [self._cut(level, list(keep)) for level, keep in enumerate(levels)]

    def _cut(self, level: int, keep: list[int]) -> SubModel:
        params, buffers = layouts_of(self.family.build(keep), self.family.axes(keep))
        held, stats = Slice.by_name(self.params, params), Slice.by_name(self.buffers, buffers)
        return SubModel(level, self.names[level], partial(self.family.build, keep), held, stats)

    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        model = fresh(self.family, seed)
        self.family.load_pretrained(model)
        return self.params.pack(dict(model.named_parameters())), self.buffers.pack(dict(model.named_buffers()))

    def submodel(self, level: int, round: int) -> SubModel:
        return self._submodels[level]

    def pairs(self, style: str) -> tuple[Pair, ...]:
        return self.family.pairs(style)


def _names(family: Family, levels: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Short names of the levels; where two relatives have one name, the blocks kept are added."""
    names = [family.level_name(keep) for keep in levels]
    return tuple(n if names.count(n) == 1 else f"{n}({'-'.join(map(str, k))})" for n, k in zip(names, levels, strict=True))


class Whole(BlockSplit):
    """Every client holds the whole global model."""

    def __init__(self, *, family: Family) -> None:
        super().__init__(family, [list(family.blocks.values())])

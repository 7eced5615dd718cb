"""Isolated split: clients share with clients of the same size alone (the paper's Tables 1 and
5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from inco.flat import Layout, Slice
from inco.models.base import Family
from inco.seeding import seed_for
from inco.settings import BatchNorm, BatchNormImages, BlocksOrPublished, checked
from inco.splits.base import Norm, Split
from inco.splits.depth import Depth
from inco.types import Pair, SubModel


class Isolated(Split):
    """One separate server model for each level, one after the other in the server's vectors."""

    @checked("split")
    def __init__(
        self,
        levels: BlocksOrPublished = None,
        bn: BatchNorm = "aggregated",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        table = [
            [k] if isinstance(k, int) else list(k)
            for k in (family.depth_levels() if levels is None else levels)
        ]
        self.family = family
        self._table = table
        self.norm = Norm(bn, bn_images)
        shared = Depth(table, bn, bn_images, family=family)
        self.names = shared.names
        cuts = [shared.submodel(level, 0) for level in range(len(table))]
        self.params = Layout.concat({_place(s): s.params.layout for s in cuts})
        self.buffers = Layout.concat({_place(s): s.buffers.layout for s in cuts})
        self._submodels = [self._apart(s) for s in cuts]

    def _apart(self, shared: SubModel) -> SubModel:
        prefix = _place(shared) + "/"
        return replace(
            shared,
            params=Slice.by_name(self.params, shared.params.layout, prefix),
            buffers=Slice.by_name(self.buffers, shared.buffers.layout, prefix),
        )

    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        starts = [Depth([keep], self.norm.kind, family=self.family) for keep in self._table]
        firsts = [
            _initial(start, seed_for(seed, "init", level)) for level, start in enumerate(starts)
        ]
        return torch.cat([w for w, _ in firsts]), torch.cat([b for _, b in firsts])

    def submodel(self, level: int, round: int) -> SubModel:
        return self._submodels[level]

    def taps(self, level: int) -> Mapping[str, str]:
        return self.family.taps(self._table[level])

    def pairs(self, style: str) -> tuple[Pair, ...]:
        found = []
        for s in self._submodels:
            for p in self.family.pairs(style):
                target = f"{_place(s)}/{p.target}"
                reference = f"{_place(s)}/{p.reference}"
                if target in self.params.entries and reference in self.params.entries:
                    found.append(Pair(target, reference))
        return tuple(found)


def _place(sub: SubModel) -> str:
    return f"{sub.level}-{sub.name}"


def _initial(split: Depth, seed: int) -> tuple[Tensor, Tensor]:
    """The first weights of the one size in `split`: the first of the whole model's, cut."""
    w, b = split.initial(seed)
    cut = split.submodel(0, 0)
    own_w = torch.empty(cut.params.layout.numel)
    own_b = torch.empty(cut.buffers.layout.numel)
    return cut.params.gather(w, own_w), cut.buffers.gather(b, own_b)

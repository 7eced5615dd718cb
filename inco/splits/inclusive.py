"""InclusiveFL: a depth split in which each size has its own last layer and classifier, and learns
from the next larger size's layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from inco.errors import ConfigError
from inco.flat import Entry, Layout, Slice
from inco.models.base import Family
from inco.settings import (
    BatchNorm,
    BatchNormImages,
    BlocksOrPublished,
    Weighting,
    between,
    checked,
)
from inco.splits.base import Norm, Split
from inco.splits.depth import Depth, depth_table
from inco.types import Aggregate, Pair, SubModel, Upload, Vectors


class Momentum(NamedTuple):
    """The momentum of one tensor of a level's last block: where it comes from and where it goes.

    `place`: where the tensor starts among the server's parameters; `start`: where its momentum
    starts in m; `numel`: its size; `blocks`: where its namesakes start in the next larger level's
    delta.
    """

    place: int
    start: int
    numel: int
    blocks: tuple[int, ...]


def blocks_of(momenta: Sequence[Momentum], vectors: Vectors) -> Vectors:
    """Return what the server keeps of a client's delta for the next smaller level: the blocks of
    each momentum, one after the other.
    """
    delta = vectors["delta"]
    blocks = [delta.narrow(0, start, m.numel) for m in momenta for start in m.blocks]
    return {"m": torch.cat(blocks) if blocks else delta.new_empty(0)}


def averaged_in(momenta: Sequence[Momentum]) -> Slice:
    """Return where these blocks go: those of a momentum to the same entries, of which each is then
    their mean.
    """
    pieces = [m for m in momenta for _ in m.blocks]
    index = [torch.arange(m.start, m.start + m.numel) for m in pieces]
    weight = [torch.full((m.numel,), 1 / len(m.blocks), dtype=torch.float64) for m in pieces]
    size = sum(m.numel for m in pieces)
    layout = Layout([Entry("blocks", (size,), 0)])
    if not pieces:
        return Slice(layout, torch.empty(0, dtype=torch.int64))
    return Slice(layout, torch.cat(index), torch.cat(weight))


class Inclusive(Split):
    """Levels are the first blocks of each group. A level's last block of each group, and what
    follows the blocks, are its own; what is before them is shared with all levels that have it
    before their last block.

    Momentum distillation: a level's update of its last block becomes beta m + (1 - beta) times
    itself, where m is the mean, over this block and those that the next larger level has beyond it,
    of that level's own update of the former round. m is zero in round 1, and where nobody of that
    level took part in the former round; the largest level has no m. Only tensors of equal shape
    enter m.

    Liu et al., No One Left Behind: Inclusive Federated Learning over Heterogeneous Devices, KDD
    2022. Its text gives one sequence of layers; that each stage of a ResNet is such a sequence is
    our reading. The published code never comes to use m; this is what it means to do.
    """

    @checked("split")
    def __init__(
        self,
        levels: BlocksOrPublished = None,
        beta: Annotated[
            float,
            between(0, 1, open_high=True),
            "weight of the next larger level's momentum in a level's last block; 0 teaches nothing",
        ] = 0.2,
        bn: BatchNorm = "aggregated",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        self.family = family
        self.beta = beta
        self.norm = Norm(bn, bn_images)
        self._table = depth_table(family.depth_levels() if levels is None else levels)
        if any(
            a > b
            for small, large in pairwise(self._table)
            for a, b in zip(small, large, strict=True)
        ):
            raise ConfigError(
                f"split.levels={self._table}: with split=inclusive each level has at least the"
                " blocks of the one before it"
            )
        self._shared = Depth(self._table, bn, bn_images, family=family)
        self.names = self._shared.names
        cuts = [self._shared.submodel(level, 0) for level in range(len(self._table))]
        self.params = self._layout([s.params.layout for s in cuts])
        self.buffers = self._layout([s.buffers.layout for s in cuts])
        self._submodels = [self._own(s) for s in cuts]
        self._find_momenta()

    def _last(self, level: int) -> set[str]:
        return {
            f"{group}.{kept - 1}"
            for group, kept in zip(self.family.blocks, self._table[level], strict=True)
        }

    def _place(self, level: int, name: str) -> str:
        """Return the server's name of a level's tensor."""
        top = name.split(".")[0]
        block = ".".join(name.split(".")[:2])
        own = block in self._last(level) if top in self.family.blocks else top in self.family.after
        return f"{level}-{self.names[level]}/{name}" if own else name

    def _layout(self, parts: Sequence[Layout]) -> Layout:
        """Lay out every tensor of every level once, shared ones first met first."""
        entries: dict[str, Entry] = {}
        offset = 0
        for level, part in enumerate(parts):
            for e in part.entries.values():
                name = self._place(level, e.name)
                if name not in entries:
                    entries[name] = replace(e, name=name, offset=offset)
                    offset += e.numel
        return Layout(entries.values())

    def _own(self, shared: SubModel) -> SubModel:
        return replace(
            shared,
            params=self._slice(shared.level, self.params, shared.params.layout),
            buffers=self._slice(shared.level, self.buffers, shared.buffers.layout),
        )

    def _slice(self, level: int, whole: Layout, part: Layout) -> Slice:
        renamed = Layout(replace(e, name=self._place(level, e.name)) for e in part.entries.values())
        return Slice(part, Slice.by_name(whole, renamed).index)

    def _find_momenta(self) -> None:
        """Let each level's sub-model derive the momentum of the next smaller level."""
        self.momenta: list[Momentum] = []
        self._size = 0  # of m
        for level, sub in enumerate(self._submodels):
            mine = list(self._momenta(level - 1, self._size)) if level else []
            self._submodels[level] = replace(
                sub, derive=partial(blocks_of, mine), holds={"m": averaged_in(mine)}
            )
            self.momenta += mine
            self._size += sum(m.numel for m in mine)

    def _momenta(self, level: int, start: int) -> Iterator[Momentum]:
        """Yield what a level learns from the next: each tensor of its last blocks, from the
        namesakes of equal shape in the next level's blocks from there on.

        `start`: where the first one's momentum starts.
        """
        mine = self._submodels[level].params.layout
        theirs = self._submodels[level + 1].params.layout
        counts = zip(self.family.blocks, self._table[level], self._table[level + 1], strict=True)
        for group, kept, larger in counts:
            prefix = f"{group}.{kept - 1}."
            for name, e in mine.entries.items():
                if not name.startswith(prefix):
                    continue
                role = name.removeprefix(prefix)
                others = [
                    theirs.entries.get(f"{group}.{b}.{role}") for b in range(kept - 1, larger)
                ]
                blocks = tuple(o.offset for o in others if o is not None and o.shape == e.shape)
                if blocks:
                    place = self.params.entries[self._place(level, name)].offset
                    yield Momentum(place, start, e.numel, blocks)
                    start += e.numel

    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        w, b = self._shared.initial(seed)
        return self._spread(w, self._shared.params, self.params), self._spread(
            b, self._shared.buffers, self.buffers
        )

    @staticmethod
    def _spread(vector: Tensor, whole: Layout, wanted: Layout) -> Tensor:
        return wanted.pack(
            {name: whole.view(vector, name.rpartition("/")[2]) for name in wanted.entries}
        )

    def submodel(self, level: int, round: int) -> SubModel:
        return self._submodels[level]

    def uploads(self, weighting: Weighting) -> Mapping[str, Upload]:
        return {"m": Upload(weighting, self._size)}

    def init_server(self) -> dict[str, Tensor]:
        return {"m": torch.zeros(self._size)}

    def server_update(
        self, server: dict[str, Tensor], update: Tensor, aggregate: Aggregate
    ) -> Tensor:
        for each in self.momenta:
            own = update.narrow(0, each.place, each.numel)
            m = server["m"].narrow(0, each.start, each.numel)
            own.copy_(distilled(own, m, self.beta))
        server["m"] = aggregate.mean["m"]
        return update  # what nobody holds is zeroed by the simulator, whoever teaches it

    def taps(self, level: int) -> Mapping[str, str]:
        return self._shared.taps(level)

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Each level's pairs, by the places of its tensors; a shared tensor is mixed once, with the
        reference of the largest level.
        """
        found: dict[str, Pair] = {}
        for level, sub in enumerate(self._submodels):
            for p in self.family.pairs(style):
                if (
                    p.target in sub.params.layout.entries
                    and p.reference in sub.params.layout.entries
                ):
                    target = self._place(level, p.target)
                    reference = self._place(level, p.reference)
                    if target != reference:
                        found[target] = Pair(target, reference)
        return tuple(found.values())


def distilled(own: Tensor, momentum: Tensor, beta: float) -> Tensor:
    """Return beta m + (1 - beta) G, the update of a level's last layer after momentum distillation
    (Liu et al., 2022).
    """
    return own * (1 - beta) + momentum * beta

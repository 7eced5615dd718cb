"""What a split is, and the sub-models that are one global model cut by blocks and by channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from inco.errors import ConfigError
from inco.fast.shapes import shapes_only
from inco.flat import ClassRows, Layout, Slice, layouts_of
from inco.models.base import PLAIN, Family, Variant, fresh, relative
from inco.settings import BatchNorm, BatchNormImages, Weighting, checked
from inco.types import Aggregate, Objective, Pair, SubModel, Upload, cross_entropy


@dataclass(frozen=True)
class Norm:
    """Where BatchNorm's statistics come from when a sub-model is scored; models without BatchNorm
    have none.

    `kind`: "aggregated", running statistics travel with the weights and are averaged over their
    holders; "static", measured anew at each scoring, on `images` images of the training set (None:
    all) (Diao et al., ICLR 2021); "batch", those of the test images at hand. With the last two,
    nothing travels.
    """

    kind: BatchNorm = "aggregated"
    images: BatchNormImages = None

    def __post_init__(self) -> None:
        if self.images is not None and self.kind != "static":
            raise ConfigError(
                f"split.bn_images={self.images} with split.bn={self.kind}: only split.bn=static"
                " measures images; leave it null"
            )


class Split(ABC):
    """A way to give each level of clients a part of the server's vectors.

    `names`: short names of the levels, smallest first; `params`, `buffers`: layouts of the server's
    vectors, [P] and [B]; `moving`: whether what a level holds changes from round to round; `norm`:
    how BatchNorm is scored.
    """

    names: tuple[str, ...]
    params: Layout
    buffers: Layout
    moving: bool = False
    norm: Norm = Norm()
    weighting: str = "clients"
    """What holders of a coordinate count, beside the algorithm's weighting: "clients", all alike;
    "width", in proportion to the width of the client's layer.
    """

    @abstractmethod
    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return the server's first parameters [P] and buffers [B]; they depend on the seed
        alone.
        """

    @abstractmethod
    def submodel(self, level: int, round: int) -> SubModel:
        """Return what clients of a level (0 is the smallest) hold in a round (from 1; 0 stands for
        the first).
        """

    @abstractmethod
    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Return the cross-layer pairs among the server's tensors."""

    def taps(self, level: int) -> Mapping[str, str]:
        """Return the named activations of a level's model: tap -> module; none by default."""
        return {}

    def uploads(self, weighting: Weighting) -> Mapping[str, Upload]:
        """Return the split's own uploads, which its sub-models `derive`; none by default.

        `weighting`: the algorithm's.
        """
        return {}

    def init_server(self) -> dict[str, Tensor]:
        """Return the split's own vectors at the server before the first round."""
        return {}

    def server_update(
        self, server: dict[str, Tensor], update: Tensor, aggregate: Aggregate
    ) -> Tensor:
        """Return what the server is about to add, [P], from the algorithm's `update`; before the
        transform.
        """
        return update


class LevelSpec(NamedTuple):
    """One level of a global model: its short name, blocks kept in each group, and its variant."""

    name: str
    keep: Sequence[int]
    variant: Variant = PLAIN


class Relatives(Split):
    """One global model of variant `whole`, and for each level a relative of it: the first blocks of
    each group, some of the channels.
    """

    def __init__(
        self,
        family: Family,
        specs: Sequence[LevelSpec],
        whole: Variant = PLAIN,
        norm: Norm | None = None,
        objective: Objective = cross_entropy,
    ) -> None:
        self.norm = norm or Norm()
        batch_stats = self.norm.kind != "aggregated" and _keeps_statistics(family)
        self.family = family
        self.whole = replace(whole, batch_stats=batch_stats)
        self.objective = objective
        self.specs = [
            c._replace(variant=replace(c.variant, batch_stats=batch_stats)) for c in specs
        ]
        self.names = tuple(c.name for c in specs)
        if len(set(self.names)) < len(self.names):
            raise ConfigError(
                f"split.levels: two levels are called {max(self.names, key=self.names.count)}; make"
                " them differ by more"
            )
        self.params, self.buffers = self._layouts(None, self.whole)
        self._parts = [self._layouts(c.keep, c.variant) for c in self.specs]
        self._kept: dict[int, tuple[int, SubModel]] = {}

    def _layouts(self, keep: Sequence[int] | None, variant: Variant) -> tuple[Layout, Layout]:
        with shapes_only():
            model = relative(self.family, keep, variant)
        return layouts_of(
            model, self.family.axes(keep) if variant == PLAIN else self.family.axes(keep, variant)
        )

    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        model = fresh(self.family, seed, variant=self.whole)
        self.family.load_pretrained(model)
        return self.params.pack(dict(model.named_parameters())), self.buffers.pack(
            dict(model.named_buffers())
        )

    def submodel(self, level: int, round: int) -> SubModel:
        made = self._phase(round)
        if level not in self._kept or self._kept[level][0] != made:
            self._kept[level] = made, self._make(level, made)
        return self._kept[level][1]

    def _phase(self, round: int) -> int:
        """Return what of a round matters for who holds what; nothing here."""
        return 0

    def _channels(self, level: int, phase: int) -> Mapping[str, Tensor]:
        """Return the channels of each group that a level holds; groups not named are held whole."""
        return {}

    def _make(self, level: int, phase: int) -> SubModel:
        spec = self.specs[level]
        (params, buffers) = self._parts[level]
        channels = self._channels(level, phase)
        held = Slice.by_axes(self.params, params, channels)
        stats = Slice.by_axes(self.buffers, buffers, channels)
        return SubModel(
            level,
            spec.name,
            partial(relative, self.family, spec.keep, spec.variant),
            held,
            stats,
            self.objective,
        )

    def pairs(self, style: str) -> tuple[Pair, ...]:
        return self.family.pairs(style)

    def taps(self, level: int) -> Mapping[str, str]:
        return self.family.taps(self.specs[level].keep)


def class_rows(part: Slice) -> ClassRows:
    """Return the parameters of a sub-model whose first dimension is the classes."""
    local = []
    owner = []
    if not any(e.axes[:1] == ("classes",) for e in part.layout.entries.values()):
        raise ConfigError(
            "split.masked_loss: the model's axes name no dimension `classes`; use"
            " split.masked_loss=off, or name the classifier's so"
        )
    for e in part.layout.entries.values():
        if e.axes[:1] == ("classes",):
            local.append(torch.arange(e.offset, e.offset + e.numel))
            owner.append(torch.arange(e.shape[0]).repeat_interleave(e.numel // e.shape[0]))
    positions = torch.cat(local)
    return ClassRows(positions, part.index[positions], torch.cat(owner))


def _keeps_statistics(family: Family) -> bool:
    """Tell whether a family has running statistics, and can be built without.

    ConfigError where it cannot.
    """
    with shapes_only():
        if not any(True for _ in family.build().buffers()):
            return False
        try:
            bare = family.build(None, Variant(batch_stats=True))
        except TypeError:  # it knows depth alone
            bare = family.build()
    if any(b.is_floating_point() for b in bare.buffers()):
        raise ConfigError(
            "split.bn: this model keeps running statistics whatever is asked; use"
            " split.bn=aggregated, or heed variant.batch_stats"
        )
    return True


class BlockSplit(Relatives):
    """A global model and its relatives that keep the first blocks of each group.

    `levels`: blocks kept, smallest first.
    """

    def __init__(
        self, family: Family, levels: Sequence[Sequence[int]], norm: Norm | None = None
    ) -> None:
        specs = [
            LevelSpec(name, list(keep))
            for name, keep in zip(depth_names(family, levels), levels, strict=True)
        ]
        super().__init__(family, specs, norm=norm)


def depth_names(family: Family, levels: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Short names of the levels; where two relatives have one name, the blocks kept are added."""
    names = [family.level_name(keep) for keep in levels]
    return tuple(
        n if names.count(n) == 1 else f"{n}({'-'.join(map(str, k))})"
        for n, k in zip(names, levels, strict=True)
    )


class Whole(BlockSplit):
    """Every client holds the whole global model."""

    @checked("split")
    def __init__(
        self,
        bn: BatchNorm = "aggregated",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        super().__init__(family, [list(family.blocks.values())], Norm(bn, bn_images))

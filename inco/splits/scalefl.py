"""ScaleFL: smaller clients hold fewer channels and fewer blocks, and every depth has a classifier
of its own that the deepest teaches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from torch import Tensor

from inco.errors import ConfigError
from inco.models.base import Family, Variant
from inco.settings import (
    COUNT,
    RATES_AND_EXITS,
    BatchNorm,
    BatchNormImages,
    Scaled,
    above,
    at_least,
    checked,
    many,
    null_or,
)
from inco.splits.base import LevelSpec, Norm, Relatives
from inco.splits.objectives import SelfDistillation
from inco.splits.width import channels_of, groups_of, leading, narrowed


class ScaleFL(Relatives):
    """Level l holds the first int(s_l C) channels of every layer, the blocks up to its last exit,
    and the exits on the way.

    The published levels are four: a ResNet's have rates .7, .7, .75 and 1 and exits at 30, 38 and
    46 of 54 blocks, here in proportion; a ViT's .4, .55, .75 and 1, after 4, 6 and 9 of 12. The
    loss is `SelfDistillation`. Ilhan et al., ScaleFL, CVPR 2023, and its published code. Raises
    ConfigError where levels or exits do not rise or do not fit the model.
    """

    @checked("split")
    def __init__(
        self,
        levels: Annotated[
            list[Any] | None,
            null_or(RATES_AND_EXITS),
            "[rate s, number of exits h] of each level, smallest first; the classifier is the last"
            " exit; null: the published ones",
        ] = None,
        exits: Annotated[
            list[int] | None,
            null_or(many(COUNT)),
            "blocks of the whole model before each early exit; null: the published ones, in"
            " proportion",
        ] = None,
        gamma: Annotated[float, at_least(0), "weight of self-distillation; 0: none"] = 0.05,
        temperature: Annotated[float, above(0), "T, of both sides of the distillation"] = 3.0,
        reduction: Annotated[
            Literal["mean", "batchmean"],
            "of the divergence: mean over images and classes, or over images",
        ] = "mean",
        detach: Annotated[bool, "keep the teacher's gradient out"] = False,
        start: Annotated[int, COUNT, "first round with distillation"] = 1,
        scaler: Scaled = True,
        bn: BatchNorm = "batch",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        most = sum(family.blocks.values())
        rates, places = published(family.recipe, most)
        places = places if exits is None else [*exits, most]
        _check_exits(places, most)
        if levels is None and len(places) != len(rates):
            raise ConfigError(
                f"split.exits={exits} with split.levels=null: the published levels need three early"
                " exits; give split.levels as well"
            )
        table = (
            [(r, h) for h, r in enumerate(rates, start=1)]
            if levels is None
            else [(float(r), int(h)) for r, h in levels]
        )
        _check(table, places)
        self.groups = groups_of(family, Variant(exits=tuple(places[:-1])), "scalefl")
        self.sizes = [narrowed(self.groups, rate, math.floor) for rate, _ in table]
        early = tuple(places[:-1])
        specs = []
        for (rate, count), sizes in zip(table, self.sizes, strict=True):
            narrow = Variant(sizes, rate if scaler else 1.0) if rate < 1 else Variant()
            variant = Variant(narrow.sizes, narrow.scale, exits=early)
            specs.append(
                LevelSpec(
                    _name(rate, count, len(places)),
                    _first_blocks(family, places[count - 1]),
                    variant,
                )
            )
        objective = SelfDistillation(gamma, temperature, reduction, detach, start)
        super().__init__(family, specs, Variant(exits=early), Norm(bn, bn_images), objective)

    def _channels(self, level: int, phase: int) -> Mapping[str, Tensor]:
        return channels_of(self.groups, self.sizes[level], leading)


def published(recipe: str, blocks: int) -> tuple[list[float], list[int]]:
    """Return the rates and exits (the last is the end) of the published code for a kind of model,
    exits in proportion to its blocks.
    """
    if recipe == "vit":
        rates = [0.4, 0.55, 0.75, 1.0]
        shares = [4 / 12, 6 / 12, 9 / 12, 1]
    else:
        rates = [0.7, 0.7, 0.75, 1.0]
        shares = [30 / 54, 38 / 54, 46 / 54, 1]
    return rates, [round(share * blocks) for share in shares]


def _name(rate: float, exits: int, most: int) -> str:
    return f"x{exits}w{rate:g}" if exits < most or rate < 1 else f"x{exits}"


def _first_blocks(family: Family, count: int) -> list[int]:
    """Blocks of each group among the first `count` of the whole model."""
    keep = []
    for depth in family.blocks.values():
        keep.append(min(depth, count))
        count -= keep[-1]
    return keep


def _check_exits(places: Sequence[int], most: int) -> None:
    if most < 2:
        raise ConfigError(
            f"split=scalefl: the model has {most or 'no'} blocks, and needs two or more to end"
            " early; use split=none, width or rolling"
        )
    if any(a >= b for a, b in pairwise(places)):
        raise ConfigError(
            f"split.exits={places[:-1]}: list them in order, each after 1 to {most - 1} of the"
            f" model's {most} blocks"
        )


def _check(table: Sequence[tuple[float, int]], places: Sequence[int]) -> None:
    if any(h > len(places) for _, h in table):
        raise ConfigError(
            f"split.levels={table}: give [rate, exits] a level, with exits 1 to {len(places)}"
        )
    if any(a >= b for a, b in pairwise((h, rate) for rate, h in table)):
        raise ConfigError(
            f"split.levels={table}: list the levels smallest first, by exits and then by rate"
        )
    if table[-1] != (1.0, len(places)):
        raise ConfigError(
            f"split.levels={table}: the last level is the whole model; end with [1.0,"
            f" {len(places)}]"
        )

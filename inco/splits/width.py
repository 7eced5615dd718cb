"""Width splits: smaller clients hold some of each layer's channels, the first ones (HeteroFL) or a
window that moves (FedRolex).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from inco.errors import ConfigError
from inco.flat import Slice
from inco.models.base import Family, Group, Variant
from inco.seeding import generator
from inco.settings import (
    BatchNorm,
    BatchNormImages,
    MaskedLoss,
    Rates,
    Scaled,
    between,
    checked,
    null_or,
)
from inco.splits.base import LevelSpec, Norm, Relatives, class_rows
from inco.splits.objectives import MaskedCrossEntropy
from inco.types import SubModel, cross_entropy


def rate_name(rate: float) -> str:
    """Return the short name of a width: w1, w1/4, w0.7."""
    exact = Fraction(rate).limit_denominator(64)
    return f"w{exact}" if exact.numerator == 1 and math.isclose(exact, rate) else f"w{rate:g}"


def groups_of(family: Family, variant: Variant, split: str) -> dict[str, Group]:
    """Return the channel groups of a family. Raises ConfigError where it names none."""
    groups = family.groups(variant) if hasattr(family, "groups") else {}
    if not groups:
        raise ConfigError(
            f"split={split} with model={family.name}: this model names no channels that can be cut;"
            " use split=stage or isolated, or give its family `groups`"
        )
    return groups


def narrowed(
    groups: Mapping[str, Group], rate: float, rounding: Callable[[float], int] = math.ceil
) -> dict[str, int]:
    """Return the channels of each group at a rate: rounding(rate x units) units, at least one."""
    sizes: dict[str, int] = {}
    for name, g in groups.items():
        if g.of is None:
            # 0.7 * 10 is 7.000000000000001, whose ceiling is not 7
            sizes[name] = g.unit * max(1, rounding(round(rate * (g.size // g.unit), 9)))
    return sizes | {
        name: g.size // groups[g.of].size * sizes[g.of]
        for name, g in groups.items()
        if g.of is not None
    }


def channels_of(
    groups: Mapping[str, Group], sizes: Mapping[str, int], window: Callable[[int, int, str], Tensor]
) -> dict[str, Tensor]:
    """Return which channels of each group are held, int64.

    `window(n, length, name)` chooses `length` of n units.
    """
    held: dict[str, Tensor] = {}
    for name, g in groups.items():
        if g.of is None:
            units = window(g.size // g.unit, sizes[name] // g.unit, name)
            held[name] = (units[:, None] * g.unit + torch.arange(g.unit)).flatten()
    for name, g in groups.items():
        if g.of is not None:
            copies = torch.arange(g.size // groups[g.of].size)
            held[name] = (copies[:, None] * groups[g.of].size + held[g.of]).flatten()
    return held


def leading(n: int, length: int, name: str = "") -> Tensor:
    """Return the first `length` of n channels (HeteroFL)."""
    return torch.arange(length)


def rolling(n: int, length: int, start: int) -> Tensor:
    """Return the window of `length` of n channels from `start` on, around the end (FedRolex).

    All n stay in their order.
    """
    return torch.arange(n) if length == n else (start + torch.arange(length)) % n


class WidthSplit(Relatives):
    """Levels of one depth and several widths.

    Unless `masked_loss` is "off", a client leaves the classifier's rows of classes that it has no
    example of out of the average. Raises ConfigError where the levels do not rise.
    """

    title = "width"

    def __init__(
        self,
        levels: list[float],
        masked_loss: Literal["zero", "minus_inf", "off"],
        scaler: bool,
        bn: Literal["aggregated", "static", "batch"],
        bn_images: int | None,
        weighting: Literal["clients", "width"],
        family: Family,
    ) -> None:
        if any(a >= b for a, b in pairwise(levels)):
            raise ConfigError(
                f"split.levels={list(levels)}: list the widths smallest first, each once"
            )
        self.rates = list(levels)
        self.masked = masked_loss != "off"
        self.weighting = weighting
        self.groups = groups_of(family, Variant(), self.title)
        self.sizes = [narrowed(self.groups, rate) for rate in levels]
        keep = list(family.blocks.values())
        variants = [
            Variant() if rate == 1 else Variant(sizes, rate if scaler else 1.0)
            for rate, sizes in zip(levels, self.sizes, strict=True)
        ]
        specs = [
            LevelSpec(rate_name(rate), keep, variant)
            for rate, variant in zip(levels, variants, strict=True)
        ]
        objective = cross_entropy if masked_loss == "off" else MaskedCrossEntropy(masked_loss)
        super().__init__(family, specs, norm=Norm(bn, bn_images), objective=objective)

    @abstractmethod
    def _window(self, n: int, length: int, phase: int, name: str) -> Tensor:
        """Return which `length` of the n channels of a group are held, int64."""

    def _channels(self, level: int, phase: int) -> Mapping[str, Tensor]:
        return channels_of(
            self.groups,
            self.sizes[level],
            lambda n, length, name: self._window(n, length, phase, name),
        )

    def _make(self, level: int, phase: int) -> SubModel:
        sub = super()._make(level, phase)
        weight = self._shares(sub.params) if self.weighting == "width" else None
        rows = class_rows(sub.params) if self.masked else None
        return replace(sub, params=sub.params.counting(weight, rows))

    def _shares(self, params: Slice) -> Tensor:
        """Each weight's share of its layer's output channels, float64 [n]: what a client's
        coordinates count.
        """
        weights = torch.empty(params.layout.numel, dtype=torch.float64)
        for e in params.layout.entries.values():
            whole = self.params.entries[e.name].shape
            # norms and biases have no say in the published code
            counts = len(e.shape) > 1 and e.axes[0] in self.groups
            weights[e.offset : e.offset + e.numel] = e.shape[0] / whole[0] if counts else 1.0
        return weights


class Width(WidthSplit):
    """HeteroFL: a client of rate r holds the first ceil(r C) channels of every hidden layer.

    The published code measures BatchNorm's statistics anew on all training images before it scores
    ("static"). Diao et al., HeteroFL, ICLR 2021.
    """

    @checked("split")
    def __init__(
        self,
        levels: Rates,
        masked_loss: MaskedLoss = "zero",
        scaler: Scaled = True,
        bn: BatchNorm = "static",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        super().__init__(levels, masked_loss, scaler, bn, bn_images, "clients", family)

    def _window(self, n: int, length: int, phase: int, name: str) -> Tensor:
        return leading(n, length)


class Rolling(WidthSplit):
    """FedRolex: the channels that a client holds are a window that moves on by one each round,
    around the end.

    In round t (from 0) the window of a layer has channels t, t + 1, ..., modulo its width (the
    paper), or begins at -t (the published code). At random, it is a permutation drawn anew for each
    layer and round (the published code's `algo=random`; here tied layers share theirs). The
    published overlap counts clients, not rounds, and modulo the window's length. The published
    weightings `avg` and `width` are "clients" and "width" here; its `updates` equals `avg` as
    designed; as written it depends on the order of clients within a round, and is not offered. Alam
    et al., FedRolex, NeurIPS 2022.
    """

    title = "rolling"
    moving = True

    @checked("split")
    def __init__(
        self,
        levels: Rates,
        window: Annotated[
            Literal["forward", "backward", "random"],
            "how the held channels move: the paper's way, the published code's, or drawn anew each"
            " round",
        ] = "forward",
        overlap: Annotated[
            float | None,
            null_or(between(0, 1)),
            "null: the window moves by one channel a round; o: by floor(L (1 - o)) + 1 of its L"
            " channels",
        ] = None,
        weighting: Annotated[
            Literal["clients", "width"],
            "holders of a coordinate count alike, or in proportion to the channels of the layer"
            " that they hold",
        ] = "clients",
        masked_loss: MaskedLoss = "zero",
        scaler: Scaled = True,
        bn: BatchNorm = "batch",
        bn_images: BatchNormImages = None,
        *,
        family: Family,
    ) -> None:
        if overlap is not None and window == "random":
            raise ConfigError(
                f"split.overlap={overlap} with split.window={window}: an overlap is of windows that"
                " move; use split.overlap=null"
            )
        self.window = window
        self.overlap = overlap
        self._seed = 0
        super().__init__(levels, masked_loss, scaler, bn, bn_images, weighting, family)

    def initial(self, seed: int) -> tuple[Tensor, Tensor]:
        self._seed = seed  # random windows are draws of the run
        self._kept.clear()
        return super().initial(seed)

    def submodel(self, level: int, round: int) -> SubModel:
        # who holds everything never moves
        return super().submodel(level, round if self.rates[level] < 1 else 0)

    def _phase(self, round: int) -> int:
        return max(round - 1, 0)

    def _window(self, n: int, length: int, phase: int, name: str) -> Tensor:
        if self.window == "random":
            return torch.arange(n) if length == n else self._permutation(n, phase, name)[:length]
        step = 1 if self.overlap is None else math.floor(length * (1 - self.overlap)) + 1
        return rolling(n, length, phase * step if self.window == "forward" else -phase * step)

    def _permutation(self, n: int, phase: int, name: str) -> Tensor:
        number = list(self.groups).index(name)
        return torch.randperm(n, generator=generator(self._seed, "window", phase, number))

"""Width splits: smaller clients hold some of each layer's channels, the first ones (HeteroFL) or a
window that moves (FedRolex).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from inco.errors import ConfigError
from inco.flat import Slice
from inco.models.base import Family, Form, Group
from inco.seeding import generator
from inco.splits.base import Cut, Norm, Relatives, class_rows
from inco.splits.objectives import MaskedCrossEntropy
from inco.types import SubModel, cross_entropy


def rate_name(rate: float) -> str:
    """Return the short name of a width: w1, w1/4, w0.7."""
    exact = Fraction(rate).limit_denominator(64)
    return f"w{exact}" if exact.numerator == 1 and math.isclose(exact, rate) else f"w{rate:g}"


def groups_of(family: Family, form: Form, split: str) -> dict[str, Group]:
    """Return the channel groups of a family. Raises ConfigError where it names none."""
    groups = family.groups(form) if hasattr(family, "groups") else {}
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

    `levels`: rates, smallest first; a hidden layer of C channels keeps ceil(rate C). `masked_loss`:
    what becomes of the logits of classes that a client has no example of: "zero" (published),
    "minus_inf", or "off"; unless off, such a client also leaves the classifier's rows of those
    classes out of the average. `scaler`: divide activations of narrowed layers by the rate, before
    each norm. `bn`, `bn_images`: see `Norm`.
    """

    title = "width"

    def __init__(
        self,
        levels: Sequence[float],
        masked_loss: str,
        scaler: bool,
        bn: str,
        bn_images: int | None,
        weighting: str,
        family: Family,
    ) -> None:
        if (
            not levels
            or any(not 0 < rate <= 1 for rate in levels)
            or any(a >= b for a, b in pairwise(levels))
        ):
            raise ConfigError(
                f"split.levels={list(levels)}: list the widths smallest first, each above 0 and at"
                " most 1"
            )
        if weighting not in ("clients", "width"):
            raise ConfigError(f"split.weighting={weighting}: must be clients or width")
        self.rates = list(levels)
        self.masked = masked_loss != "off"
        self.weighting = weighting
        self.groups = groups_of(family, Form(), self.title)
        self.sizes = [narrowed(self.groups, rate) for rate in levels]
        keep = list(family.blocks.values())
        forms = [
            Form() if rate == 1 else Form(sizes, rate if scaler else 1.0)
            for rate, sizes in zip(levels, self.sizes, strict=True)
        ]
        cuts = [Cut(rate_name(rate), keep, form) for rate, form in zip(levels, forms, strict=True)]
        objective = MaskedCrossEntropy(masked_loss) if self.masked else cross_entropy  # type: ignore[arg-type]
        super().__init__(family, cuts, norm=Norm(bn, bn_images), objective=objective)

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
        if self.masked:
            sub = replace(sub, class_rows=class_rows(sub.params))
        return (
            sub
            if self.weighting == "clients"
            else replace(sub, importance=self._importance(sub.params))
        )

    def _importance(self, params: Slice) -> Tensor:
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
    ("static"). Diao et al., HeteroFL, ICLR 2021. Settings: see `WidthSplit`.
    """

    def __init__(
        self,
        levels: Sequence[float],
        masked_loss: str = "zero",
        scaler: bool = True,
        bn: str = "static",
        bn_images: int | None = None,
        *,
        family: Family,
    ) -> None:
        super().__init__(levels, masked_loss, scaler, bn, bn_images, "clients", family)

    def _window(self, n: int, length: int, phase: int, name: str) -> Tensor:
        return leading(n, length)


class Rolling(WidthSplit):
    """FedRolex: the channels that a client holds are a window that moves on by one each round,
    around the end.

    `window`: "forward", channels t, t + 1, ... in round t (from 0) of a layer, modulo its width
    (the paper); "backward", from -t on (the published code); "random", a permutation drawn anew for
    each layer and round (the published code's `algo=random`; here tied layers share theirs).
    `overlap`: null, the window moves by one; o in [0, 1], by floor(L (1 - o)) + 1 of its L
    channels, as the published option, which however counts clients, not rounds, and modulo L.
    `weighting`: "clients", all holders of a coordinate count alike (the published `avg`); "width",
    in proportion to the channels that they hold of the layer (`width`). Its `updates` equals `avg`
    as designed; as written it depends on the order of clients within a round, and is not offered.
    Alam et al., FedRolex, NeurIPS 2022. Other settings: see `WidthSplit`.
    """

    title = "rolling"
    moving = True

    def __init__(
        self,
        levels: Sequence[float],
        window: str = "forward",
        overlap: float | None = None,
        weighting: str = "clients",
        masked_loss: str = "zero",
        scaler: bool = True,
        bn: str = "batch",
        bn_images: int | None = None,
        *,
        family: Family,
    ) -> None:
        if window not in ("forward", "backward", "random"):
            raise ConfigError(f"split.window={window}: must be forward, backward or random")
        if overlap is not None and (window == "random" or not 0 <= overlap <= 1):
            raise ConfigError(
                f"split.overlap={overlap} with split.window={window}: null, or 0 to 1 for a window"
                " that moves; use null"
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

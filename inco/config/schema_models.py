"""The type and the range of every setting of models and splits; see `schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from inco.config.rules import (
    COUNT,
    LEVELS,
    RATES_AND_EXITS,
    WEIGHTS,
    above,
    at_least,
    between,
    many,
    null_or,
    one_of,
    ruled,
)


@dataclass
class ResNetFamily:
    blocks: list[int] = ruled(many(COUNT))
    widths: list[int] = ruled(many(COUNT))
    stem: str = ruled(one_of("imagenet", "small"))
    image_size: int | None = ruled(null_or(COUNT))
    pretrained: Any = ruled(WEIGHTS)
    projection_head: str = ruled(one_of("none", "mlp"))


@dataclass
class ViTFamily:
    depth: int = ruled(COUNT)
    dim: int = ruled(COUNT)
    heads: int = ruled(COUNT)
    patch: int = ruled(COUNT)
    image_size: int = ruled(COUNT)
    mlp_ratio: float = ruled(above(0))
    pretrained: Any = ruled(WEIGHTS)
    timm_name: str | None = MISSING
    projection_head: str = ruled(one_of("none", "mlp"))


@dataclass
class CNNFamily:
    conv_channels: list[int] = ruled(many(COUNT))
    hidden: int = ruled(COUNT)
    kernel: int = ruled(COUNT)
    padding: int = ruled(at_least(0))
    image_size: int | None = ruled(null_or(COUNT))


@dataclass
class Whole:
    bn: str = ruled(one_of("aggregated", "static", "batch"))
    bn_images: int | None = ruled(null_or(at_least(2)))


@dataclass
class Depth(Whole):
    levels: list[Any] = ruled(LEVELS)


@dataclass
class Isolated(Whole):
    levels: list[Any] | None = ruled(null_or(LEVELS))


@dataclass
class Inclusive(Isolated):
    beta: float = ruled(between(0, 1, open_high=True))


@dataclass
class Width(Whole):
    levels: list[float] = ruled(many(between(0, 1, open_low=True)))
    masked_loss: str = ruled(one_of("zero", "minus_inf", "off"))
    scaler: bool = MISSING


@dataclass
class Rolling(Width):
    window: str = ruled(one_of("forward", "backward", "random"))
    overlap: float | None = ruled(null_or(between(0, 1)))
    weighting: str = ruled(one_of("clients", "width"))


@dataclass
class ScaleFL(Whole):
    levels: list[Any] | None = ruled(null_or(RATES_AND_EXITS))
    exits: list[int] | None = ruled(null_or(many(COUNT)))
    gamma: float = ruled(at_least(0))
    temperature: float = ruled(above(0))
    reduction: str = ruled(one_of("mean", "batchmean"))
    detach: bool = MISSING
    start: int = ruled(COUNT)
    scaler: bool = MISSING

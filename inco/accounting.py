"""What a client of each level costs: parameters, bytes each way, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from inco.algorithms.fedavg import Algorithm
from inco.types import SubModel

_BYTES = 4  # of a number on its way, float32


@dataclass(frozen=True)
class LevelCost:
    """One client of a level: `params` parameters; bytes down and up in a round, BatchNorm's buffers and the algorithm's vectors
    included; floating-point operations of one image's forward pass in evaluation (`flops`) and in training, with early heads
    (`train_flops`). An operation is a multiplication or an addition, so a multiply-add counts two; normalisations and activations count
    none.
    """

    params: int
    down_bytes: int
    up_bytes: int
    flops: int
    train_flops: int


def level_cost(sub: SubModel, shape: tuple[int, int, int], algorithm: Algorithm) -> LevelCost:
    """Count what a level costs on images of a shape [C, H, W] with an algorithm."""
    params, buffers = sub.params.layout.numel, sub.buffers.layout.numel
    train_flops, heads = _count(sub, shape, training=True)
    return LevelCost(
        params,
        _BYTES * (params * (1 + len(algorithm.downloads)) + buffers),
        _BYTES * (params * len(algorithm.uploads) + buffers),
        forward_flops(sub, shape) if heads > 1 else train_flops,
        train_flops,
    )


def forward_flops(sub: SubModel, shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of one image's forward pass: two for each multiply-add, as torch counts them."""
    return _count(sub, shape, training=False)[0]


def _count(sub: SubModel, shape: tuple[int, int, int], training: bool) -> tuple[int, int]:
    """Return operations of one image, and the number of heads that have spoken."""
    with torch.device("meta"):
        model = sub.build().train(training)
        for module in model.modules():  # torch counts none for them, and is slow to say so
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.Identity())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            output = model(torch.empty(1, *shape))
    return counter.get_total_flops(), 1 + len(output.exits)

"""What a client of each level costs: parameters, bytes each way, floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inco.algorithms.fedavg import Algorithm
from inco.fast.shapes import unfilled
from inco.types import SubModel

_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # and the position of the first factor
_BYTES = 4  # of a number on its way, float32


@dataclass(frozen=True)
class LevelCost:
    """One client of a level: `params` parameters; bytes down and up in a round, BatchNorm's buffers
    and the algorithm's vectors included; floating-point operations of one image's forward pass in
    evaluation (`flops`) and in training, with early heads (`train_flops`). An operation is a
    multiplication or an addition, so a multiply-add counts two; normalisations and activations
    count none.
    """

    params: int
    down_bytes: int
    up_bytes: int
    flops: int
    train_flops: int


def level_cost(sub: SubModel, shape: tuple[int, int, int], algorithm: Algorithm) -> LevelCost:
    """Count what a level costs on images of a shape [C, H, W] with an algorithm."""
    params = sub.params.layout.numel
    buffers = sub.buffers.layout.numel
    sent = [sub.held(upload, name).layout.numel for name, upload in algorithm.uploads.items()]
    train_flops, heads = _count(sub, shape, training=True)
    return LevelCost(
        params,
        _BYTES * (params * (1 + len(algorithm.downloads)) + buffers),
        _BYTES * (sum(sent) + buffers),
        forward_flops(sub, shape) if heads > 1 else train_flops,
        train_flops,
    )


def forward_flops(sub: SubModel, shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of one image's forward pass: two for each multiply-add,
    as torch counts them.
    """
    return _count(sub, shape, training=False)[0]


def _count(sub: SubModel, shape: tuple[int, int, int], training: bool) -> tuple[int, int]:
    """Return operations of one image, and the number of heads that have spoken."""
    with unfilled():
        model = sub.build().train(training)
    for module in model.modules():
        # as it is defined, whatever way a subclass has of computing it
        if isinstance(module, nn.Conv2d):
            module.forward = MethodType(nn.Conv2d.forward, module)  # type: ignore[method-assign]
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):  # counts none, and cannot train on one pixel
                setattr(module, name, nn.Identity())
    with _Counter() as counter, torch.no_grad():
        output = model(torch.zeros(1, *shape))
    return counter.total, 1 + len(output.exits)


class _Counter(TorchDispatchMode):
    """Adds up two operations for each multiply-add of matrix products, convolutions and attention.

    torch.utils.flop_counter counts the same (a test compares them), but imports a compiler and
    sympy to do so: 150 MB and 1 s a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; the base class would import the compiler to say so

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _PRODUCTS:
            left, right = args[_PRODUCTS[name] :][:2]
            self.total += 2 * left.numel() * right.shape[-1]
        elif name == "convolution":
            image = args[0]
            weight = args[1]
            transposed = args[6]
            self.total += 2 * (image if transposed else out).numel() * weight[0].numel()
        elif name.startswith("_scaled_dot_product"):
            query, key, value = args[:3]
            self.total += (
                2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            )
        return out

"""Convolutions, matrix products and attention of a training step, beside float64."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inco.fast.bound import BoundModel
from inco.fast.cuda_graphs import plain_pass
from inco.flat import layouts_of
from inco.models.cnn import CNNFamily
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.types import ClientTask, Objective, cross_entropy

# How far rounding may take a product from float64, as a part of what its terms amount to.
FARTHEST = {"fp32": 1e-4, "bf16": 3e-2}
LINEAR = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
ATTENTION = "_scaled_dot_product_"


class Beside(TorchDispatchMode):
    """Computes every product again in float64 without oneDNN, and keeps the largest distance."""

    def __init__(self) -> None:
        super().__init__()
        self.farthest = 0.0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        name = func.overloadpacket.__name__
        if name not in LINEAR and not name.startswith(ATTENTION):
            return out
        with torch.backends.mkldnn.flags(enabled=False):
            exact = func(*_each(args, Tensor.double), **named)
            terms = exact
            if name in LINEAR:
                # what the terms amount to: BatchNorm makes sums of which next to nothing is left
                terms = func(*_each(args, lambda t: t.double().abs()), **named)
        results = zip(_floats(out), _floats(exact), _floats(terms), strict=True)
        self.farthest = max(self.farthest, *(_distance(*each) for each in results))
        return out


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _each(args: Sequence[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    return [change(a) if _is_float(a) else a for a in args]


def _floats(out: Any) -> list[Tensor]:
    return [o for o in (out if isinstance(out, tuple) else (out,)) if _is_float(o)]


def _distance(result: Tensor, exact: Tensor, terms: Tensor) -> float:
    """Return how far a result is from the exact one, relative to `terms`; infinity for NaN."""
    gap = float(torch.linalg.vector_norm(result.double() - exact))
    return inf if isnan(gap) else gap / max(float(torch.linalg.vector_norm(terms)), 1e-30)


def step_distance(
    bound: BoundModel,
    x: Tensor,
    y: Tensor,
    precision: str,
    objective: Objective = cross_entropy,
    classes: Tensor | None = None,
) -> float:
    """Return how far the products of a training step on a batch, forward and backward, are from
    float64.

    The gradient of the whole model would say less: rounding switches ReLUs over, whoever computes
    it.
    """
    task = ClientTask(0, 1, 0, torch.arange(len(y)), classes)

    def step() -> None:
        plain_pass(bound.model, objective, x, y, task, precision)[1].backward()

    step()  # as in training: nothing between the operations
    with Beside() as beside:
        step()
    return beside.farthest


def _models() -> Iterator[tuple[tuple[int, int, int], nn.Module]]:
    """Yield models and the shape of their images: narrow and wide, small maps and large ones."""
    blocks = [1, 1, 1, 1]
    for widths in ([2, 4, 4, 8], [12, 16, 20, 24], [16, 32, 64, 128]):
        for shape in ((1, 8, 8), (3, 64, 64)):
            yield shape, ResNetFamily(blocks, widths, "small", shape=shape, num_classes=5).build()
    shape = (3, 32, 32)
    yield shape, ResNetFamily(blocks, [64, 128, 256, 512], shape=shape, num_classes=5).build()
    yield (1, 28, 28), CNNFamily([16, 32], 64, shape=(1, 28, 28), num_classes=5).build()
    yield shape, ViTFamily(2, 64, 4, 8, 32, shape=shape, num_classes=5).build()


def look() -> dict[str, float]:
    """Return the farthest product by precision, over all models."""
    farthest = dict.fromkeys(FARTHEST, 0.0)
    stream = torch.Generator().manual_seed(0)
    for shape, model in _models():
        bound = BoundModel(model.train(), *layouts_of(model))
        x = torch.randn(4, *shape, generator=stream).contiguous(memory_format=torch.channels_last)
        y = torch.randint(5, (4,), generator=stream)
        for precision in farthest:
            farthest[precision] = max(farthest[precision], step_distance(bound, x, y, precision))
    return farthest


if __name__ == "__main__":
    # torch says so of any use of its switch for oneDNN
    warnings.filterwarnings("ignore", message="TF32 acceleration")
    torch.set_num_threads(1)
    json.dump(look(), sys.stdout)

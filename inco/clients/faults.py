"""What a library is known to compute wrongly on some machines, found in a model before it is
trained.

Two faults of oneDNN (seen in torch 2.15, and likely in earlier ones), both with channels-last
inputs, as all are here:

- The weight gradient of a strided 1x1 convolution whose input has fewer channels than a register
  holds floats is gathered past the end of its workspace (uxlfoundation/oneDNN#6035): the process
  dies of heap corruption, now or later, or goes on with a wrong gradient.
- In bfloat16 on AVX-512, the output of a convolution that covers its whole input in one step of
  that length is wrong for some numbers of channels.

Models of this project reach neither (`models/pointwise.py`, `models/vit.py`);
tests/machines/sweep.py looks for others of the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from inco.errors import ConfigError
from inco.fast.bound import BoundModel
from inco.fast.cuda_graphs import plain_pass
from inco.fast.shapes import unfilled
from inco.machine import instruction_set
from inco.types import ClientTask, SubModel

# By instruction set: floats in a register, and the largest output map, in pixels, that is gathered
# in one piece, which is safe. AVX-512 takes pieces as long as fit into the cache; with the smallest
# ones (32 KiB) 512 pixels do.
_REGISTERS = {"AVX2": (8, 0), "AVX512": (16, 512)}


def refuse_faulty(
    sub: SubModel, shape: tuple[int, int, int], num_classes: int, precision: str
) -> None:
    """Take the gradient of one step on two blank images of `shape` [C, H, W].

    ConfigError where it would meet a known fault.
    """
    x = torch.zeros(2, *shape).contiguous(memory_format=torch.channels_last)
    y = torch.arange(2) % num_classes
    anybody = ClientTask(
        0, 1, sub.level, torch.arange(2), torch.ones(num_classes, dtype=torch.bool)
    )
    with torch.random.fork_rng(devices=[]):
        with unfilled():
            model = sub.build().train()
        # laid out in memory as in training
        bound = BoundModel(model, sub.params.layout, sub.buffers.layout)
        with _Refusing(sub.name, bound.model):
            plain_pass(bound.model, sub.objective, x, y, anybody, precision)[1].backward()


class _Refusing(TorchDispatchMode):
    """Looks at every operation before it is computed, those of the backward pass included."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self._name = name
        self._names = {p.data_ptr(): n for n, p in model.named_parameters()}
        self._shapes = {p.shape: n for n, p in model.named_parameters()}

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
        if func is torch.ops.aten.convolution_backward.default and gathers_too_far(*args):
            _, x, weight, _, stride = args[:5]
            into = x.shape[1]
            step = stride[0]
            self._refuse(
                f"a 1x1 convolution with stride {step} on {into} channels of"
                f" {x.shape[2]}x{x.shape[3]} pixels",
                weight,
                f"Its weight gradient corrupts memory on this processor ({instruction_set()};"
                f" uxlfoundation/oneDNN#6035). Choose the pixels first: conv(x[:, :, ::{step},"
                f" ::{step}]) with stride 1 is the same, and so is"
                f" inco.models.pointwise.Conv1x1({into}, {weight.shape[0]}, {step})",
            )
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and covers_in_one_step(out, *args):
            side = args[1].shape[2]
            self._refuse(
                f"a {side}x{side} convolution that covers its whole input with stride {args[3][0]},"
                " in bfloat16",
                args[1],
                f"oneDNN computes it wrongly on this processor ({instruction_set()}). As it has one"
                " output pixel, stride 1 is the same",
            )
        return out

    def _refuse(self, what: str, weight: Tensor, fix: str) -> None:
        # autocast has made a copy
        where = self._names.get(weight.data_ptr()) or self._shapes.get(weight.shape, "a part")
        raise ConfigError(f"model: {where} of {self._name} is {what}. {fix}")


def gathers_too_far(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
) -> bool:
    """Tell whether a convolution's backward pass meets the first fault here; arguments of
    aten.convolution_backward.
    """
    lanes, safe = _REGISTERS.get(instruction_set(), (0, 0))
    return (
        _by_onednn(x, weight)
        and x.dtype == torch.float32
        and bool(wanted[1])
        and not transposed
        and groups == 1
        and x.shape[1] < lanes
        and gradient.shape[2:].numel() > safe
        and tuple(weight.shape[2:]) == (1, 1)
        and max(stride) > 1
        and max(padding) == 0
        and all(
            out * step == side
            for out, step, side in zip(gradient.shape[2:], stride, x.shape[2:], strict=True)
        )
    )


def covers_in_one_step(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> bool:
    """Tell whether a convolution with output `out` meets the second fault here; arguments of
    aten.convolution.
    """
    return (
        instruction_set() == "AVX512"
        and _by_onednn(x, weight)
        and x.dtype == torch.bfloat16
        and not transposed
        and groups == 1
        and out.shape[2:].numel() == 1
        and max(stride) > 1
        and max(padding) == 0
        and weight.shape[2:] == x.shape[2:]
        and weight.shape[1] * weight.shape[3] >= 64  # right below
    )


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether oneDNN gets a convolution of images, and gets it channels-last, which torch
    decides by the strides of either.
    """
    return (
        _onednn_enabled()
        and x.device.type == "cpu"
        and x.dim() == 4
        and (_channels_last(x) or _channels_last(weight))
    )


def _onednn_enabled() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _channels_last(t: Tensor) -> bool:
    return t.stride(1) == 1 and t.stride(3) == t.shape[1]

"""3x3 convolutions on maps of one or four pixels, as matrix products of the taps that meet a pixel.

With padding 1 a 1x1 map meets one of nine taps, and each output of a 2x2 map four of them.
Convolution libraries on CPUs multiply or at least move the others too: the last stages of a ResNet
on 32x32 images take most of its time that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_CHANNELS = 256  # in and out: for fewer, the library's convolution is as fast
_LARGEST_MAP = 2  # side in pixels


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and without bias: [m, into, h, w] -> [m, out, h/stride,
    w/stride].
    """

    def __init__(self, into: int, out: int, stride: int = 1) -> None:
        super().__init__(into, out, 3, stride, 1, bias=False)
        self._wide = min(into, out) >= _CHANNELS

    def forward(self, x: Tensor) -> Tensor:
        if (
            self._wide
            and x.shape[2] <= _LARGEST_MAP
            and x.shape[3] <= _LARGEST_MAP
            and x.device.type == "cpu"
        ):
            return _ByTaps.apply(x, self.weight, self.stride[0])
        return super().forward(x)


class _ByTaps(torch.autograd.Function):
    """The convolution, one product for each output pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        # [m, h, w, into], [out, 3, 3, into]
        pixels = _last(x).to(dtype)
        taps = _last(weight)
        ctx.save_for_backward(pixels, weight)
        ctx.stride = stride
        ctx.dtype = x.dtype
        sides = [-(-n // stride) for n in x.shape[2:]]
        out = pixels.new_empty(len(x), *sides, len(weight))
        for at, rows, cols, tap_rows, tap_cols in _meetings(x.shape[2], x.shape[3], stride):
            product = (
                _flat(pixels[:, rows, cols]) @ _flat(taps[:, tap_rows, tap_cols]).to(dtype).t()
            )
            out[:, at[0], at[1]] = product
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        pixels, weight = ctx.saved_tensors
        given = _last(gradients[0]).to(pixels.dtype)
        taps = _last(weight)
        wanted_x, wanted_weight, _ = ctx.needs_input_grad
        to_x = torch.zeros_like(pixels) if wanted_x else None
        to_weight = torch.zeros_like(weight) if wanted_weight else None
        for at, rows, cols, tap_rows, tap_cols in _meetings(
            pixels.shape[1], pixels.shape[2], ctx.stride
        ):
            dy = given[:, at[0], at[1]]
            met = pixels[:, rows, cols]
            if to_x is not None:
                to_x[:, rows, cols] += (
                    dy @ _flat(taps[:, tap_rows, tap_cols]).to(dy.dtype)
                ).view_as(met)
            if to_weight is not None:
                part = _last(to_weight)[:, tap_rows, tap_cols]
                part += (dy.t() @ _flat(met)).view(part.shape)
        return None if to_x is None else to_x.to(ctx.dtype).permute(0, 3, 1, 2), to_weight, None


def _meetings(
    height: int, width: int, stride: int
) -> Iterator[tuple[tuple[int, int], slice, slice, slice, slice]]:
    """Yield each output pixel with the input rows and columns that it sees, and the taps' rows and
    columns that meet them.
    """
    for i in range(0, height, stride):
        for j in range(0, width, stride):
            rows = slice(max(i - 1, 0), min(i + 2, height))
            cols = slice(max(j - 1, 0), min(j + 2, width))
            taps = (
                slice(rows.start - i + 1, rows.stop - i + 1),
                slice(cols.start - j + 1, cols.stop - j + 1),
            )
            yield (i // stride, j // stride), rows, cols, *taps


def _last(x: Tensor) -> Tensor:
    """Put the second dimension last: [a, b, h, w] -> [a, h, w, b]."""
    return x.permute(0, 2, 3, 1)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)

"""Max-pooling of 2x2 pixels, fast where a model is scored on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaxPool2x2(nn.MaxPool2d):
    """The maximum of each 2x2 pixels: [m, c, h, w] -> [m, c, h/2, w/2], rounded down.

    The library also says where each maximum stands, which only a backward pass needs. Without one,
    on a CPU and channels-last, three maxima of shifted views give the same values four times
    faster.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2] // 2 * 2
        width = x.shape[3] // 2 * 2
        tracked = torch.is_grad_enabled() and x.requires_grad
        if (
            tracked
            or x.device.type != "cpu"
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(x)
        rows = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])

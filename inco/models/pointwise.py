"""1x1 convolutions with a stride, as a choice of pixels and a plain 1x1 convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution of every `stride`-th pixel, without bias.

    On a CPU the pixels are chosen first: the same products and sums. The weight gradient of
    oneDNN's own strided form writes past its workspace where the input is channels-last and has
    fewer channels than a register holds, and may be wrong without a word
    (uxlfoundation/oneDNN#6035; `inco.clients.faults` finds it in other models).
    """

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__(into, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        # the mean over one pixel is that pixel
        return F.conv2d(F.avg_pool2d(x, 1, self.stride), self.weight)

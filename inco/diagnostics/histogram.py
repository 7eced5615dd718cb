"""Histograms that add up: one set of bins for all tensors, rounds, workers and runs.

Bins are equally wide in log |x| on both sides of zero: deltas of 1e-8 and of 1 are counted with the
same relative width, and no range has to be known before. Counts are whole numbers, so their sums do
not depend on the order.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 1e-9 to 1e2; what is smaller falls into the middle bin, what is larger into the outermost
SMALLEST = -9
LARGEST = 2
PER_DECADE = 20


def edges() -> Tensor:
    """Return the edges of the bins, float32 [bins + 1], symmetric around zero."""
    exponents = (
        torch.arange((LARGEST - SMALLEST) * PER_DECADE + 1, dtype=torch.float64) / PER_DECADE
        + SMALLEST
    )
    side = (10.0**exponents).float()
    return torch.cat([-side.flip(0), side])


def count(values: Tensor, at: Tensor) -> Tensor:
    """Return how many values fall in each bin of the edges `at`, int64 [bins].

    A value on an edge counts above it.
    """
    place = torch.bucketize(values.detach().flatten().contiguous(), at, right=True) - 1
    return torch.bincount(place.clamp_(0, len(at) - 2), minlength=len(at) - 1)

"""Measures of finished models: distance of features by capacity, loss around the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def separation(features: Tensor, owner: Tensor) -> float:
    """Return how far features [n, d] of different owners (int [n]) lie apart: 1 or so where they
    are mixed, towards 0 where they part.

    For each point, its mean distance to the others of its owner, divided by that to the points of
    all other owners; the mean over points. NaN where there is one owner, or no distance.
    """
    distances = torch.cdist(
        features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    same = owner[:, None] == owner[None, :]
    others = same.sum(1) - 1  # without itself, which is at distance 0
    within = (distances * same).sum(1) / others
    between = (distances * ~same).sum(1) / (~same).sum(1)
    return float((within / between).mean())


def filter_normalised(tensors: Mapping[str, Tensor], stream: torch.Generator) -> dict[str, Tensor]:
    """Return a random direction for each tensor: Gaussian, with each filter as long as the tensor's
    own.

    A filter is what makes one output channel: an entry of the first dimension. Vectors (biases,
    parameters of norms) do not move. Li et al., Visualizing the Loss Landscape of Neural Nets,
    NeurIPS 2018, Section 4.
    """
    out = {}
    for name, own in tensors.items():
        drawn = torch.randn(own.shape, generator=stream, device=stream.device).to(own)
        if own.ndim < 2:
            out[name] = torch.zeros_like(own)
            continue
        lengths = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (own, drawn)]
        out[name] = drawn * (lengths[0] / lengths[1].clamp(min=1e-10)).view(
            -1, *[1] * (own.ndim - 1)
        )
    return out


def surface(
    loss: Callable[[Tensor], float], centre: Tensor, one: Tensor, other: Tensor, at: Sequence[float]
) -> Tensor:
    """Return the loss at centre + a * one + b * other for all a, b of `at`: [a, b], float64."""
    rows = [[loss(centre + a * one + b * other) for b in at] for a in at]
    return torch.tensor(rows, dtype=torch.float64)

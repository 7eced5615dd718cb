"""The loss around a model's weights, over two random directions.

Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inco.clients.trainer import Batch
from inco.diagnostics.features import filter_normalised, surface
from inco.fast.bound import BoundModel
from inco.paper.features.rebuild import Rebuilt, level_of
from inco.seeding import generator

RINGS = (0.2, 0.5, 1.0)  # of the span: where the table has the loss


def landscape(
    rebuilt: Rebuilt, steps: int, span: float, images: int, capacity: str | None
) -> dict[str, np.ndarray]:
    """Return the arrays of landscape.npz: `loss` [steps, steps] at w + a * d1 + b * d2; `at`: a, b.

    Statistics of BatchNorm stay those of the centre, unless a split takes them from each batch.
    """
    level = level_of(rebuilt, capacity)
    bound = rebuilt.bound(level)
    layout = rebuilt.submodel(level).params.layout
    centre = bound.w.clone()

    def direction(axis: int) -> Tensor:
        stream = generator(rebuilt.seed, "landscape", axis)
        return layout.pack(
            filter_normalised(layout.views(centre), stream), torch.zeros_like(centre)
        )

    at = np.linspace(-span, span, steps)
    at[steps // 2] = 0.0
    batches = rebuilt.batches(_chosen(rebuilt, images))
    loss_at = _loss_of(bound, batches, rebuilt)
    loss = surface(loss_at, centre, direction(1), direction(2), at.tolist())
    bound.w.copy_(centre)
    rebuilt.release(bound.model)
    return {
        "loss": loss.numpy(),
        "at": at,
        "capacity": np.array(rebuilt.name(level)),
        "images": np.array(sum(len(y) for _, y in batches)),
        "round": np.array(rebuilt.state.round),
        "title": np.array(rebuilt.title),
    }


def _chosen(rebuilt: Rebuilt, images: int) -> Tensor:
    """Return positions of test images, in scoring order: all, or a sample by the seed alone."""
    order = rebuilt.evaluator.order
    if images >= len(order):
        return order
    shuffled = torch.randperm(len(order), generator=generator(rebuilt.seed, "landscape_images"))
    return order[shuffled[:images].sort().values]


def _loss_of(
    bound: BoundModel, batches: list[Batch], rebuilt: Rebuilt
) -> Callable[[Tensor], float]:
    """Return a function of the weights [n]: the model's mean cross-entropy on the batches."""

    @torch.no_grad()
    def at(w: Tensor) -> float:
        bound.w.copy_(w)
        total = 0.0
        seen = 0
        for x, y in batches:
            with rebuilt.autocast():
                logits = bound.model(x).logits
            total += float(F.cross_entropy(logits.float(), y, reduction="sum").double())
            seen += len(y)
        return total / seen

    return at


def rings(loss: np.ndarray, at: np.ndarray) -> list[tuple[float, float, float]]:
    """Return distance, mean and largest loss on squares around the centre, at about `RINGS`."""
    half = len(at) // 2
    far = np.maximum.outer(*[np.abs(np.arange(len(at)) - half)] * 2)
    steps = dict.fromkeys(max(1, int(half * ring + 0.5)) for ring in RINGS)
    return [
        (float(at[half + k]), float(loss[far == k].mean()), float(loss[far == k].max()))
        for k in steps
    ]

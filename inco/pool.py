"""A worker's models: one bound model and one optimizer for each level, kept for the whole run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from inco.flat import BoundModel
from inco.local import Local
from inco.types import SubModel


@dataclass(frozen=True, eq=False)
class Bench:
    """What training one level needs: the bound model and the optimizer of its flat vector."""

    bound: BoundModel
    optimizer: torch.optim.Optimizer


class ModelPool:
    """Bound models by level. The shape of a level never changes, though the coordinates that it holds may from round to round."""

    def __init__(self, local: Local, device: torch.device | str) -> None:
        self._local, self.device = local, device
        self._benches: dict[int, Bench] = {}

    def get(self, sub: SubModel) -> Bench:
        """Return the level's model, built on first use."""
        if sub.level not in self._benches:
            bound = BoundModel(sub.build(), sub.params.layout, sub.buffers.layout, self.device)
            flat = nn.Parameter(bound.w)
            flat.grad = bound.g
            self._benches[sub.level] = Bench(bound, self._local.optimizer(flat))
        return self._benches[sub.level]


def forward_flops(sub: SubModel, shape: tuple[int, int, int]) -> int:
    """Return the floating-point operations of one image's forward pass: two for each multiply-add, as torch counts them."""
    with torch.device("meta"):
        model = sub.build().eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *shape))
    return counter.get_total_flops()

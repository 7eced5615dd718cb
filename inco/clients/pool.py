"""A worker's models: one bound model and one optimizer for each level, kept for the whole run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inco.clients.local import Local, Optimizer
from inco.flat import BoundModel
from inco.types import SubModel


@dataclass(frozen=True, eq=False)
class Bench:
    """What training one level needs: the bound model and the optimizer of its flat vector."""

    bound: BoundModel
    optimizer: Optimizer


class ModelPool:
    """Bound models by level. The shape of a level never changes, though the coordinates that it
    holds may from round to round.

    `largest`: parameters of the largest level. Levels are used one at a time, so they share the
    memory of parameters and gradients.
    """

    def __init__(self, local: Local, device: torch.device | str, largest: int = 0) -> None:
        self._local = local
        self.device = torch.device(device)
        # parameters and gradients of whichever level is at work
        self._memory = torch.zeros(2, largest, device=device)
        self._benches: dict[int, Bench] = {}
        self._frozen: dict[tuple[int, str], BoundModel] = {}

    def get(self, sub: SubModel) -> Bench:
        """Return the level's model, built on first use."""
        if sub.level not in self._benches:
            fits = sub.params.layout.numel <= self._memory.shape[1]
            memory = (self._memory[0], self._memory[1]) if fits else None
            bound = BoundModel(
                sub.build(), sub.params.layout, sub.buffers.layout, self.device, memory
            )
            flat = nn.Parameter(bound.w)
            flat.grad = bound.g
            self._benches[sub.level] = Bench(bound, self._local.optimizer(flat))
        return self._benches[sub.level]

    def frozen(self, sub: SubModel, role: str, w: Tensor, b: Tensor) -> nn.Module:
        """Return the level's model of a role, built on first use, that holds `w` [n] and `b`, for
        evaluation without gradients.
        """
        key = (sub.level, role)
        if key not in self._frozen:
            model = sub.build().requires_grad_(False).eval()
            self._frozen[key] = BoundModel(
                model, sub.params.layout, sub.buffers.layout, self.device
            )
        self._frozen[key].set(w.to(self.device), b.to(self.device))
        return self._frozen[key].model

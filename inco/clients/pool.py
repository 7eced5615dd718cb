"""A worker's models: one bound model and one optimizer for each level, kept for the whole run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inco.clients.local import Local, Optimizer
from inco.fast.bound import BoundModel
from inco.types import SubModel


@dataclass(frozen=True, eq=False)
class PooledModel:
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
        # (each starts on a multiple of 256 bytes, for kernels that read four numbers at once)
        self._memory = torch.zeros(2, -(-largest // 64) * 64, device=device)
        self._models: dict[int, PooledModel] = {}
        self._frozen: dict[tuple[int, str], BoundModel] = {}

    def get(self, sub: SubModel) -> PooledModel:
        """Return the level's model, built on first use."""
        if sub.level not in self._models:
            fits = sub.params.layout.numel <= self._memory.shape[1]
            memory = (self._memory[0], self._memory[1]) if fits else None
            bound = BoundModel(
                _built(sub), sub.params.layout, sub.buffers.layout, self.device, memory
            )
            flat = nn.Parameter(bound.w)
            flat.grad = bound.g
            self._models[sub.level] = PooledModel(bound, self._local.optimizer(flat))
        return self._models[sub.level]

    def frozen(self, sub: SubModel, role: str, w: Tensor, b: Tensor) -> nn.Module:
        """Return the level's model of a role, built on first use, that holds `w` [n] and `b`, for
        evaluation without gradients.
        """
        key = (sub.level, role)
        if key not in self._frozen:
            model = _built(sub).requires_grad_(False).eval()
            self._frozen[key] = BoundModel(
                model, sub.params.layout, sub.buffers.layout, self.device
            )
        self._frozen[key].set(w.to(self.device), b.to(self.device))
        return self._frozen[key].model


def _built(sub: SubModel) -> nn.Module:
    """Build a level's model; its own first weights, which nobody uses, are drawn aside, as dropout
    must not depend on who meets a level first.
    """
    with torch.random.fork_rng(devices=[]):
        return sub.build()

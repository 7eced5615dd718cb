"""A model bound to flat vectors: loading a client is one copy, reading its result is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inco.flat import Layout, Slice


class BoundModel:
    """A model whose parameters, gradients and floating-point buffers are views of flat vectors.

    `w`, `g`: [n] parameters and gradients; `b`: buffers. Loading a client is one copy, reading its
    result is none. `memory`: two vectors of n elements or more to live in, which models that are
    never used at the same time may share.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Layout,
        buffers: Layout,
        device: torch.device | str = "cpu",
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.model = model.to(device)
        self.params = params
        self.buffers = buffers
        dtype = next(model.parameters()).dtype
        w, g = memory or torch.zeros(2, params.numel, device=device, dtype=dtype).unbind()
        self.w = w.narrow(0, 0, params.numel)
        self.g = g.narrow(0, 0, params.numel)
        self.b = torch.zeros(buffers.numel, device=device, dtype=dtype)
        for name, p in model.named_parameters():
            if name not in params.entries:  # frozen: not the server's business
                continue
            params.view(self.w, name).copy_(p.data)
            p.data = params.view(self.w, name)
            p.grad = params.view(self.g, name)
        self._bind_counters()
        for name, buffer in model.named_buffers():
            if not buffers.entries[name].integer:
                self._owner(name)._buffers[_leaf(name)] = buffers.view(self.b, name).copy_(buffer)

    def _owner(self, name: str) -> nn.Module:
        return self.model.get_submodule(name.rpartition(".")[0])

    def _bind_counters(self) -> None:
        """Let the model's integer buffers be views of one vector, which is copied from and to `b`
        at once.
        """
        names = [name for name, e in self.buffers.entries.items() if e.integer]
        own = dict(self.model.named_buffers())
        whole = [own[name].long().flatten() for name in names]
        device = self.b.device
        self._counters = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *whole])
        places = [self.buffers.entries[name] for name in names]
        at = [torch.arange(e.offset, e.offset + e.numel) for e in places]
        self._counters_at = torch.cat([torch.empty(0, dtype=torch.int64), *at]).to(device)
        self.b.index_copy_(0, self._counters_at, self._counters.to(self.b.dtype))
        parts = self._counters.split([e.numel for e in places])
        self._batch_counters: list[tuple[_BatchNorm, Tensor]] = []
        for name, part in zip(names, parts, strict=True):
            owner = self._owner(name)
            owner._buffers[_leaf(name)] = part.view(own[name].shape)
            if isinstance(owner, _BatchNorm) and owner.momentum is not None:
                self._batch_counters.append((owner, part.view(own[name].shape)))

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Keep BatchNorm from counting its batches, on which nothing depends: an operation a layer
        in every training step. `count_batches` makes up for it.
        """
        for norm, _ in self._batch_counters:
            norm.num_batches_tracked = None
        try:
            yield
        finally:
            for norm, counter in self._batch_counters:
                norm.num_batches_tracked = counter

    def count_batches(self, number: int) -> None:
        """Add a number of batches to BatchNorm's counters."""
        counters = [counter for _, counter in self._batch_counters]
        if counters:
            torch._foreach_add_(counters, number)

    def load(self, w: Tensor, b: Tensor, params: Slice, buffers: Slice) -> None:
        """Fill the model with its slice of the server's parameters `w` [P] and buffers `b` [B]."""
        params.gather(w, self.w)
        self.set_buffers(buffers.gather(b, torch.empty_like(self.b)))

    def set(self, w: Tensor, b: Tensor) -> None:
        """Fill the model with its own vectors [n] and buffers."""
        self.w.copy_(w)
        self.set_buffers(b)

    def set_buffers(self, b: Tensor) -> None:
        """Set the buffers, counters included."""
        self.b.copy_(b)
        if len(self._counters):
            self._counters.copy_(self.b.index_select(0, self._counters_at))

    def read_buffers(self) -> Tensor:
        """Return the buffers as they are now, counters included."""
        if len(self._counters):
            self.b.index_copy_(0, self._counters_at, self._counters.to(self.b.dtype))
        return self.b


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]

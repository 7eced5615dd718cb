"""`diagnostics=gradients`: distributions and cross-layer products of a round's updates.

For the paper's Figures 2, 3, 9 and Table 4. The paper calls a round's deltas gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from inco.diagnostics import Deltas, Gather, Measured, Periodic, Subject
from inco.diagnostics.histogram import count, edges
from inco.errors import ConfigError
from inco.settings import LAYERS, Every, at_least, checked
from inco.types import ServerStep


class Gradients(Periodic):
    """Histograms of deltas and of the aggregated update, its norms, and theta and beta.

    Of an update with more than `values` numbers the same columns are kept in every run. Metrics of
    a layer are there where somebody has sent it. Chan et al., ICLR 2024, Internal Cross-layer
    Gradients, Section 2.2 and Theorem 3.1.
    """

    kind = "gradients"
    watched = frozenset({"clients", "server"})

    @checked("diagnostics")
    def __init__(
        self,
        every: Every,
        layers: Annotated[
            str | list[str],
            LAYERS,
            "whose updates: auto, those of InCo's cross-layer pairs, or names",
        ] = "auto",
        pairs: Annotated[
            Literal["official", "paper"],
            "official: the published code's; paper: the first layer of a stage with all later ones",
        ] = "official",
        values: Annotated[
            int,
            at_least(0),
            "numbers kept of each layer's update, to compare two runs with; 0: none",
        ] = 16384,
    ) -> None:
        self.every = every
        self.layers = layers
        self.style = pairs
        self.values = values
        self._edges = edges()
        self._counts: dict[str, Tensor] = {}

    def bind(self, subject: Subject) -> None:
        self._params = subject.params
        pairs = subject.pairs(self.style)
        paired = {name for pair in pairs for name in (pair.target, pair.reference)}
        if self.layers == "auto":
            self._names = [name for name in subject.params.entries if name in paired]
        else:
            self._names = [name for layer in self.layers for name in self._tensors(layer)]
        self._pairs = [pair for pair in pairs if pair.target in self._names]
        if not self._names:
            raise ConfigError(
                "diagnostics.layers=auto: this model has no cross-layer pairs; name layers, as"
                " diagnostics.layers=[conv1]"
            )

    def _tensors(self, layer: str) -> list[str]:
        """Return the server's tensors of a layer: one, or one of each model that the server has."""
        layer = _layer(layer)
        names = list(self._params.entries)
        found = [name for name in names if layer in (_layer(name), _local_layer(name))]
        if not found:
            known = ", ".join(dict.fromkeys(map(_local_layer, names)))
            raise ConfigError(f"diagnostics.layers: the model has no layer {layer}; it has {known}")
        return found

    @torch.no_grad()
    def observe(
        self, position: int, client: int, level: int, model: nn.Module, deltas: Deltas
    ) -> None:
        if client < 0:
            return
        with self.timed():
            held = {_layer(name): delta for name, delta in deltas().items()}
            for layer in dict.fromkeys(map(_local_layer, self._names)):
                if layer in held:
                    counts = self._count(held[layer])
                    self._counts[layer] = self._counts.get(layer, 0) + counts

    def _count(self, values: Tensor) -> Tensor:
        return count(values, self._edges.to(values.device)).cpu()

    @torch.no_grad()
    def measure(self, step: ServerStep | None, gather: Gather) -> Measured:
        assert step is not None  # "server" is watched
        arrays = {"edges": self._edges.double().numpy()} | self._clients(gather(self._counts))
        self._counts = {}
        metrics = self._updates(step.update, arrays) | self._mixing(step.update, arrays)
        return metrics, arrays

    def _clients(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """Add up what the workers have counted, layers in the model's order."""
        out = {}
        for layer in dict.fromkeys(map(_local_layer, self._names)):
            counts = [part[layer].numpy() for part in parts if layer in part]
            if counts:
                out[f"clients/{layer}"] = np.sum(counts, axis=0)
        return out

    def _updates(self, update: Tensor, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Add histograms and values of the layers that somebody has sent; return their norms."""
        metrics = {}
        for name in self._names:
            part = self._params.view(update, name)
            layer = _layer(name)
            if part.any():
                arrays[f"update/{layer}"] = self._count(part).numpy()
                if self.values:
                    arrays[f"values/{layer}"] = sample(part, self.values).cpu().numpy()
                metrics[f"gradients/norm/{layer}"] = float(torch.linalg.vector_norm(part))
        return metrics

    def _mixing(self, update: Tensor, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Add histograms of beta and theta = beta / alpha over each target's kernels; return mean
        theta, and the share of beta > 0.
        """
        metrics = {}
        for pair in self._pairs:
            target = self._params.view(update, pair.target)
            if not target.any():
                continue
            alpha, beta = kernel_products(target, self._params.view(update, pair.reference))
            theta = torch.where(alpha > 0, beta / alpha, 0.0)
            layer = _layer(pair.target)
            arrays[f"beta/{layer}"] = self._count(beta).numpy()
            arrays[f"theta/{layer}"] = self._count(theta).numpy()
            metrics[f"gradients/theta/{layer}"] = float(theta.mean())
            share = (beta > 0).double().mean()
            metrics[f"gradients/beta_positive/{layer}"] = 100 * float(share)
        return metrics


def kernel_products(target: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha = <g_0, g_0> and beta = <g_0, g_k> of each kernel, [O, I] for a convolution; of
    a vector or matrix as a whole, [1].

    Theorem 3.1; a kernel is what the published code treats by itself.
    """
    kernel = tuple(range(2 if target.ndim > 2 else 0, target.ndim))
    g_0 = reference.double()
    alpha = g_0.square().sum(kernel)
    beta = (g_0 * target.double()).sum(kernel)
    return alpha.reshape(-1), beta.reshape(-1)


def sample(update: Tensor, most: int) -> Tensor:
    """Return a layer's update as a matrix, one row per output channel, of at most `most` numbers.

    It keeps one column at least, and the same columns of all updates of its shape, in every run.
    """
    matrix = update.reshape(len(update), -1)
    columns = max(1, most // len(matrix))
    if columns >= matrix.shape[1]:
        return matrix
    stream = torch.Generator().manual_seed(0)
    chosen = torch.randperm(matrix.shape[1], generator=stream)[:columns].sort().values
    return matrix[:, chosen.to(matrix.device)]


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _local_layer(name: str) -> str:
    """Return the layer's name on a client: the server may have a prefix for each of its models."""
    return _layer(name).rpartition("/")[2]

"""`diagnostics=gradients`: how updates are distributed, and how layers' updates lie to each other
(the paper's Figures 2, 3, 9, Table 4).

The paper calls the deltas of a round gradients; so does this module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from inco.diagnostics import Deltas, NoDiagnostics, Subject
from inco.diagnostics.histogram import count, edges
from inco.errors import ConfigError
from inco.flat import Layout
from inco.settings import LAYERS, Every, at_least, checked
from inco.types import Pair, ServerStep


class Gradients(NoDiagnostics):
    """Histograms of deltas and of the aggregated update, its norm by layer, and Theorem 3.1's theta
    and beta, whatever the transform.

    Of an update with more than `values` numbers the same columns are kept in every run. Metrics of
    a layer are there where somebody has sent it. Chan et al., ICLR 2024, Internal Cross-layer
    Gradients, Section 2.2 and Theorem 3.1.
    """

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
        self.arrays = {}
        self._names: list[str] = []  # the server's tensors
        self._pairs: list[Pair] = []
        self._params = Layout(())
        self._edges = edges()
        self._counts: dict[str, Tensor] = {}
        self._spent = 0.0

    def bind(self, subject: Subject) -> None:
        self._params = subject.params
        every = list(subject.pairs(self.style))
        both = {name for pair in every for name in (pair.target, pair.reference)}
        if self.layers == "auto":
            self._names = [name for name in subject.params.entries if name in both]
        else:
            self._names = [name for layer in self.layers for name in self._tensors(layer)]
        self._pairs = [pair for pair in every if pair.target in self._names]
        if not self._names:
            raise ConfigError(
                "diagnostics.layers=auto: this model has no cross-layer pairs; name layers, as"
                " diagnostics.layers=[conv1]"
            )

    def _tensors(self, layer: str) -> list[str]:
        """Return the server's tensors of a layer: one, or with a model for each size one in
        each.
        """
        layer = _layer(layer)
        found = [
            name for name in self._params.entries if layer in (_layer(name), _local(_layer(name)))
        ]
        if not found:
            known = ", ".join(dict.fromkeys(_local(_layer(name)) for name in self._params.entries))
            raise ConfigError(f"diagnostics.layers: the model has no layer {layer}; it has {known}")
        return found

    def watch(self, round: int) -> frozenset[str]:
        return frozenset({"clients", "server"} if round == 1 or round % self.every == 0 else ())

    @torch.no_grad()
    def observe(
        self, position: int, client: int, level: int, model: nn.Module, deltas: Deltas
    ) -> None:
        if client < 0:
            return
        began = time.perf_counter()
        held = deltas()
        at = self._edges.to(next(iter(held.values())).device)
        for name in dict.fromkeys(map(_local, self._names)):
            if name in held:
                self._counts[_layer(name)] = (
                    self._counts.get(_layer(name), 0) + count(held[name], at).cpu()
                )
        self._spent += time.perf_counter() - began

    @torch.no_grad()
    def on_round(
        self, round: int, step: ServerStep | None, gather: Callable[[Any], list[Any]]
    ) -> dict[str, float]:
        self.arrays = {}
        if step is None or not self.watch(round):
            return {}
        began = time.perf_counter()
        arrays = {"edges": self._edges.double().numpy()} | self._clients(gather(self._counts))
        self._counts = {}
        metrics = self._updates(step.given, arrays) | self._mixing(step.given, arrays)
        self.arrays = {"gradients": arrays}
        spent, self._spent = self._spent + time.perf_counter() - began, 0.0
        return metrics | {"time/gradients_s": spent}

    def _clients(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        """Add up what the workers have counted, layers in the model's order."""
        layers = dict.fromkeys(_local(_layer(name)) for name in self._names)
        counts = {
            layer: [part[layer].numpy() for part in parts if layer in part] for layer in layers
        }
        return {
            f"clients/{layer}": np.sum(found, axis=0) for layer, found in counts.items() if found
        }

    def _updates(self, update: Tensor, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Add histograms and values of the layers that somebody has sent; return their norms."""
        metrics = {}
        at = self._edges.to(update.device)
        for name in self._names:
            part = self._params.view(update, name)
            layer = _layer(name)
            if part.any():
                arrays[f"update/{layer}"] = count(part, at).cpu().numpy()
                if self.values:
                    arrays[f"values/{layer}"] = sample(part, self.values).cpu().numpy()
                metrics[f"gradients/norm/{layer}"] = float(torch.linalg.vector_norm(part))
        return metrics

    def _mixing(self, update: Tensor, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Add histograms of beta and theta = beta / alpha over each target's kernels; return mean
        theta, and the share of beta > 0.
        """
        metrics = {}
        at = self._edges.to(update.device)
        for pair in self._pairs:
            target = self._params.view(update, pair.target)
            reference = self._params.view(update, pair.reference)
            if target.any():
                layer = _layer(pair.target)
                (alpha, beta) = kernel_products(target, reference)
                theta = torch.where(alpha > 0, beta / alpha, 0.0)
                arrays[f"beta/{layer}"], arrays[f"theta/{layer}"] = (
                    count(x, at).cpu().numpy() for x in (beta, theta)
                )
                metrics[f"gradients/theta/{layer}"] = float(theta.mean())
                metrics[f"gradients/beta_positive/{layer}"] = 100 * float(
                    (beta > 0).double().mean()
                )
        return metrics


def kernel_products(target: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha = <g_0, g_0> and beta = <g_0, g_k> of each kernel, [O, I] for a convolution; of
    a vector or matrix as a whole, [1].

    Theorem 3.1; a kernel is what the published code treats by itself.
    """
    kernel = tuple(range(2, target.ndim)) if target.ndim > 2 else tuple(range(target.ndim))
    pair = (
        reference.double().square().sum(kernel),
        (reference.double() * target.double()).sum(kernel),
    )
    return pair[0].reshape(-1), pair[1].reshape(-1)


def sample(update: Tensor, most: int) -> Tensor:
    """Return a layer's update as a matrix, one row an output channel, with at most `most` numbers
    (but one column at least).

    The columns that are left of a larger one are the same for all updates of its shape, in every
    run.
    """
    matrix = update.reshape(len(update), -1)
    columns = max(1, most // len(matrix))
    if columns >= matrix.shape[1]:
        return matrix
    chosen = (
        torch.randperm(matrix.shape[1], generator=torch.Generator().manual_seed(0))[:columns]
        .sort()
        .values
    )
    return matrix[:, chosen.to(matrix.device)]


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _local(name: str) -> str:
    """Return a tensor's name on a client: without the model's own prefix where the server has
    several.
    """
    return name.rpartition("/")[2]

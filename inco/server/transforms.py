"""Functions on the vector that the server is about to add: nothing, or InCo and its ablations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from inco.flat import Layout
from inco.server.cross_layer import mix, mixing
from inco.server.pairs import as_pairs, check_pairs
from inco.settings import NULL_OR_BOUND, NULL_OR_CLIP, PAIRS, checked
from inco.types import Pair

ModelPairs = Callable[[str], Sequence[Pair]]
"""The global model's own pairs in a style ("official" or "paper")."""


class Transform(Protocol):
    """What happens to the update before the server optimizer sees it."""

    def bind(self, layout: Layout, model_pairs: ModelPairs) -> Transform:
        """Complete the transform with the global model; once, before the first round."""

    def __call__(
        self, update: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the transformed update [P], which leaves `update` as it was, and the round's
        metrics; draw from `generator` alone.
        """


class Identity:
    """The update as it is."""

    def bind(self, layout: Layout, model_pairs: ModelPairs) -> Identity:
        return self

    def __call__(
        self, update: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        return update, {}


class InCo:
    """Internal cross-layer gradients on the flat update [P], by `inco.server.cross_layer.mixing`.

    Metrics, for each target that somebody sent: `inco/theta/<layer>`, the mean theta in use, and
    `inco/beta_positive/<layer>`, the percentage of kernels (or layers) with beta > 0.

    A target that is zero throughout was sent by nobody and stays zero (with theta = 1 the formula
    alone would move it). Raises ValueError for options that do not go together and for pairs of a
    wrong form at once, for wrong pairs when bound.
    Chan et al., ICLR 2024, Internal Cross-layer Gradients, Algorithm 1.
    """

    @checked("transform")
    def __init__(
        self,
        rule: Annotated[
            Literal["official", "algorithm1", "theorem"],
            "official: adds |beta|/alpha of the reference; algorithm1: subtracts beta/alpha;"
            " theorem: only if beta < 0, no norms",
        ] = "official",
        pairs: Annotated[
            str | list[list[str]],
            PAIRS,
            "which layers are mixed. auto: the pairs of the rule, official for rule=official, else"
            " paper",
        ] = "auto",
        normalize: Annotated[bool, 'divide by the norms; false is the paper\'s row "w/o N"'] = True,
        optimize: Annotated[
            bool, 'find the best theta; false is the paper\'s row "w/o O": theta = 1'
        ] = True,
        granularity: Annotated[
            Literal["auto", "kernel", "layer"],
            "kernel: each k x k kernel by itself; layer: each tensor whole; auto: kernel for"
            " rule=official, else layer",
        ] = "auto",
        theta_max: Annotated[
            float | None,
            NULL_OR_BOUND,
            "bound on |theta|; null: 5 for rule=official, else inf",
        ] = None,
        clip: Annotated[
            float | None,
            NULL_OR_CLIP,
            "bound on each element of the result; null: 0.1 for rule=official, else inf",
        ] = None,
    ) -> None:
        self.options = mixing(rule, normalize, optimize, granularity, theta_max, clip)
        self.chosen = pairs if isinstance(pairs, str) else as_pairs(pairs)
        self.layout: Layout | None = None
        self.pairs: tuple[Pair, ...] = ()

    def bind(self, layout: Layout, model_pairs: ModelPairs) -> InCo:
        """Return a copy that knows where the tensors of its pairs lie.

        ValueError names the pairs that do not fit `layout`.
        """
        chosen = self.chosen
        if isinstance(chosen, str):
            chosen = tuple(model_pairs(self.options.pair_style if chosen == "auto" else chosen))
        bound = copy.copy(self)
        bound.layout = layout
        bound.pairs = check_pairs(chosen, layout.entries)
        return bound

    @torch.no_grad()
    def __call__(
        self, update: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        if self.layout is None:
            raise RuntimeError(
                "InCo is not bound to a model; use transform = transform.bind(layout, model_pairs)"
                " first"
            )
        if not self.pairs:
            return update, {}
        new = update.clone()
        rows = []
        for pair in self.pairs:
            target = self.layout.view(update, pair.target)
            reference = self.layout.view(update, pair.reference)
            into = self.layout.view(new, pair.target)
            sent = target.any()
            mixed = mix(target, reference, self.options, out=into)
            if not self.options.optimize:
                into.mul_(sent)
            rows.append(torch.stack([mixed.theta, mixed.beta_positive, sent.to(update.dtype)]))
        return new, self._metrics(torch.stack(rows).tolist())  # the only synchronisation

    def _metrics(self, rows: list[list[float]]) -> dict[str, float]:
        metrics = {}
        for pair, (theta, positive, sent) in zip(self.pairs, rows, strict=True):
            if sent:
                layer = pair.target.removesuffix(".weight")
                metrics[f"inco/theta/{layer}"] = theta
                metrics[f"inco/beta_positive/{layer}"] = positive
        return metrics

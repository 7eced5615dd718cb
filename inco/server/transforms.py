"""Functions on the vector that the server is about to add: nothing, or InCo and its ablations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from inco.flat import Layout
from inco.server.cross_layer import mix, mixing
from inco.server.pairs import STYLES, UserPairs, as_pairs, check_pairs
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
    """Internal cross-layer gradients on the flat update [P]; the options are those of
    `inco.server.cross_layer.mixing`.

    `pairs`: "auto" (the style of the rule: "official" for official, "paper" for the others),
    "official", "paper", or a list of [target, reference]. Metrics, for each target that somebody
    sent: `inco/theta/<layer>`, the mean theta in use, and `inco/beta_positive/<layer>`, the
    percentage of kernels (or layers) with beta > 0.

    A target that is zero throughout was sent by nobody and stays zero (with theta = 1 the formula
    alone would move it). Raises ValueError for wrong options at once, for wrong pairs when bound.
    Chan et al., ICLR 2024, Internal Cross-layer Gradients, Algorithm 1.
    """

    def __init__(
        self,
        rule: str = "official",
        pairs: str | UserPairs = "auto",
        normalize: bool = True,
        optimize: bool = True,
        granularity: str = "auto",
        theta_max: float | None = None,
        clip: float | None = None,
    ) -> None:
        self.options = mixing(rule, normalize, optimize, granularity, theta_max, clip)
        if isinstance(pairs, str) and pairs not in ("auto", *STYLES):
            raise ValueError(
                f"pairs={pairs}: no such style; use auto, official, paper or a list of [target,"
                " reference]"
            )
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

"""`diagnostics=cka`: how alike models are by layer, on one set of images (Figures 1, 2 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inco.diagnostics import Deltas, Gather, Measured, Periodic, Subject
from inco.diagnostics.similarity import cka, gram
from inco.errors import ConfigError
from inco.settings import Every, at_least, checked
from inco.types import ServerStep


class Seen(NamedTuple):
    """One model: its place in the order, its client and level, and its Gram matrices by tap,
    float64 [batches, m, m].
    """

    position: int
    client: int
    level: int
    grams: Mapping[str, Tensor]


class CKA(Periodic):
    """Linear CKA of every pair of models at every tap.

    The cost is a forward pass of `images` images per model.
    """

    kind = "cka"

    @checked("diagnostics")
    def __init__(
        self,
        every: Every,
        images: Annotated[int, at_least(2), "images of the test set, the same in all rounds"],
        batch: Annotated[
            int, at_least(2), "images that share a Gram matrix; divides the number of images"
        ],
        models: Annotated[
            Literal["clients", "capacities"],
            "clients: the cohort's as trained; capacities: the server's of each capacity, after "
            "the round",
        ] = "clients",
        estimator: Annotated[
            Literal["unbiased", "biased"],
            "of HSIC: unbiased (Song et al., over mini-batches as Nguyen et al.) or biased "
            "(Kornblith et al.)",
        ] = "unbiased",
        most: Annotated[int, at_least(2), "clients looked at, the first of the cohort"] = 10,
    ) -> None:
        least = 4 if estimator == "unbiased" else 2
        if batch < least or images % batch:
            raise ConfigError(
                f"diagnostics.batch={batch} with diagnostics.images={images}: batches of equal"
                f" size, and of {least} images or more for the {estimator} estimator; use"
                f" diagnostics.batch={max(images, least)}"
            )
        self.every = every
        self.probe = images
        self.batch = batch
        self.watched = frozenset({models})
        self.models = models
        self.estimator = estimator
        self.most = most
        self._seen: list[Seen] = []

    def bind(self, subject: Subject) -> None:
        self._images = subject.images
        self._taps = subject.taps
        self._names = subject.names
        if len(subject.images) < self.probe:
            raise ConfigError(
                f"diagnostics.images={self.probe}: the test set has {len(subject.images)}; use as"
                " many or fewer"
            )
        if not any(subject.taps):
            raise ConfigError(
                "diagnostics=cka: this model names no taps, so there is nothing to compare; use"
                " diagnostics=none"
            )

    def observe(
        self, position: int, client: int, level: int, model: nn.Module, deltas: Deltas
    ) -> None:
        if position < self.most and (client < 0) == (self.models == "capacities"):
            with self.timed():
                grams = self._grams(model, self._taps[level])
            self._seen.append(Seen(position, client, level, grams))

    @torch.no_grad()
    def _grams(self, model: nn.Module, taps: Mapping[str, str]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {tap: [] for tap in taps}
        hooks = [
            model.get_submodule(module).register_forward_hook(
                lambda _m, _x, out, tap=tap: found[tap].append(gram(out).cpu())
            )
            for tap, module in taps.items()
        ]
        model.eval()
        try:
            for images in self._images.split(self.batch):
                model(images)
        finally:
            for hook in hooks:
                hook.remove()
        return {tap: torch.stack(grams) for tap, grams in found.items()}

    def measure(self, step: ServerStep | None, gather: Gather) -> Measured:
        everywhere: list[Seen] = list(chain.from_iterable(gather(self._seen)))
        seen = sorted(everywhere, key=lambda one: one.position)
        self._seen = []
        arrays = {
            "client": np.array([one.client for one in seen]),
            "level": np.array([one.level for one in seen]),
            "name": np.array([self._names[one.level] for one in seen]),
        }
        metrics: dict[str, float] = {}
        for tap in dict.fromkeys(tap for one in seen for tap in one.grams):
            matrix = self._matrix(tap, seen)
            arrays[f"cka/{tap}"] = matrix
            pairs = matrix[np.triu_indices(len(seen), 1)]
            if np.isfinite(pairs).any():
                metrics[f"cka/{tap}"] = float(np.nanmean(pairs))
        return metrics, arrays

    def _matrix(self, tap: str, seen: Sequence[Seen]) -> np.ndarray:
        """Return the similarity of every pair, [models, models]; NaN for models without the tap."""
        have = [k for k, one in enumerate(seen) if tap in one.grams]
        grams = torch.stack([seen[k].grams[tap] for k in have])
        matrix = np.full((len(seen), len(seen)), np.nan)
        matrix[np.ix_(have, have)] = cka(grams, self.estimator).numpy()
        return matrix

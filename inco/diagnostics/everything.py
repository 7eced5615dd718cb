"""`diagnostics=all`: every kind at once, in the same rounds."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Literal

from torch import nn

from inco.diagnostics import Deltas, Gather, NoDiagnostics, Subject
from inco.diagnostics.cka import CKA
from inco.diagnostics.gradients import Gradients
from inco.settings import LAYERS, Every, at_least, checked
from inco.types import ServerStep


class Everything(NoDiagnostics):
    """CKA and gradients; the settings are those of both."""

    @checked("diagnostics")
    def __init__(
        self,
        every: Every,
        images: Annotated[int, at_least(2), "cka: images of the test set, the same in all rounds"],
        batch: Annotated[
            int, at_least(2), "cka: images that share a Gram matrix; divides the number of images"
        ],
        models: Annotated[
            Literal["clients", "capacities"],
            "cka: clients, the cohort's as trained; capacities, the server's of each capacity, "
            "after the round",
        ] = "clients",
        estimator: Annotated[
            Literal["unbiased", "biased"],
            "cka: of HSIC, unbiased (Song et al., over mini-batches as Nguyen et al.) or biased "
            "(Kornblith et al.)",
        ] = "unbiased",
        most: Annotated[int, at_least(2), "cka: clients looked at, the first of the cohort"] = 10,
        layers: Annotated[
            str | list[str],
            LAYERS,
            "gradients: whose updates; auto, those of InCo's cross-layer pairs, or names",
        ] = "auto",
        pairs: Annotated[
            Literal["official", "paper"],
            "gradients: official, the published code's; paper, the first layer of a stage with all "
            "later ones",
        ] = "official",
        values: Annotated[
            int,
            at_least(0),
            "gradients: numbers kept of each layer's update, to compare two runs with; 0: none",
        ] = 16384,
    ) -> None:
        self.parts = (
            CKA(every, images, batch, models, estimator, most),
            Gradients(every, layers, pairs, values),
        )
        self.probe = images

    def bind(self, subject: Subject) -> None:
        for part in self.parts:
            part.bind(subject)

    def watch(self, round: int) -> Set[str]:
        return frozenset().union(*(part.watch(round) for part in self.parts))

    def observe(
        self, position: int, client: int, level: int, model: nn.Module, deltas: Deltas
    ) -> None:
        for part in self.parts:
            part.observe(position, client, level, model, deltas)

    def on_round(self, round: int, step: ServerStep | None, gather: Gather) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for part in self.parts:
            metrics |= part.on_round(round, step, gather)
        self.arrays = {kind: named for part in self.parts for kind, named in part.arrays.items()}
        return metrics

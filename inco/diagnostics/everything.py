"""`diagnostics=all`: every kind at once, in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from inco.diagnostics import Deltas, NoDiagnostics, Subject
from inco.diagnostics.cka import CKA
from inco.diagnostics.gradients import Gradients
from inco.diagnostics.similarity import Estimator
from inco.types import ServerStep


class Everything(NoDiagnostics):
    """CKA and gradients; the settings are those of both."""

    def __init__(
        self,
        every: int,
        images: int,
        batch: int,
        models: str = "clients",
        estimator: Estimator = "unbiased",
        most: int = 10,
        layers: str | Sequence[str] = "auto",
        pairs: str = "official",
        values: int = 16384,
    ) -> None:
        self.parts = (
            CKA(every, images, batch, models, estimator, most),
            Gradients(every, layers, pairs, values),
        )
        self.probe = images
        self.arrays = {}

    def bind(self, subject: Subject) -> None:
        for part in self.parts:
            part.bind(subject)

    def watch(self, round: int) -> frozenset[str]:
        return frozenset().union(*(part.watch(round) for part in self.parts))

    def observe(
        self, position: int, client: int, level: int, model: nn.Module, deltas: Deltas
    ) -> None:
        for part in self.parts:
            part.observe(position, client, level, model, deltas)

    def on_round(
        self, round: int, step: ServerStep | None, gather: Callable[[Any], list[Any]]
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for part in self.parts:
            metrics |= part.on_round(round, step, gather)
        self.arrays = {kind: named for part in self.parts for kind, named in part.arrays.items()}
        return metrics

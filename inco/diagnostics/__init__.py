"""Diagnostics: what is measured about models beside their accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from inco.types import Aggregate


class NoDiagnostics:
    """Measure nothing. Others say otherwise, here and there.

    `probe`: images to bind; `arrays`: what the last round has left to keep, by kind and name.
    """

    probe: int = 0
    arrays: Mapping[str, Mapping[str, np.ndarray]] = {}

    def bind(self, images: Tensor, taps: Sequence[Mapping[str, str]], names: Sequence[str]) -> None:
        """Take the probe, [probe, C, S, S], prepared as for scoring; and of each level its taps (tap -> module) and its name."""

    def watch(self, round: int) -> str:
        """Return whose models `observe` is to see in a round: "clients", "capacities" or nobody's ("")."""
        return ""

    def observe(self, position: int, client: int, level: int, model: nn.Module) -> None:
        """Look at a model, on the worker that has it: a client's, just trained (by `position` in the cohort), or a capacity's."""

    def on_round(self, round: int, aggregate: Aggregate, gather: Callable[[Any], list[Any]]) -> dict[str, float]:
        """Return the round's extra metrics. `gather`: every worker's value, the same list on each."""
        return {}

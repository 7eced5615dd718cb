"""Diagnostics: what is measured about models and updates beside accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from inco.flat import Layout
from inco.types import Pair, ServerStep

Deltas = Callable[[], Mapping[str, Tensor]]
"""A client's delta (local minus received) by tensor name, made when asked for; empty for a model of
the server.
"""


class Subject(NamedTuple):
    """What there is to look at.

    `images`: the probe, [probe, C, S, S], prepared as for scoring; `taps`: of each level, tap ->
    module; `names`: of the levels; `params`: the layout of the server's parameters; `pairs`: their
    cross-layer pairs in a style ("official" or "paper").
    """

    images: Tensor
    taps: Sequence[Mapping[str, str]]
    names: Sequence[str]
    params: Layout
    pairs: Callable[[str], Sequence[Pair]]


class NoDiagnostics:
    """Measure nothing. Others say otherwise, here and there.

    `probe`: images to bind; `arrays`: what the last round has left to keep, by kind and name.
    """

    probe: int = 0
    arrays: Mapping[str, Mapping[str, np.ndarray]] = {}

    def bind(self, subject: Subject) -> None:
        """Take what there is to look at; once, before the first round."""

    def watch(self, round: int) -> Set[str]:
        """Return what is to be seen in a round: of "clients", just trained, "capacities", the
        server's models after it, and "server".
        """
        return frozenset()

    def observe(
        self, position: int, client: int, level: int, model: nn.Module, deltas: Deltas
    ) -> None:
        """Look at a model, on the worker that has it: a client's (by `position` in the cohort), or
        a capacity's (`client` is -1).
        """

    def on_round(
        self, round: int, step: ServerStep | None, gather: Callable[[Any], list[Any]]
    ) -> dict[str, float]:
        """Return the round's extra metrics.

        `step`: if "server" is watched; `gather`: every worker's value, the same list on each.
        """
        return {}

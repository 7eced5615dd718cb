"""Diagnostics: what is measured about models and updates beside accuracy."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from inco.flat import Layout
from inco.types import Pair, ServerStep

Deltas = Callable[[], Mapping[str, Tensor]]
"""A client's delta (local minus received) by tensor name, made when asked for; empty for a model of
the server.
"""
Gather = Callable[[Any], list[Any]]
"""Return every worker's value, the same list on each."""
Measured = tuple[dict[str, float], dict[str, np.ndarray]]
"""The metrics and the arrays of a round."""


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
    """Measure nothing; the base of all diagnostics.

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

    def on_round(self, round: int, step: ServerStep | None, gather: Gather) -> dict[str, float]:
        """Return the round's extra metrics; `step` is given if "server" is watched."""
        return {}


class Periodic(NoDiagnostics):
    """Diagnostics of one `kind`, in the first round and in each that `every` divides.

    `watched`: what is to be seen then.
    """

    kind: str
    every: int
    watched: Set[str]
    _spent = 0.0  # seconds in this round

    def watch(self, round: int) -> Set[str]:
        return self.watched if round == 1 or round % self.every == 0 else frozenset()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a block as spent on diagnostics."""
        began = time.perf_counter()
        yield
        self._spent += time.perf_counter() - began

    def on_round(self, round: int, step: ServerStep | None, gather: Gather) -> dict[str, float]:
        self.arrays = {}
        if not self.watch(round):
            return {}
        with self.timed():
            metrics, arrays = self.measure(step, gather)
        self.arrays = {self.kind: arrays}
        metrics[f"time/{self.kind}_s"] = self._spent
        self._spent = 0.0
        return metrics

    @abstractmethod
    def measure(self, step: ServerStep | None, gather: Gather) -> Measured:
        """Return what is found in a round that is watched."""

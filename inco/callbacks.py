"""What may look on while a run goes on. It changes no number of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only shows a run needs no torch
    from inco.types import ClientTask, Metrics, ServerState


class Callback:
    """Called by the simulator, on every rank that has it; a subclass overrides what it needs.

    What it raises ends the run.
    """

    def on_start(self, state: ServerState) -> None:
        """Before the first round; `state.round` rounds are done already."""

    def on_client_start(self, task: ClientTask) -> None:
        """Before one of this rank's clients trains."""

    def on_client_end(self, task: ClientTask, done: int, of: int) -> None:
        """After it: `done` of this rank's clients of the round, `of` in all."""

    def on_round(self, state: ServerState, metrics: Metrics) -> None:
        """After a round, which is `state.round`."""

    def on_end(self, state: ServerState) -> None:
        """After the last round; not where the run has been ended by an error."""


class EachRound(Callback):
    """Call a function after each round, with the state and the round's metrics."""

    def __init__(self, function: Callable[[ServerState, Metrics], object]) -> None:
        self._function = function

    def on_round(self, state: ServerState, metrics: Metrics) -> None:
        self._function(state, metrics)

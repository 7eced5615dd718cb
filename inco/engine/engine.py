"""Who trains whom, where: ranks of torch.distributed, longest-first scheduling, and one exact
reduction a round.

Every rank holds the server's vectors and does the same server arithmetic; of vectors, ranks
exchange sums of whole numbers alone, so a result never depends on how many there are.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from inco.callbacks import Callback
from inco.clients.trainer import Trainer
from inco.engine.failure import client_failed
from inco.engine.ranks import Ranks
from inco.errors import InCoError, NumericError, PeerLost, WorkerError
from inco.evaluation.evaluator import Evaluator, Score
from inco.fast.bound import BoundModel
from inco.fast.schedule import assign
from inco.server.aggregate import Cohort, Holders
from inco.server.sums import RoundSums
from inco.spans import span
from inco.types import Aggregate, ClientResult, ClientTask, SubModel, Upload

Observe = Callable[[int, int, int, nn.Module, Callable[[], Mapping[str, Tensor]]], None]
"""Called with a position in the cohort, a client (-1: the server), its level, its model, and a
function that returns its deltas by tensor name.
"""


def _deltas(bound: BoundModel, sub: SubModel, w: Tensor) -> Mapping[str, Tensor]:
    """Return how far a client has moved, by the names of its tensors.

    `w`: what the server has sent, [P].
    """
    received = sub.params.gather(w, torch.empty_like(bound.w))
    return sub.params.layout.views(bound.w - received)


class Engine:
    """Maps clients over ranks and reduces their uploads; scores levels over ranks.

    `uploads`: what clients send, by name; `sizes`: P and B, as "params" and "buffers";
    `holders`: who holds what in the population; `cohort_size`: clients in a round; `flops`: cost of
    one image's forward pass by level.
    """

    def __init__(
        self,
        ranks: Ranks,
        trainer: Trainer,
        evaluator: Evaluator,
        uploads: Mapping[str, Upload],
        sizes: Mapping[str, int],
        holders: Holders,
        cohort_size: int,
        flops: Mapping[int, float],
    ) -> None:
        self.ranks = ranks
        self.trainer = trainer
        self.evaluator = evaluator
        self.flops = flops
        self.uploads = uploads
        self.sizes = sizes
        self.holders = holders
        self._sums = RoundSums(uploads, sizes, cohort_size, ranks.device)

    def assignment(self, tasks: Sequence[ClientTask]) -> list[list[int]]:
        """Return the positions in the cohort that each rank trains."""
        return assign([self.flops[t.level] * len(t.examples) for t in tasks], self.ranks.world)

    def cohort(self, tasks: Sequence[ClientTask], submodels: Mapping[int, SubModel]) -> Cohort:
        """Return what is known of a round before it starts."""
        steps = [self.trainer.steps(len(t.examples)) for t in tasks]
        momentum = self.trainer.local.momentum
        return Cohort(
            tasks,
            steps,
            submodels,
            self.uploads,
            self.sizes,
            self.holders,
            momentum,
            self.ranks.device,
        )

    def map_reduce(
        self,
        cohort: Cohort,
        w: Tensor,
        b: Tensor,
        server: Mapping[str, Tensor],
        observe: Observe | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Aggregate:
        """Train the cohort and return its averages.

        `observe`: called with each of this rank's clients, just trained; of `callbacks` the
        `on_client_*` methods are called.
        Raises on every rank alike where any client failed.
        """
        mine = self.assignment(cohort.tasks)[self.ranks.rank]
        self._sums.reset()
        self._agreed(lambda: self._train(cohort, mine, w, b, server, observe, callbacks))
        with span("reduction, and waiting for other workers"):
            self.ranks.sum_(self._sums.total)
        with span("server"):
            return cohort.average(self._sums)

    def _train(
        self,
        cohort: Cohort,
        mine: Sequence[int],
        w: Tensor,
        b: Tensor,
        server: Mapping[str, Tensor],
        observe: Observe | None,
        callbacks: Sequence[Callback],
    ) -> None:
        for done, position in enumerate(mine, start=1):
            task = cohort.tasks[position]
            sub = cohort.submodels[task.level]
            for callback in callbacks:
                callback.on_client_start(task)
            result = self._client(task, sub, w, b, server)
            added = self._add(position, result, sub, cohort)
            if observe and added:
                with span("diagnostics"):
                    bound = self.trainer.pool.get(sub).bound
                    observe(
                        position,
                        task.client,
                        task.level,
                        bound.model,
                        lambda: _deltas(bound, sub, w),  # noqa: B023  # called at once
                    )
            del result  # its vectors, before the next client's
            for callback in callbacks:
                callback.on_client_end(task, done, len(mine))
        if self.ranks.world > 1:
            with span("writing clients' states"):
                self.trainer.store.flush()  # another rank may read them in the next round

    def _add(self, position: int, result: ClientResult, sub: SubModel, cohort: Cohort) -> bool:
        """Add a client's upload, or leave the client out if that is what the uplink does with one
        that is not finite.
        """
        try:
            with span("exact sum"):
                self._sums.add(position, result, sub, cohort.shares(result.task))
        except NumericError:
            if self.trainer.uplink.nonfinite != "skip":
                raise
            self._sums.skip(position)
            self.trainer.put_back(result.task, sub)
            return False
        return True

    def _client(
        self, task: ClientTask, sub: SubModel, w: Tensor, b: Tensor, server: Mapping[str, Tensor]
    ) -> ClientResult:
        with suppress(torch.OutOfMemoryError):
            return self._attempt(task, sub, w, b, server)
        # Give back memory cached for earlier clients, and try once more. Random draws are named, so
        # the result is the same. This is outside the block, as the exception in it still holds the
        # first attempt's tensors.
        torch.cuda.empty_cache()
        try:
            return self._attempt(task, sub, w, b, server)
        except torch.OutOfMemoryError as error:
            raise client_failed(task, sub, self.ranks.rank, error) from error

    def _attempt(
        self, task: ClientTask, sub: SubModel, w: Tensor, b: Tensor, server: Mapping[str, Tensor]
    ) -> ClientResult:
        try:
            return self.trainer(task, sub, w, b, server)
        except (InCoError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise client_failed(task, sub, self.ranks.rank, error) from error

    def evaluate(
        self, submodels: Mapping[int, SubModel], w: Tensor, b: Tensor, round: int
    ) -> dict[int, Score]:
        """Score every level on the whole test set."""
        measured = None
        if self.evaluator.norm:
            with span("BatchNorm's statistics for scoring"):
                units = self._mine(*self.evaluator.norm_units(self.flops))
                measured = self.ranks.sum_(self.evaluator.measure(units, submodels, w, b, round))
        with span("scoring"):
            mine = self.evaluator.assignment(submodels, self.flops, self.ranks.world)[
                self.ranks.rank
            ]
            table = self.evaluator.score(mine, submodels, w, b, round, measured)
        with span("reduction, and waiting for other workers"):
            return self.evaluator.scores(self.ranks.sum_(table))

    def show(
        self, submodels: Mapping[int, SubModel], w: Tensor, b: Tensor, observe: Observe
    ) -> None:
        """Call `observe` with the server's model of each level; levels are spread over ranks."""
        for position, level in enumerate(sorted(submodels)):
            if position % self.ranks.world == self.ranks.rank:
                sub = submodels[level]
                bound = self.trainer.pool.get(sub).bound
                bound.load(w, b, sub.params, sub.buffers)
                observe(position, -1, level, bound.model, dict)

    def _mine(
        self, units: Sequence[tuple[int, int]], costs: Sequence[float]
    ) -> list[tuple[int, int]]:
        return [units[i] for i in assign(costs, self.ranks.world)[self.ranks.rank]]

    def _agreed(self, work: Callable[[], None]) -> None:
        """Do this rank's work; where it fails on any, stop together with that error on all."""
        error: InCoError | None = None
        try:
            work()
        except InCoError as mine:
            error = mine
        except Exception as mine:  # of a callback or a diagnostic: the others must not wait
            error = WorkerError(f"worker {self.ranks.rank}: {type(mine).__name__}: {mine}")
            error.detail = traceback.format_exc()
        try:
            with span("reduction, and waiting for other workers"):
                failed = self.ranks.any(error is not None)
            if failed:
                raise next(e for e in self.ranks.gather(error) if e is not None)
        except PeerLost:
            if error is not None:  # this rank's own failure says more
                raise error from None
            raise

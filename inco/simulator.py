"""The round loop, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from math import fsum  # exact in any order; `sum` rounds differently since Python 3.12
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inco.algorithms.fedavg import Algorithm
from inco.callbacks import Callback
from inco.clients.costs import LevelCost
from inco.clients.population import Population
from inco.engine.engine import Engine
from inco.errors import NumericError
from inco.evaluation.evaluator import Score
from inco.seeding import generator
from inco.spans import span
from inco.types import Aggregate, ClientTask, Metrics, ServerState, ServerStep, SubModel


class UpdateTransform(Protocol):
    """A change of the update that the server optimizer is about to apply, [P] -> [P], with metrics;
    randomness from the generator alone.
    """

    def __call__(
        self, update: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Mapping[str, float]]: ...


class ServerOptimizer(Protocol):
    """How an update is added to the global model."""

    def init(self, w: Tensor) -> dict[str, Tensor]: ...
    def step(
        self, w: Tensor, update: Tensor, covered: Tensor, state: dict[str, Tensor]
    ) -> None: ...


class Diagnostics(Protocol):
    """Extra metrics of a round, and arrays to keep; see `inco.diagnostics.NoDiagnostics` for what
    each part says.
    """

    arrays: Mapping[str, Any]

    def watch(self, round: int) -> Set[str]: ...
    def observe(
        self,
        position: int,
        client: int,
        level: int,
        model: nn.Module,
        deltas: Callable[[], Mapping[str, Tensor]],
    ) -> None: ...
    def on_round(
        self, round: int, step: ServerStep | None, gather: Callable[[Any], list[Any]]
    ) -> Mapping[str, float]: ...


class Simulator:
    """One run: sample, train, aggregate, transform, step, score.

    `costs`: of one client of each level; `images_trained`: images that a client with so many
    examples trains on in a round; `eval_every`: rounds between two scorings (the last round is
    always scored).
    """

    def __init__(
        self,
        population: Population,
        engine: Engine,
        algorithm: Algorithm,
        transform: UpdateTransform,
        optimizer: ServerOptimizer,
        diagnostics: Diagnostics,
        costs: Mapping[int, LevelCost],
        images_trained: Callable[[int], int],
        eval_every: int,
    ) -> None:
        self.population = population
        self.engine = engine
        self.algorithm = algorithm
        self.transform = transform
        self.optimizer = optimizer
        self.diagnostics = diagnostics
        self.costs = costs
        self.images_trained = images_trained
        self.eval_every = eval_every

    def start(self, seed: int) -> ServerState:
        """Return the state before the first round."""
        w, b = (v.to(self.engine.ranks.device) for v in self.population.split.initial(seed))
        split = {name: v.to(w.device) for name, v in self.population.split.init_server().items()}
        return ServerState(0, w, b, self.algorithm.init_server(w), self.optimizer.init(w), split)

    def run(self, state: ServerState, rounds: int, callbacks: Sequence[Callback] = ()) -> None:
        """Take the state from its round to `rounds`."""
        for callback in callbacks:
            callback.on_start(state)
        while state.round < rounds:
            metrics = self.round(state, last=state.round + 1 == rounds, callbacks=callbacks)
            for callback in callbacks:
                callback.on_round(state, metrics)
        for callback in callbacks:
            callback.on_end(state)

    def round(
        self, state: ServerState, last: bool = False, callbacks: Sequence[Callback] = ()
    ) -> Metrics:
        """Do one round (Algorithm 1 of the paper, with its base algorithm); return its metrics.

        The state changes at the end, at once, after all clients and the scoring have succeeded.
        `last`: score whatever `eval_every` is; of `callbacks`, only the `on_client_*` methods are
        called.
        """
        began = time.perf_counter()
        number = state.round + 1
        tasks = self.population.tasks(number)
        submodels = self.population.submodels(number)

        # 1. clients train, their uploads are averaged over the holders of each coordinate
        cohort = self.engine.cohort(tasks, submodels)
        self.algorithm.server_start(state.algorithm, cohort)
        watching = self.diagnostics.watch(number)
        observe = self.diagnostics.observe if "clients" in watching else None
        aggregate = self.engine.map_reduce(
            cohort, state.w, state.b, state.algorithm, observe, callbacks
        )

        with span("server"):
            moved = state.copy()
            # 2. the algorithm says what to add, split and transform change it; what nobody holds
            # does not move
            # (a new vector: what an algorithm returns may be one that it keeps)
            update = self.algorithm.server_update(moved.algorithm, aggregate) * aggregate.covered
            update = self.population.split.server_update(moved.split, update, aggregate)
            stream = generator(self.population.seed, "transform", number, device=moved.w.device)
            given = update.mul_(aggregate.covered)
            update, transform_metrics = self.transform(given, stream)
            update.mul_(aggregate.covered)
            step = ServerStep(aggregate, given) if "server" in watching else None
            del given  # as large as the model
            norm = float(torch.linalg.vector_norm(update))
            if not norm < float("inf"):
                raise NumericError(
                    f"round {number}: the update's norm is {norm}; it has not been applied. Lower"
                    " local.lr"
                )

            # 3. the server steps; buffers take the mean of their holders
            self.optimizer.step(moved.w, update, aggregate.covered, moved.optimizer)
            moved.b = torch.where(aggregate.buffers_covered, aggregate.mean["buffers"], moved.b)
            self.population.split.buffers.truncate_counters(moved.b)
            if self.algorithm.stateful:
                self.engine.trainer.store.advance(number, [t.client for t in tasks])
        moved.round = number
        trained = time.perf_counter() - began

        metrics: Metrics = {"round": number}
        if last or number % self.eval_every == 0:
            metrics |= self._scores(
                submodels, self.engine.evaluate(submodels, moved.w, moved.b, number)
            )
        metrics |= self._work(tasks, aggregate) | {"update/norm": norm}
        if len(aggregate.clients) < len(tasks):
            metrics["client/nonfinite"] = len(tasks) - len(aggregate.clients)
        metrics.update(transform_metrics)
        scored = time.perf_counter()
        with span("diagnostics"):
            if "capacities" in watching:
                self.engine.show(submodels, moved.w, moved.b, self.diagnostics.observe)
            metrics.update(self.diagnostics.on_round(number, step, self.engine.ranks.gather))
        now = time.perf_counter()
        times = {"train_s": trained, "eval_s": scored - began - trained, "round_s": now - began}
        state.become(moved)
        return metrics | {f"time/{name}": seconds for name, seconds in times.items()}

    def _work(self, tasks: list[ClientTask], aggregate: Aggregate) -> Metrics:
        """Loss, traffic and arithmetic of the cohort.

        A training step is counted as three forward passes.
        """
        seen = sum(row.examples for row in aggregate.clients)
        names = self.population.split.names
        work = {
            "comm/up_bytes": [self.costs[t.level].up_bytes for t in tasks],
            "comm/down_bytes": [self.costs[t.level].down_bytes for t in tasks],
            "compute/flops": [
                3 * self.costs[t.level].train_flops * self.images_trained(len(t.examples))
                for t in tasks
            ],
        }
        by_level: Metrics = {}
        for key, numbers in work.items():
            for level in sorted({t.level for t in tasks}):
                by_level[f"{key}/{names[level]}"] = sum(
                    n for t, n in zip(tasks, numbers, strict=True) if t.level == level
                )
        return {
            "train/loss": (
                fsum(row.loss * row.examples for row in aggregate.clients) / seen
                if seen
                else float("nan")
            ),
            **{key: sum(numbers) for key, numbers in work.items()},
            **by_level,
        }

    @staticmethod
    def _scores(submodels: Mapping[int, SubModel], scores: Mapping[int, Score]) -> Metrics:
        mean = fsum(s.accuracy for s in scores.values()) / len(scores)
        loss = fsum(s.loss for s in scores.values()) / len(scores)
        by_level = {f"test/acc/{submodels[level].name}": s.accuracy for level, s in scores.items()}
        return {"test/acc": mean, "test/loss": loss} | by_level

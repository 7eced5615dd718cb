"""Who does how much in a round: batches by level from the real partition, and the few clients that
stand for all while measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from inco.assembly import Assembly
from inco.clients.local import Local
from inco.clients.population import Population
from inco.config.targets import build
from inco.plan.arithmetic import Counts, LevelCounts
from inco.seeding import numpy_rng
from inco.types import ClientTask

_SAMPLED = 8  # cohorts, to see how evenly workers can share them
_LOOKED_AT = 10_000  # clients at most that a mean is taken over

Row = tuple[float, float, float, float]


def batches_of(local: Local, examples: int, smallest: int) -> Row:
    """Return full batches, short ones and the images of a short one in an epoch over so many
    examples, and the examples.
    """
    sizes = [stop - start for start, stop in local.batches(examples, smallest)]
    full = [size for size in sizes if size >= local.batch_size]
    short = [size for size in sizes if size < local.batch_size]
    return len(full), len(short), sum(short) / len(short) if short else 0.0, examples


def count(settings: Mapping[str, Any], run: Assembly) -> dict[str, Any]:
    """Return the `Counts` of settings, as plain data, on the data of a run that shares its dataset,
    model and split.
    """
    local: Local = build("local", settings["local"])
    number = settings["num_clients"]
    seed = settings["seed"]
    smallest = run.trainer.smallest
    labels = run.dataset.train.labels.cpu().numpy()
    partition = build("partition", settings["partition"])(
        labels, len(run.dataset.classes), number, numpy_rng(seed, "partition")
    )
    capacity = build(
        "capacity",
        settings["capacity"],
        num_clients=number,
        num_levels=len(run.split.names),
        seed=seed,
    )
    population = Population(number, settings["sample_ratio"], partition, capacity, run.split, seed)
    rows = [batches_of(local, int(size), smallest) for size in partition.sizes[:_LOOKED_AT]]
    share = population.cohort_size / number
    levels = {}
    for level, held in capacity.sizes().items():
        own = (
            rows
            if capacity.moving
            else [row for client, row in enumerate(rows) if capacity.level(client, 1) == level]
        )
        levels[level] = _mean(held * share, own or rows)
    cohorts = []
    for round in range(1, _SAMPLED + 1):
        clients = population.cohort(round)
        cohorts.append(
            [
                (capacity.level(c, round), *batches_of(local, int(partition.sizes[c]), smallest))
                for c in clients
            ]
        )
    return asdict(Counts(levels, local.epochs, local.batch_size, population.cohort_size, cohorts))


def _mean(clients: float, rows: Sequence[Row]) -> LevelCounts:
    full, short, images, examples = (
        sum(column) for column in zip(*((f, s, s * m, e) for f, s, m, e in rows), strict=True)
    )
    return LevelCounts(
        clients,
        full / len(rows),
        short / len(rows),
        images / short if short else 0.0,
        examples / len(rows),
    )


def chosen_clients(population: Population) -> list[tuple[int, int]]:
    """Return one client for each level that clients can hold, as (client, level)."""
    capacity = population.capacity
    if capacity.moving:
        return [
            (position % population.num_clients, level)
            for position, level in enumerate(capacity.levels)
        ]
    first: dict[int, int] = {}
    for client in range(population.num_clients):
        first.setdefault(capacity.level(client, 1), client)
    return [(first[level], level) for level in capacity.levels if level in first]


class Chosen(Population):
    """A population of which the same few clients are sampled in every round, each with as many
    examples as it is told.
    """

    def __init__(self, real: Population) -> None:
        super().__init__(
            real.num_clients, 1.0, real.partition, real.capacity, real.split, real.seed, real.has
        )
        self._clients: Sequence[tuple[int, int]] = ()
        self._images = 0

    def plan(self, clients: Sequence[tuple[int, int]], images: int) -> None:
        """Say who takes part from now on, and on how many images each trains."""
        self._clients = clients
        self._images = images

    def cohort(self, round: int) -> list[int]:
        return [client for client, _ in self._clients]

    def tasks(self, round: int) -> list[ClientTask]:
        return [self._capped(client, level, round) for client, level in self._clients]

    def _capped(self, client: int, level: int, round: int) -> ClientTask:
        own = torch.from_numpy(self.partition.examples(client))
        # its own, again and again where it has fewer
        examples = own.repeat(-(-self._images // len(own)))[: self._images]
        return ClientTask(
            client, round, level, examples, None if self.has is None else self.has[client]
        )

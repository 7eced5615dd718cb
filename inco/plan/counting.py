"""Who does how much in a round, from the real partition; and the few clients that stand for all
while measuring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from inco.assembly import Assembly
from inco.clients.local import Local
from inco.clients.population import Population
from inco.config.targets import build
from inco.plan.arithmetic import Client, Counts
from inco.seeding import numpy_rng
from inco.types import ClientTask

_COHORTS = 25  # that are looked at, those of the first rounds


def batch_sizes(local: Local, examples: int, smallest: int) -> list[int]:
    """Return the images of each batch of an epoch over so many examples."""
    return [stop - start for start, stop in local.batches(examples, smallest)]


def count(settings: Mapping[str, Any], run: Assembly) -> Counts:
    """Count the work of settings on a run that shares their dataset, model and split."""
    local: Local = build("local", settings["local"])
    number = settings["num_clients"]
    seed = settings["seed"]
    labels = run.dataset.train.labels.numpy()
    deal = build("partition", settings["partition"])
    partition = deal(labels, len(run.dataset.classes), number, numpy_rng(seed, "partition"))
    levels = {"num_clients": number, "num_levels": len(run.split.names), "seed": seed}
    capacity = build("capacity", settings["capacity"], **levels)
    population = Population(number, settings["sample_ratio"], partition, capacity, run.split, seed)

    def work(client: int, round: int) -> Client:
        examples = int(partition.sizes[client])
        batches = batch_sizes(local, examples, run.trainer.smallest)
        return Client(capacity.level(client, round), examples, batches)

    rounds = range(1, min(settings["rounds"], _COHORTS) + 1)
    cohorts = [[work(client, round) for client in population.cohort(round)] for round in rounds]
    return Counts(local.epochs, cohorts)


class OneOfEachLevel(Population):
    """One client for each level that clients can hold, the same ones in every round.

    `images`: examples that each trains on, its own, again and again where it has fewer.
    """

    def __init__(self, real: Population) -> None:
        vectors = (real.partition, real.capacity, real.split, real.seed, real.has)
        super().__init__(real.num_clients, 1.0, *vectors)
        self.images = 0
        self.clients: dict[int, int] = {}  # by level
        for client in range(self.num_clients):
            self.clients.setdefault(self.capacity.level(client, 1), client)
        if self.capacity.moving:  # anybody may hold any level
            self.clients = {level: level % self.num_clients for level in self.capacity.levels}

    def tasks(self, round: int) -> list[ClientTask]:
        return [self._of(client, level, round) for level, client in sorted(self.clients.items())]

    def _of(self, client: int, level: int, round: int) -> ClientTask:
        own = torch.from_numpy(self.partition.examples(client))
        examples = own.repeat(math.ceil(self.images / len(own)))[: self.images]
        classes = None if self.has is None else self.has[client]
        return ClientTask(client, round, level, examples, classes)

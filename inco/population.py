"""The clients: who is sampled in a round, what each holds, and the tasks that follow. Nothing here grows with the population."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inco.capacity import Capacity
from inco.data.partition import Partition
from inco.seeding import numpy_rng
from inco.splits.base import Split
from inco.types import ClientTask, SubModel


class Population:
    """`num_clients` N clients, of which `sample_ratio` take part in a round: floor(N * ratio), at least one."""

    def __init__(self, num_clients: int, sample_ratio: float, partition: Partition, capacity: Capacity, split: Split, seed: int) -> None:
        self.num_clients, self.partition, self.capacity, self.split, self.seed = num_clients, partition, capacity, split, seed
        self.cohort_size = max(1, int(num_clients * sample_ratio + 1e-9))  # 0.29 * 100 is 28.999999999999996

    def cohort(self, round: int) -> list[int]:
        """Return the clients of a round in ascending order, drawn uniformly without replacement."""
        rng = numpy_rng(self.seed, "cohort", round)
        return sorted(rng.choice(self.num_clients, self.cohort_size, replace=False).tolist())

    def tasks(self, round: int) -> list[ClientTask]:
        """Return the round's tasks in cohort order."""
        return [
            ClientTask(c, round, self.capacity.level(c, round), torch.from_numpy(self.partition.examples(c))) for c in self.cohort(round)
        ]

    def submodels(self, round: int, levels: Sequence[int] | None = None) -> dict[int, SubModel]:
        """Return the sub-model of each level that clients can hold."""
        return {level: self.split.submodel(level, round) for level in levels or self.capacity.levels}

"""The clients: who is sampled in a round, what each holds, and the tasks that follow.

Nothing here grows with the population.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inco.clients.capacity import Capacity
from inco.data.partition import Partition
from inco.seeding import numpy_rng
from inco.server.aggregate import Holders
from inco.splits.base import Split
from inco.types import ClientTask, SubModel


class Population:
    """`num_clients` N clients, of which `sample_ratio` take part in a round: floor(N * ratio), at
    least one.

    `has`: bool [N, classes], which classes a client has examples of; None where only the plan of a
    run is asked for.
    """

    def __init__(
        self,
        num_clients: int,
        sample_ratio: float,
        partition: Partition,
        capacity: Capacity,
        split: Split,
        seed: int,
        has: Tensor | None = None,
    ) -> None:
        self.num_clients = num_clients
        self.partition = partition
        self.capacity = capacity
        self.split = split
        self.seed = seed
        # 0.29 * 100 is 28.999999999999996
        self.cohort_size = max(1, int(num_clients * sample_ratio + 1e-9))
        self.has = has

    def cohort(self, round: int) -> list[int]:
        """Return the clients of a round in ascending order, drawn uniformly without replacement."""
        rng = numpy_rng(self.seed, "cohort", round)
        return sorted(rng.choice(self.num_clients, self.cohort_size, replace=False).tolist())

    def tasks(self, round: int) -> list[ClientTask]:
        """Return the round's tasks in cohort order."""
        return [self._task(client, round) for client in self.cohort(round)]

    def _task(self, client: int, round: int) -> ClientTask:
        examples = torch.from_numpy(self.partition.examples(client))
        level = self.capacity.level(client, round)
        classes = None if self.has is None else self.has[client]
        return ClientTask(client, round, level, examples, classes)

    @property
    def moving(self) -> bool:
        """Whether a client holds other coordinates from round to round."""
        return self.capacity.moving or self.split.moving

    def holders(self) -> Holders:
        """Return who holds what in the population."""
        sizes = self.capacity.sizes()
        if self.moving:
            has = None if self.has is None else self.has.double().sum(0)
            return Holders(sizes, everyone=float(self.num_clients), everyone_by_class=has)
        if self.has is None:
            return Holders(sizes)
        levels = torch.tensor([self.capacity.level(n, 0) for n in range(self.num_clients)])
        by_class = {
            level: self.has[levels == level].double().sum(0) for level in self.capacity.levels
        }
        return Holders(sizes, by_class)

    def submodels(self, round: int, levels: Sequence[int] | None = None) -> dict[int, SubModel]:
        """Return the sub-model of each level that clients can hold."""
        return {
            level: self.split.submodel(level, round) for level in levels or self.capacity.levels
        }

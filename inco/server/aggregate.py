"""Means of uploads per coordinate over the clients that hold it: who takes part, with which weight,
and what the exact sums make of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inco.flat import Slice
from inco.server.sums import RoundSums, entries_of, steps_in_one
from inco.types import Aggregate, ClientRow, ClientTask, SubModel, Upload, Weighting

_NOBODY = 1e-9  # the smallest denominator, so that 0 / 0 gives 0


@dataclass(frozen=True)
class Holders:
    """How many clients of the population hold each level, and of them, how many have each class,
    float64 [classes].

    `everyone`: only where levels or slices move, so that each client holds every coordinate sooner
    or later: the number of all clients. `everyone_by_class`: how many of them have each class.
    """

    levels: Mapping[int, float]
    by_class: Mapping[int, Tensor] = field(default_factory=dict)
    everyone: float | None = None
    everyone_by_class: Tensor | None = None


class Cohort:
    """Who takes part in a round, with which weight: everything about the averages that needs no
    communication.

    `tasks` in cohort order, with the local `steps` of each; `submodels` by level, for this round;
    `uploads`: by name, each with its weighting; `sizes`: P and B, as "params" and "buffers";
    `holders`: who holds what in the population; `momentum`: of the local optimizer; `device`:
    where the server's vectors are.
    """

    def __init__(
        self,
        tasks: Sequence[ClientTask],
        steps: Sequence[int],
        submodels: Mapping[int, SubModel],
        uploads: Mapping[str, Upload],
        sizes: Mapping[str, int],
        holders: Holders,
        momentum: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tasks = tasks
        self.steps = tuple(steps)
        self.submodels = submodels
        self.uploads = uploads
        self.sizes = sizes
        self.holders = holders
        self.momentum = momentum
        self.device = device
        self.examples = tuple(len(t.examples) for t in tasks)
        self.positions: Sequence[int] = range(len(tasks))
        self.totals = {
            w: sum(self.weight(t, w) for t in tasks)
            for w in {upload.weighting for upload in uploads.values()}
        }

    @staticmethod
    def weight(task: ClientTask, weighting: Weighting) -> int:
        """Return a client's weight before normalisation, a whole number."""
        return len(task.examples) if weighting == "examples" else 1

    def shares(self, task: ClientTask) -> dict[str, float]:
        """Return, for each upload, a client's weight divided by that of the whole cohort."""
        return {
            name: self.weight(task, upload.weighting) / self.totals[upload.weighting]
            for name, upload in self.uploads.items()
        }

    def coverage(self, upload: Upload, name: str = "") -> Tensor:
        """Return the summed weight of the holders of each entry of an upload, float64.

        `name`: of an upload with entries of its own.
        Each weight is multiplied by the slice's weight of the entry; rows of a class count only
        clients that have the class.
        """
        weights = [self.weight(t, upload.weighting) for t in self.tasks]
        return self._sum(weights, self._holding(upload, name), entries_of(upload, self.sizes))

    def _holding(self, upload: Upload, name: str = "") -> dict[int, Slice]:
        """Return what each level that takes part holds of an upload."""
        levels = sorted({t.level for t in self.tasks})
        return {level: self.submodels[level].held(upload, name) for level in levels}

    def _sum(
        self,
        numbers: Sequence[float],
        holding: Mapping[int, Slice],
        size: int,
        weighted: bool = True,
    ) -> Tensor:
        """Return, for each of `size` entries, the sum of one number per client over the cohort's
        clients that hold it, float64.

        `holding`: what each level holds; `weighted`: each number times what the entry counts.
        """
        levels: dict[int, float] = {}
        by_class: dict[int, Tensor] = {}
        for task, number in zip(self.tasks, numbers, strict=True):
            levels[task.level] = levels.get(task.level, 0) + number
            if task.classes is not None and holding[task.level].rows is not None:
                mine = task.classes.double() * number
                by_class[task.level] = by_class.get(task.level, 0) + mine
        return self._spread(levels, by_class, holding, size, weighted)

    def _spread(
        self,
        levels: Mapping[int, float],
        by_class: Mapping[int, Tensor],
        holding: Mapping[int, Slice],
        size: int,
        weighted: bool = True,
    ) -> Tensor:
        """Return, for each of `size` entries, the sum of a number a level over the levels that hold
        it, float64.

        `by_class`: the number of a level for entries that belong to a class, float64 [classes].
        """
        held = torch.zeros(size, dtype=torch.float64, device=self.device)
        for level, where in holding.items():
            where.add(held, levels[level], weighted)
        rows = {
            level: where.rows.on(held.device)
            for level, where in holding.items()
            if by_class and where.rows is not None
        }
        # what has been added above counts clients without the class as well
        for r in rows.values():
            held[r.place] = 0.0
        for level, r in rows.items():
            held.index_add_(0, r.place, by_class[level].to(held.device)[r.owner])
        return held

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        """Return the weighted mean of one number per client over the holders of each coordinate,
        float32 [P]; 0 where there are none.
        """
        upload = Upload(weighting)
        weighed = [
            self.weight(t, weighting) * number
            for t, number in zip(self.tasks, numbers, strict=True)
        ]
        total = self._sum(weighed, self._holding(upload), self.sizes["params"])
        return total.div_(self.coverage(upload).clamp_(min=_NOBODY)).float()

    def participation(self) -> Tensor:
        """Return |S_p| / N_p: of each coordinate's holders in the population, the share that takes
        part, float32 [P].
        """
        size = self.sizes["params"]
        ones = [1] * len(self.tasks)
        takers = self._sum(ones, self._holding(Upload()), size, weighted=False)
        holders = self.holders
        if holders.everyone is not None:
            takers.div_(holders.everyone)
            if holders.everyone_by_class is not None:
                scale = holders.everyone / holders.everyone_by_class.clamp(min=1)
                place, owner = self._class_places()
                takers[place] *= scale.to(takers.device)[owner]
            return takers.float()
        holding = {level: self.submodels[level].params for level in sorted(holders.levels)}
        everybody = self._spread(holders.levels, holders.by_class, holding, size, weighted=False)
        return takers.div_(everybody.clamp_(min=_NOBODY)).float()

    def _class_places(self) -> tuple[Tensor, Tensor]:
        """Return every coordinate that belongs to a class, once, and its class."""
        owners = torch.full((self.sizes["params"],), -1, dtype=torch.int64, device=self.device)
        for sub in self.submodels.values():
            if sub.params.rows is not None:
                rows = sub.params.rows.on(owners.device)
                owners[rows.place] = rows.owner
        place = (owners >= 0).nonzero().flatten()
        return place, owners[place]

    def average(self, sums: RoundSums) -> Aggregate:
        """Turn reduced sums into means over the holders that were not skipped; coordinates that
        nobody holds get zero.
        """
        numbers = sums.numbers.cpu()
        skipped = numbers[2].tolist()
        left = self._without(skipped) if any(skipped) else self
        return left._average(sums, numbers)

    def _without(self, skipped: Sequence[int]) -> Cohort:
        """Return the cohort without some of its clients.

        `totals` stay: what was added was divided by them.
        """
        left = copy.copy(self)
        left.positions = [k for k, out in enumerate(skipped) if not out]
        left.tasks = [self.tasks[k] for k in left.positions]
        left.steps = tuple(self.steps[k] for k in left.positions)
        left.examples = tuple(self.examples[k] for k in left.positions)
        return left

    def _average(self, sums: RoundSums, numbers: Tensor) -> Aggregate:
        means: dict[str, Tensor] = {}
        covered = {
            part: torch.zeros(size, dtype=torch.bool, device=self.device)
            for part, size in self.sizes.items()
        }
        # one coverage at a time: it is as large as the model
        for names in self._alike():
            upload = self.uploads[names[0]]
            coverage = self.coverage(upload, names[0])
            if upload.entries in covered:
                covered[upload.entries] = coverage > 0
            for name in names:
                scale = self.totals[upload.weighting] / steps_in_one(self.uploads[name])
                means[name] = _mean(sums.vectors[name], coverage, scale)
            del coverage
        return Aggregate(
            mean=means,
            covered=covered["params"],
            buffers_covered=covered["buffers"],
            clients=self._rows(numbers),
            participation=self.participation,
        )

    def _alike(self) -> list[list[str]]:
        """Return the names of uploads in groups of equal coverage."""
        groups: dict[tuple[str, Weighting], list[str]] = {}
        for name, upload in self.uploads.items():
            shared = upload.entries if isinstance(upload.entries, str) else name
            groups.setdefault((shared, upload.weighting), []).append(name)
        return list(groups.values())

    def _rows(self, numbers: Tensor) -> tuple[ClientRow, ...]:
        losses = numbers[0].view(torch.float64).tolist()
        steps = numbers[1].tolist()
        return tuple(
            ClientRow(t.client, t.level, len(t.examples), losses[k], steps[k])
            for t, k in zip(self.tasks, self.positions, strict=True)
        )


def _mean(total: Tensor, coverage: Tensor, scale: float) -> Tensor:
    """Return total * scale / coverage as float32, zero where the coverage is zero."""
    out = torch.empty(total.shape, dtype=torch.float32, device=total.device)
    for begin in range(0, len(total), 1 << 20):
        part = slice(begin, begin + (1 << 20))
        # nobody's total is zero, so dividing it by one leaves it zero
        out[part] = (
            total[part]
            .double()
            .mul_(scale)
            .div_(torch.where(coverage[part] > 0, coverage[part], 1.0))
        )
    return out

"""Means of uploads per coordinate over the clients that hold it: who takes part, with which weight,
and what the exact sums make of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inco.server.sums import BUFFER_STEPS, PARAM_STEPS, RoundSums
from inco.types import Aggregate, ClientRow, ClientTask, SubModel, Weighting

_NOBODY = 1e-9  # the smallest denominator, so that 0 / 0 gives 0


@dataclass(frozen=True)
class Holders:
    """How many clients of the population hold each level, and of them, how many have each class
    (float64 [classes], where it matters).

    `anybody`: number of all clients, where everyone comes to hold everything in time: levels or
    windows that move; `anybody_by_class`: of them, how many have each class, as nobody comes to
    hold the rows of a class that it lacks.
    """

    levels: Mapping[int, float]
    by_class: Mapping[int, Tensor] = field(default_factory=dict)
    anybody: float | None = None
    anybody_by_class: Tensor | None = None


class Cohort:
    """Who takes part in a round, with which weight: everything about the averages that needs no
    communication.

    `tasks` in cohort order, with the local `steps` of each; `submodels` by level, for this round;
    `uploads`: their weighting by name; `buffers`: that of buffers; `population`: who holds what in
    the population; `momentum`: of the local optimizer; `num_params`, `num_buffers`: P and B;
    `device`: where the server's vectors are.
    """

    def __init__(
        self,
        tasks: Sequence[ClientTask],
        steps: Sequence[int],
        submodels: Mapping[int, SubModel],
        uploads: Mapping[str, Weighting],
        buffers: Weighting,
        population: Holders,
        momentum: float,
        num_params: int,
        num_buffers: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tasks = tasks
        self.steps = tuple(steps)
        self.submodels = submodels
        self.uploads = uploads
        self.buffer_weighting = buffers
        self.population = population
        self.momentum = momentum
        self.sizes = (num_params, num_buffers)
        self.device = device
        self.examples = tuple(len(t.examples) for t in tasks)
        self.positions: Sequence[int] = range(len(tasks))
        self.totals = {
            w: sum(self.weight(t, w) for t in tasks) for w in {*uploads.values(), buffers}
        }

    @staticmethod
    def weight(task: ClientTask, weighting: Weighting) -> int:
        """Return a client's weight before normalisation, a whole number."""
        return len(task.examples) if weighting == "examples" else 1

    def share(self, task: ClientTask, weighting: Weighting) -> float:
        """Return a client's part of a mean over the whole cohort."""
        return self.weight(task, weighting) / self.totals[weighting]

    def shares(self, task: ClientTask) -> dict[str, float]:
        """Return a client's part of the mean of each upload."""
        return {name: self.share(task, weighting) for name, weighting in self.uploads.items()}

    def coverage(self, weighting: Weighting, part: str = "params") -> Tensor:
        """Return the summed weight of the holders of each coordinate, float64 [P], or [B] where
        `part` is "buffers".

        Each weight is multiplied by the coordinate's `SubModel.importance`; a class's rows count
        only clients that have the class.
        """
        return self._sum([self.weight(t, weighting) for t in self.tasks], part)

    def _sum(self, numbers: Sequence[float], part: str = "params", counted: bool = True) -> Tensor:
        """Return, for each coordinate, the sum of one number per client over the cohort's clients
        that hold it, float64.

        `counted`: multiply by `SubModel.importance`.

        """
        levels: dict[int, float] = {}
        by_class: dict[int, Tensor] = {}
        for task, number in zip(self.tasks, numbers, strict=True):
            levels[task.level] = levels.get(task.level, 0) + number
            if task.classes is not None:
                mine = task.classes.double() * number
                by_class[task.level] = (
                    by_class[task.level] + mine if task.level in by_class else mine
                )
        return self._spread(levels, by_class, part, counted)

    def _spread(
        self,
        levels: Mapping[int, float],
        by_class: Mapping[int, Tensor],
        part: str = "params",
        counted: bool = True,
    ) -> Tensor:
        """Return, for each coordinate, the sum of a number a level over the levels that hold it,
        float64.

        `by_class`: the number of a level for parameters that belong to a class, float64 [classes].
        """
        held = torch.zeros(self.sizes[part == "buffers"], dtype=torch.float64, device=self.device)
        subs = {level: self.submodels[level] for level in sorted(levels) if level in self.submodels}
        for level, sub in subs.items():
            where = getattr(sub, part)
            importance = sub.importance if counted and part == "params" else None
            if importance is None:
                where.add(held, levels[level])
            else:
                held.index_add_(
                    0, where.index_on(held.device), importance.to(held.device) * levels[level]
                )
        if part == "params" and by_class:
            rows = {
                level: sub.class_rows for level, sub in subs.items() if sub.class_rows is not None
            }
            for r in rows.values():
                held[r.place.to(held.device)] = 0.0
            for level, r in rows.items():
                held.index_add_(
                    0,
                    r.place.to(held.device),
                    by_class[level].to(held.device)[r.owner.to(held.device)],
                )
        return held

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        """Return the weighted mean of one number per client over the holders of each coordinate,
        float32 [P]; 0 where there are none.
        """
        sums = [
            self.weight(t, weighting) * number
            for t, number in zip(self.tasks, numbers, strict=True)
        ]
        return self._sum(sums).div_(self.coverage(weighting).clamp_(min=_NOBODY)).float()

    def participation(self) -> Tensor:
        """Return |S_p| / N_p: of each coordinate's holders in the population, the share that takes
        part, float32 [P].
        """
        takers = self._sum([1] * len(self.tasks), counted=False)
        if self.population.anybody is not None:
            takers.div_(self.population.anybody)
            if self.population.anybody_by_class is not None:
                scale = self.population.anybody / self.population.anybody_by_class.clamp(min=1)
                place, owner = self._class_places()
                takers[place] *= scale.to(takers.device)[owner]
            return takers.float()
        everybody = self._spread(self.population.levels, self.population.by_class, counted=False)
        share = takers.div_(everybody.clamp_(min=_NOBODY))
        del everybody
        return share.float()

    def _class_places(self) -> tuple[Tensor, Tensor]:
        """Return every coordinate that belongs to a class, once, and its class."""
        rows = [sub.class_rows for sub in self.submodels.values() if sub.class_rows is not None]
        owners = torch.full((self.sizes[0],), -1, dtype=torch.int64, device=self.device)
        for r in rows:
            owners[r.place.to(self.device)] = r.owner.to(self.device)
        place = (owners >= 0).nonzero().flatten()
        return place, owners[place]

    def average(self, sums: RoundSums) -> Aggregate:
        """Turn reduced sums into means over the holders that were not skipped; coordinates that
        nobody holds get zero.
        """
        if sums.skipped.any():
            return self._without(sums.skipped.tolist())._average(sums)
        return self._average(sums)

    def _without(self, skipped: Sequence[int]) -> Cohort:
        """Return the cohort without some of its clients.

        `totals` stay: what was added was divided by them.
        """
        left = copy.copy(self)
        left.positions = [k for k, out in enumerate(skipped) if not out]
        left.tasks = [self.tasks[k] for k in left.positions]
        left.steps, left.examples = (
            tuple(each[k] for k in left.positions) for each in (self.steps, self.examples)
        )
        return left

    def _average(self, sums: RoundSums) -> Aggregate:
        means: dict[str, Tensor] = {}
        covered = torch.empty(0)
        # one coverage at a time: it is as large as the model
        for weighting in sorted(set(self.uploads.values())):
            coverage = self.coverage(weighting)
            covered = coverage > 0
            scale = self.totals[weighting] / PARAM_STEPS
            means |= {
                n: _mean(sums.vectors[n], coverage, scale)
                for n, w in self.uploads.items()
                if w == weighting
            }
            del coverage
        held = self.coverage(self.buffer_weighting, "buffers")
        return Aggregate(
            mean=means,
            covered=covered,
            buffers=_mean(sums.buffers, held, self.totals[self.buffer_weighting] / BUFFER_STEPS),
            buffers_covered=held > 0,
            clients=self._rows(sums),
            participation=self.participation,
            side=self._side(sums),
        )

    def _side(self, sums: RoundSums) -> Tensor:
        """Return the side sums as means over the clients of their level; zero where nobody of that
        level takes part.
        """
        weighting = next(iter(self.uploads.values()))
        weights = torch.zeros(sums.side.shape, dtype=torch.float64, device=self.device)
        for level in sorted({t.level for t in self.tasks}):
            total = sum(self.weight(t, weighting) for t in self.tasks if t.level == level)
            for s in self.submodels[level].side:
                weights[s.into : s.into + s.length] = total
        return _mean(sums.side, weights, self.totals[weighting] / PARAM_STEPS)

    def _rows(self, sums: RoundSums) -> tuple[ClientRow, ...]:
        losses = sums.losses.view(torch.float64).tolist()
        steps = sums.steps.tolist()
        numbers = zip(self.tasks, self.positions, strict=True)
        return tuple(
            ClientRow(t.client, t.level, len(t.examples), losses[k], steps[k]) for t, k in numbers
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

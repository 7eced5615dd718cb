"""Exact, order-free averaging of uploads per coordinate.

Every upload is weighted and rounded once to a 64-bit fixed-point number; whole numbers add associatively, so the sum has the same
bits whatever the order of clients and the number of workers. A round's sums lie in one vector and take one reduction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inco.errors import NumericError
from inco.flat import Layout, Slice
from inco.types import Aggregate, ClientResult, ClientRow, ClientTask, SubModel, Weighting

# One step of the fixed-point numbers. Shares of a cohort sum to one, so a sum is at most the largest upload: up to 2**22 for
# parameters (a delta that large has diverged) and 2**30 for buffers, whose values may be large but need fewer digits.
PARAM_STEPS = 2.0**40
BUFFER_STEPS = 2.0**32
_SUM_LIMIT = 2.0**62
_NOBODY = 1e-9  # what a weight of zero is divided by, and stays zero
_CHUNK = 32_768  # elements worked on at once; stays in a core's cache


class RoundSums:
    """A round's running sums on one worker: uploads, buffers and a few numbers of each client, in one int64 vector.

    `names`: uploads by name, the delta first; `num_params` P, `num_buffers` B; `cohort`: clients a round; `side` Q: entries of side sums.
    """

    def __init__(
        self, names: Sequence[str], num_params: int, num_buffers: int, cohort: int, device: torch.device | str = "cpu", side: int = 0
    ) -> None:
        sizes = [num_params] * len(names) + [num_buffers, side, cohort, cohort, 1]
        self.total = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        *vectors, self.buffers, self.side, self.losses, self.steps, self.failures = self.total.split(sizes)
        self.vectors = dict(zip(names, vectors, strict=True))
        self._wide = torch.empty(_CHUNK, dtype=torch.float64, device=device)
        self._whole = torch.empty(_CHUNK, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget a former round, in place."""
        self.total.zero_()

    def add(self, position: int, result: ClientResult, sub: SubModel, shares: Mapping[str, float], buffer_share: float) -> None:
        """Add one client at its `position` in the cohort. `shares`: its part of each mean, over the whole cohort.

        Raises NumericError where an upload is not finite or too large to be summed exactly.
        """
        for name, values in result.vectors.items():
            values = _present(values, sub, result.task)
            self._add(self.vectors[name], sub.params, values, shares[name], PARAM_STEPS, result.task, name, sub.importance)
            for s in sub.side if name == next(iter(self.vectors)) else ():
                self._run(self.side, s.into, values, s.start, s.length, shares[name] * s.factor * PARAM_STEPS)
        self._add(self.buffers, sub.buffers, result.buffers, buffer_share, BUFFER_STEPS, result.task, "buffers")
        self.losses[position] = torch.tensor(result.loss, dtype=torch.float64).view(torch.int64)  # its bits: one term, no rounding
        self.steps[position] = result.steps

    def _add(
        self,
        total: Tensor,
        where: Slice,
        values: Tensor,
        share: float,
        steps: float,
        task: ClientTask,
        name: str,
        importance: Tensor | None = None,
    ) -> None:
        if values.numel() == 0:
            return
        low, high = torch.aminmax(values)  # both NaN where any value is
        if not (low > -_SUM_LIMIT / steps and high < _SUM_LIMIT / steps):
            raise NumericError(_describe(values, where.layout, task, name, _SUM_LIMIT / steps))
        if where.runs is None:
            for begin, whole in self._whole_numbers(values, 0, values.numel(), share * steps, importance):
                total.index_add_(0, where.index_on(total.device).narrow(0, begin, len(whole)), whole)
            return
        for start, local, length in where.runs:
            self._run(total, start, values, local, length, share * steps, importance)

    def _run(
        self, total: Tensor, into: int, values: Tensor, start: int, length: int, factor: float, importance: Tensor | None = None
    ) -> None:
        """Add a stretch of values, each times a factor and rounded, to a stretch of sums."""
        for begin, whole in self._whole_numbers(values, start, length, factor, importance):
            total.narrow(0, into + begin, len(whole)).add_(whole)

    def _whole_numbers(
        self, values: Tensor, start: int, length: int, factor: float, importance: Tensor | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield a stretch of values times `factor` (and times its importance) as whole numbers, piece by piece with its offset."""
        for begin in range(0, length, _CHUNK):
            size = min(_CHUNK, length - begin)
            wide, whole = self._wide[:size], self._whole[:size]
            wide.copy_(values.narrow(0, start + begin, size)).mul_(factor)
            if importance is not None:
                wide.mul_(importance.narrow(0, start + begin, size).to(wide.device))
            whole.copy_(wide.round_())
            yield begin, whole


def _present(values: Tensor, sub: SubModel, task: ClientTask) -> Tensor:
    """Return an upload with zero where the client has no say: parameters of classes that it has no example of."""
    rows = sub.class_rows
    if rows is None or task.classes is None or values.numel() != sub.params.layout.numel:
        return values
    values = values.clone()
    values[rows.local.to(values.device)] *= task.classes[rows.owner].to(values)
    return values


@dataclass(frozen=True)
class Holders:
    """How many clients of the population hold each level, and of them, how many have each class (float64 [classes], where it matters).

    `anybody`: number of all clients, where everyone comes to hold everything in time: levels or windows that move; `anybody_by_class`: of
    them, how many have each class, as nobody comes to hold the rows of a class that it lacks.
    """

    levels: Mapping[int, float]
    by_class: Mapping[int, Tensor] = field(default_factory=dict)
    anybody: float | None = None
    anybody_by_class: Tensor | None = None


class Cohort:
    """Who takes part in a round, with which weight: everything about the averages that needs no communication.

    `tasks` in cohort order, with the local `steps` of each; `submodels` by level, for this round; `uploads`: their weighting by name;
    `buffers`: that of buffers; `population`: who holds what in the population; `momentum`: of the local optimizer;
    `num_params`, `num_buffers`: P and B; `device`: where the server's vectors are.
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
        self.tasks, self.steps, self.submodels, self.uploads, self.buffer_weighting = tasks, tuple(steps), submodels, uploads, buffers
        self.population, self.momentum, self.sizes, self.device = population, momentum, (num_params, num_buffers), device
        self.examples = tuple(len(t.examples) for t in tasks)
        self.totals = {w: sum(self.weight(t, w) for t in tasks) for w in {*uploads.values(), buffers}}

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
        """Return the summed weight of the holders of each coordinate, float64 [P], or [B] where `part` is "buffers"."""
        return self._sum([self.weight(t, weighting) for t in self.tasks], part)

    def _sum(self, numbers: Sequence[float], part: str = "params", counted: bool = True) -> Tensor:
        """Return, for each coordinate, the sum of a number a client over the cohort's clients that hold it, float64.

        `counted`: times what the coordinate counts in the client's sub-model.
        """
        levels: dict[int, float] = {}
        by_class: dict[int, Tensor] = {}
        for task, number in zip(self.tasks, numbers, strict=True):
            levels[task.level] = levels.get(task.level, 0) + number
            if task.classes is not None:
                mine = task.classes.double() * number
                by_class[task.level] = by_class[task.level] + mine if task.level in by_class else mine
        return self._spread(levels, by_class, part, counted)

    def _spread(self, levels: Mapping[int, float], by_class: Mapping[int, Tensor], part: str = "params", counted: bool = True) -> Tensor:
        """Return, for each coordinate, the sum of a number a level over the levels that hold it, float64.

        `by_class`: the number of a level for parameters that belong to a class, float64 [classes].
        """
        held = torch.zeros(self.sizes[part == "buffers"], dtype=torch.float64, device=self.device)
        subs = {level: self.submodels[level] for level in sorted(levels) if level in self.submodels}
        for level, sub in subs.items():
            where, importance = getattr(sub, part), sub.importance if counted and part == "params" else None
            if importance is None:
                where.add(held, levels[level])
            else:
                held.index_add_(0, where.index_on(held.device), importance.to(held.device) * levels[level])
        if part == "params" and by_class:
            rows = {level: sub.class_rows for level, sub in subs.items() if sub.class_rows is not None}
            for r in rows.values():
                held[r.place.to(held.device)] = 0.0
            for level, r in rows.items():
                held.index_add_(0, r.place.to(held.device), by_class[level].to(held.device)[r.owner.to(held.device)])
        return held

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        """Return the weighted mean of a number a client over the holders of each coordinate, float32 [P]; 0 where there are none."""
        sums = [self.weight(t, weighting) * number for t, number in zip(self.tasks, numbers, strict=True)]
        return self._sum(sums).div_(self.coverage(weighting).clamp_(min=_NOBODY)).float()

    def participation(self) -> Tensor:
        """Return |S_p| / N_p: of each coordinate's holders in the population, the share that takes part, float32 [P]."""
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
        """Turn reduced sums into means over the holders; coordinates that nobody holds get zero."""
        means: dict[str, Tensor] = {}
        covered = torch.empty(0)
        for weighting in sorted(set(self.uploads.values())):  # one coverage at a time: it is as large as the model
            coverage = self.coverage(weighting)
            covered = coverage > 0
            scale = self.totals[weighting] / PARAM_STEPS
            means |= {n: _mean(sums.vectors[n], coverage, scale) for n, w in self.uploads.items() if w == weighting}
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
        """Return the side sums as means over the clients of their level; zero where nobody of that level takes part."""
        weighting = next(iter(self.uploads.values()))
        weights = torch.zeros(sums.side.shape, dtype=torch.float64, device=self.device)
        for level in sorted({t.level for t in self.tasks}):
            total = sum(self.weight(t, weighting) for t in self.tasks if t.level == level)
            for s in self.submodels[level].side:
                weights[s.into : s.into + s.length] = total
        return _mean(sums.side, weights, self.totals[weighting] / PARAM_STEPS)

    def _rows(self, sums: RoundSums) -> tuple[ClientRow, ...]:
        losses, steps = sums.losses.view(torch.float64).tolist(), sums.steps.tolist()
        numbers = zip(self.tasks, losses, steps, strict=True)
        return tuple(ClientRow(t.client, t.level, len(t.examples), loss, count) for t, loss, count in numbers)


def _mean(total: Tensor, coverage: Tensor, scale: float) -> Tensor:
    """Return total * scale / coverage as float32, zero where the coverage is zero."""
    out = torch.empty(total.shape, dtype=torch.float32, device=total.device)
    for begin in range(0, len(total), 1 << 20):
        part = slice(begin, begin + (1 << 20))
        # nobody's total is zero, so dividing it by one leaves it zero
        out[part] = total[part].double().mul_(scale).div_(torch.where(coverage[part] > 0, coverage[part], 1.0))
    return out


def _describe(values: Tensor, layout: Layout, task: ClientTask, name: str, limit: float) -> str:
    for tensor in layout.entries:
        view = layout.view(values, tensor)
        bad = ~(view.abs() < limit)
        if bad.any():
            found = view[bad].flatten()[0].item()
            what = f"{int(bad.sum())} of {view.numel()} values of {tensor} (first: {found})"
            break
    else:
        what = "values"
    return (
        f"round {task.round}, client {task.client}: its upload '{name}' has {what} that are not finite or above {limit:.3g}; "
        "nothing of this round has been applied. Local training diverged: lower local.lr, or look at this client's data"
    )

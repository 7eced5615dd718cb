"""Exact, order-free averaging of uploads per coordinate.

Every upload is weighted and rounded once to a 64-bit fixed-point number; whole numbers add associatively, so the sum has the same
bits whatever the order of clients and the number of workers. A round's sums lie in one vector and take one reduction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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

    `names`: uploads by name; `num_params` P, `num_buffers` B; `cohort`: clients a round.
    """

    def __init__(self, names: Sequence[str], num_params: int, num_buffers: int, cohort: int, device: torch.device | str = "cpu") -> None:
        sizes = [num_params] * len(names) + [num_buffers, cohort, cohort, 1]
        self.total = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        *vectors, self.buffers, self.losses, self.steps, self.failures = self.total.split(sizes)
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
            self._add(self.vectors[name], sub.params, values, shares[name], PARAM_STEPS, result.task, name)
        self._add(self.buffers, sub.buffers, result.buffers, buffer_share, BUFFER_STEPS, result.task, "buffers")
        self.losses[position] = torch.tensor(result.loss, dtype=torch.float64).view(torch.int64)  # its bits: one term, no rounding
        self.steps[position] = result.steps

    def _add(self, total: Tensor, where: Slice, values: Tensor, share: float, steps: float, task: ClientTask, name: str) -> None:
        if values.numel() == 0:
            return
        low, high = torch.aminmax(values)  # both NaN where any value is
        if not (low > -_SUM_LIMIT / steps and high < _SUM_LIMIT / steps):
            raise NumericError(_describe(values, where.layout, task, name, _SUM_LIMIT / steps))
        for start, local, length in where.runs if where.runs is not None else [(None, 0, values.numel())]:
            for begin in range(0, length, _CHUNK):
                size = min(_CHUNK, length - begin)
                wide, whole = self._wide[:size], self._whole[:size]
                wide.copy_(values.narrow(0, local + begin, size)).mul_(share * steps).round_()
                whole.copy_(wide)
                if start is None:
                    total.index_add_(0, where.index_on(total.device).narrow(0, begin, size), whole)
                else:
                    total.narrow(0, start + begin, size).add_(whole)


class Cohort:
    """Who takes part in a round, with which weight: everything about the averages that needs no communication.

    `tasks` in cohort order, with the local `steps` of each; `submodels` by level, for this round; `uploads`: their weighting by name;
    `buffers`: that of buffers; `population`: how many clients of the population hold each level; `momentum`: of the local optimizer;
    `num_params`, `num_buffers`: P and B; `device`: where the server's vectors are.
    """

    def __init__(
        self,
        tasks: Sequence[ClientTask],
        steps: Sequence[int],
        submodels: Mapping[int, SubModel],
        uploads: Mapping[str, Weighting],
        buffers: Weighting,
        population: Mapping[int, float],
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
        levels: Counter[int] = Counter()
        for task in self.tasks:
            levels[task.level] += self.weight(task, weighting)
        return self._spread(levels, part)

    def _spread(self, levels: Mapping[int, float], part: str = "params") -> Tensor:
        """Return, for each coordinate, the sum of a number a level over the levels that hold it, float64."""
        held = torch.zeros(self.sizes[part == "buffers"], dtype=torch.float64, device=self.device)
        for level in sorted(levels):
            getattr(self.submodels[level], part).add(held, levels[level])
        return held

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        """Return the weighted mean of a number a client over the holders of each coordinate, float32 [P]; 0 where there are none."""
        sums: Counter[int] = Counter()
        for task, number in zip(self.tasks, numbers, strict=True):
            sums[task.level] += self.weight(task, weighting) * number  # type: ignore[assignment]
        return self._spread(sums).div_(self.coverage(weighting).clamp_(min=_NOBODY)).float()

    def participation(self) -> Tensor:
        """Return |S_p| / N_p: of each coordinate's holders in the population, the share that takes part, float32 [P]."""
        everybody = self._spread({level: n for level, n in self.population.items() if level in self.submodels})
        return self.coverage("uniform").div_(everybody.clamp_(min=_NOBODY)).float()

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
        )

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

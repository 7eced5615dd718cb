"""Scores of every capacity's sub-model on the whole test set, spread over the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from inco.clients.pool import ModelPool
from inco.clients.trainer import Batch, take
from inco.data.dataset import Images
from inco.data.transforms import Transform
from inco.evaluation.batchnorm import StaticNorm
from inco.evaluation.shared_prefix import Nested, nested, steps_of
from inco.fast.schedule import assign
from inco.seeding import generator
from inco.types import Output, SubModel

BATCH = 250  # test images at once; part of the arithmetic, so the same on every machine
# batches a worker from which whole batches are dealt out: fewer would leave some workers idle
_BATCHES = 4
_LOSS_STEPS = 2.0**24  # fixed-point steps of a summed loss: whole numbers add in any order


@dataclass(frozen=True)
class Score:
    """One level on the whole test set: accuracy in percent, mean loss (NaN where a loss was not
    finite), examples scored.
    """

    accuracy: float
    loss: float
    count: int


class Evaluator:
    """Scores levels on a test set. A unit of work is one batch of one level, so any number of
    workers can share it.

    `correct`, `count`, `loss` and `broken` of each level form one int64 table [levels, 4] that
    workers sum. With `norm`, BatchNorm's statistics are measured first, in the same way.
    `precision`: of the forward pass, the one that models are trained in. `mixed`: batches are drawn
    from all of the test set, in one order for the whole run: BatchNorm by the batch at hand would
    else see one class at a time where a test set is sorted.
    """

    def __init__(
        self,
        pool: ModelPool,
        test: Images,
        transform: Transform,
        levels: Sequence[int],
        seed: int,
        norm: StaticNorm | None = None,
        precision: str = "fp32",
        mixed: bool = False,
    ) -> None:
        self.pool = pool
        self.test = test
        self.transform = transform
        self.levels = list(levels)
        self.seed = seed
        self.norm = norm
        self.precision = precision
        order = generator(seed, "test_order") if mixed else None
        self.order = (
            torch.randperm(len(test.labels), generator=order).to(pool.device)
            if mixed
            else torch.arange(len(test.labels)).to(pool.device)
        )
        self.starts = list(range(0, len(test.labels), BATCH))
        if len(self.starts) > 1 and len(test.labels) - self.starts[-1] == 1:
            self.starts.pop()  # BatchNorm by the batch at hand needs two images

    def units(self, costs: Mapping[int, float]) -> tuple[list[tuple[int, int]], list[float]]:
        """Return every (level, batch number) and its cost."""
        units = [(level, number) for level in self.levels for number in range(len(self.starts))]
        return units, [costs[level] for level, _ in units]

    def assignment(
        self, submodels: Mapping[int, SubModel], costs: Mapping[int, float], workers: int
    ) -> list[list[tuple[int, int]]]:
        """Return the units of each worker. Levels with steps in common stay together, if there are
        batches enough to go round.

        Scores are the same in any case.
        """
        units, of = self.units(costs)
        shared = self._shared(submodels) if len(self.starts) >= _BATCHES * workers else None
        bundles: dict[object, list[int]] = {}
        for position, (level, number) in enumerate(units):
            bundles.setdefault(
                ("shared", number) if shared and level in shared.paths else position, []
            ).append(position)
        bundled = list(bundles.values())
        shares = assign([sum(of[i] for i in bundle) for bundle in bundled], workers)
        return [[units[i] for place in mine for i in bundled[place]] for mine in shares]

    def norm_units(self, costs: Mapping[int, float]) -> tuple[list[tuple[int, int]], list[float]]:
        """Return every (level, training batch) to measure statistics on, and its cost; none without
        static BatchNorm.
        """
        units = (
            [(level, number) for level in self.levels for number in range(self.norm.batches())]
            if self.norm
            else []
        )
        return units, [costs[level] for level, _ in units]

    def measure(
        self,
        units: Sequence[tuple[int, int]],
        submodels: Mapping[int, SubModel],
        w: Tensor,
        b: Tensor,
        round: int,
    ) -> Tensor:
        """Measure this worker's units: the sums of each level's statistics, one after the other,
        int64.
        """
        assert self.norm is not None
        parts = []
        for level in self.levels:
            sub = submodels[level]
            numbers = [number for own, number in units if own == level]
            bound = self.pool.get(sub).bound
            part = torch.zeros(
                self.norm.size(bound.model), dtype=torch.int64, device=self.pool.device
            )
            if numbers and len(part):
                bound.load(w, b, sub.params, sub.buffers)
                for number in numbers:
                    part += self.norm.measure(bound.model, number, round)
            parts.append(part)
        return torch.cat(parts)

    @torch.no_grad()
    def score(
        self,
        units: Sequence[tuple[int, int]],
        submodels: Mapping[int, SubModel],
        w: Tensor,
        b: Tensor,
        round: int,
        measured: Tensor | None = None,
    ) -> Tensor:
        """Score this worker's units and return its table, int64 [levels, 4].

        `measured`: summed statistics of all levels, if any.
        """
        sizes = (
            [self.norm.size(self.pool.get(submodels[level]).bound.model) for level in self.levels]
            if self.norm
            else []
        )
        statistics = measured.split(sizes) if measured is not None else ()
        table = torch.zeros(len(self.levels), 4, dtype=torch.int64, device=self.pool.device)
        shared = self._shared(submodels) if len({level for level, _ in units}) > 1 else None
        for row, level in enumerate(self.levels):
            numbers = [number for own, number in units if own == level]
            if not numbers or (shared and level in shared.paths):
                continue
            model = self._loaded(submodels[level], w, b)
            if self.norm:
                self.norm.install(model, statistics[row])
            for number in numbers:
                x, y = self._batch(number, round)
                with self._autocast():
                    output = model(x)
                table[row] += _judged(output, y)
            if self.norm:
                self.norm.remove(model)
        if shared:
            steps = steps_of(self._loaded(submodels[shared.host], w, b))
            batches: dict[int, list[int]] = {}
            for level, number in units:
                if level in shared.paths:
                    batches.setdefault(number, []).append(level)
            for number, levels in batches.items():
                x, y = self._batch(number, round)
                with self._autocast():
                    for level, output in shared.outputs(steps, x, levels):
                        table[self.levels.index(level)] += _judged(output, y)
        return table

    def _shared(self, submodels: Mapping[int, SubModel]) -> Nested | None:
        """Return the levels whose first steps are the same and are taken once; none where each has
        statistics of its own.
        """
        if self.norm:
            return None
        models = {level: self.pool.get(submodels[level]).bound.model for level in self.levels}
        return nested({level: submodels[level] for level in self.levels}, models)

    def _loaded(self, sub: SubModel, w: Tensor, b: Tensor) -> torch.nn.Module:
        bound = self.pool.get(sub).bound
        bound.load(w, b, sub.params, sub.buffers)
        return bound.model.eval()

    def _batch(self, number: int, round: int) -> Batch:
        start = self.starts[number]
        stop = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.test.labels)
        stream = generator(self.seed, "test", round, number, device=self.pool.device)
        return take(self.test, self.order[start:stop], self.transform, stream)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.pool.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )

    def scores(self, table: Tensor) -> dict[int, Score]:
        """Turn the summed table into a score a level."""
        out = {}
        for level, (correct, count, fixed, broken) in zip(self.levels, table.tolist(), strict=True):
            loss = float("nan") if broken else fixed / _LOSS_STEPS / count
            out[level] = Score(100.0 * correct / count, loss, count)
        return out


def _judged(output: Output, y: Tensor) -> Tensor:
    """Return a batch's row of the table: correct, count, loss in fixed point, and whether the loss
    was not finite; int64 [4].
    """
    logits = output.logits.float()
    loss = F.cross_entropy(logits, y, reduction="sum").double()
    broken = ~(loss < 2.0**24)
    fixed = torch.where(broken, 0.0, loss * _LOSS_STEPS).round().long()
    count = torch.full_like(fixed, len(y))
    return torch.stack([(logits.argmax(1) == y).sum(), count, fixed, broken.long()])

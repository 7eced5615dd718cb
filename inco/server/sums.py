"""Exact sums of uploads, whatever the order of clients and the number of workers.

Every upload is weighted and rounded once to a 64-bit fixed-point number; whole numbers add
associatively. A round's sums lie in one vector and take one reduction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from inco.errors import NumericError
from inco.flat import Layout, Slice
from inco.types import ClientResult, ClientTask, SubModel

# One step of the fixed-point numbers. Shares of a cohort sum to one, so a sum is at most the
# largest upload: up to 2**22 for parameters (a delta that large has diverged) and 2**30 for
# buffers, whose values may be large but need fewer digits.
PARAM_STEPS = 2.0**40
BUFFER_STEPS = 2.0**32
_SUM_LIMIT = 2.0**62
_CHUNK = 32_768  # elements worked on at once; stays in a core's cache


class RoundSums:
    """A round's running sums on one worker: uploads, buffers and a few numbers of each client, in
    one int64 vector.

    `names`: uploads by name, the delta first; `num_params` P, `num_buffers` B; `cohort`: clients a
    round; `side` Q: entries of side sums.
    """

    def __init__(
        self,
        names: Sequence[str],
        num_params: int,
        num_buffers: int,
        cohort: int,
        device: torch.device | str = "cpu",
        side: int = 0,
    ) -> None:
        sizes = [num_params] * len(names) + [num_buffers, side, cohort, cohort, cohort, 1]
        self.total = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        *vectors, self.buffers, self.side, self.losses, self.steps, self.skipped, self.failures = (
            self.total.split(sizes)
        )
        self.vectors = dict(zip(names, vectors, strict=True))
        self._wide = torch.empty(_CHUNK, dtype=torch.float64, device=device)
        self._whole = torch.empty(_CHUNK, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget a former round, in place."""
        self.total.zero_()

    def add(
        self,
        position: int,
        result: ClientResult,
        sub: SubModel,
        shares: Mapping[str, float],
        buffer_share: float,
    ) -> None:
        """Add one client at its `position` in the cohort. `shares`: its part of each mean, over the
        whole cohort.

        Raises NumericError where its loss or an upload is not finite, or too large to be summed
        exactly; nothing of it is added then.
        """
        self._check(result, sub)
        for name, values in result.vectors.items():
            values = _present(values, sub, result.task)
            self._add(
                self.vectors[name], sub.params, values, shares[name] * PARAM_STEPS, sub.importance
            )
            for s in sub.side if name == next(iter(self.vectors)) else ():
                self._run(
                    self.side,
                    s.into,
                    values,
                    s.start,
                    s.length,
                    shares[name] * s.factor * PARAM_STEPS,
                )
        self._add(self.buffers, sub.buffers, result.buffers, buffer_share * BUFFER_STEPS)
        # its bits: one term, no rounding
        self.losses[position] = torch.tensor(result.loss, dtype=torch.float64).view(torch.int64)
        self.steps[position] = result.steps

    def skip(self, position: int) -> None:
        """Leave a client out, the one at this `position` in the cohort."""
        self.skipped[position] = 1

    @staticmethod
    def _check(result: ClientResult, sub: SubModel) -> None:
        if not math.isfinite(result.loss):
            raise NumericError(_diverged(result.task, f"its mean training loss is {result.loss}"))
        uploads = [
            (name, values, sub.params.layout, PARAM_STEPS)
            for name, values in result.vectors.items()
        ]
        for name, values, layout, steps in [
            *uploads,
            ("buffers", result.buffers, sub.buffers.layout, BUFFER_STEPS),
        ]:
            if values.numel():
                limit = _SUM_LIMIT / steps
                low, high = torch.aminmax(values)  # both NaN where any value is
                if not (low > -limit and high < limit):
                    raise NumericError(
                        _diverged(result.task, _describe(values, layout, name, limit))
                    )

    def _add(
        self,
        total: Tensor,
        where: Slice,
        values: Tensor,
        factor: float,
        importance: Tensor | None = None,
    ) -> None:
        if values.numel() == 0:
            return
        if where.runs is None:
            for begin, whole in self._whole_numbers(values, 0, values.numel(), factor, importance):
                total.index_add_(
                    0, where.index_on(total.device).narrow(0, begin, len(whole)), whole
                )
            return
        for start, local, length in where.runs:
            self._run(total, start, values, local, length, factor, importance)

    def _run(
        self,
        total: Tensor,
        into: int,
        values: Tensor,
        start: int,
        length: int,
        factor: float,
        importance: Tensor | None = None,
    ) -> None:
        """Add a stretch of values, each times a factor and rounded, to a stretch of sums."""
        for begin, whole in self._whole_numbers(values, start, length, factor, importance):
            total.narrow(0, into + begin, len(whole)).add_(whole)

    def _whole_numbers(
        self, values: Tensor, start: int, length: int, factor: float, importance: Tensor | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield a stretch of values times `factor` (and times its importance) as whole numbers,
        piece by piece with its offset.
        """
        for begin in range(0, length, _CHUNK):
            size = min(_CHUNK, length - begin)
            wide = self._wide[:size]
            whole = self._whole[:size]
            wide.copy_(values.narrow(0, start + begin, size)).mul_(factor)
            if importance is not None:
                wide.mul_(importance.narrow(0, start + begin, size).to(wide.device))
            whole.copy_(wide.round_())
            yield begin, whole


def _present(values: Tensor, sub: SubModel, task: ClientTask) -> Tensor:
    """Return an upload with zero where the client has no say: parameters of classes that it has no
    example of.
    """
    rows = sub.class_rows
    if rows is None or task.classes is None or values.numel() != sub.params.layout.numel:
        return values
    values = values.clone()
    values[rows.local.to(values.device)] *= task.classes[rows.owner].to(values)
    return values


def _describe(values: Tensor, layout: Layout, name: str, limit: float) -> str:
    for tensor in layout.entries if values.numel() == layout.numel else ():
        view = layout.view(values, tensor)
        bad = ~(view.abs() < limit)
        if bad.any():
            found = view[bad].flatten()[0].item()
            what = f"{int(bad.sum())} of {view.numel()} values of {tensor} (first: {found})"
            break
    else:
        what = "values"
    return f"its upload '{name}' has {what} that are not finite or above {limit:.3g}"


def _diverged(task: ClientTask, what: str) -> str:
    return (
        f"round {task.round}, client {task.client}: {what}; nothing of this round has been applied."
        " Local training diverged: lower local.lr, look at this client's data, or leave such"
        " clients out with uplink.nonfinite=skip"
    )

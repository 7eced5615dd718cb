"""Exact sums of uploads, whatever the order of clients and the number of workers.

Every upload is weighted and rounded once to a 64-bit fixed-point number; whole numbers add
associatively. A round's sums lie in one vector and take one reduction.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from inco.errors import NumericError
from inco.flat import Layout, Slice
from inco.types import ClientResult, ClientTask, SubModel, Upload

# A sum of shares times values is below the upload's limit, which is this many steps: it fits into
# 64 bits, with a bit to spare for the rounding of each term.
_SUM_LIMIT = 2.0**62
# Elements worked on at once: on a CPU they stay in a core's cache, on a GPU each piece is a launch.
_CHUNK = {"cpu": 1 << 15, "cuda": 1 << 24}


def entries_of(upload: Upload, sizes: Mapping[str, int]) -> int:
    """Return the entries of an upload's vector at the server.

    `sizes`: P and B, as "params" and "buffers".
    """
    return upload.entries if isinstance(upload.entries, int) else sizes[upload.entries]


def steps_in_one(upload: Upload) -> float:
    """Return how many steps of an upload's fixed-point numbers make one."""
    return _SUM_LIMIT / upload.limit


class RoundSums:
    """A round's running sums on one worker: uploads and a few numbers of each client, in one int64
    vector.

    `uploads`: by name; `sizes`: P and B, as "params" and "buffers"; `cohort_size`: clients in a
    round.
    """

    def __init__(
        self,
        uploads: Mapping[str, Upload],
        sizes: Mapping[str, int],
        cohort_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.uploads = uploads
        lengths = [entries_of(upload, sizes) for upload in uploads.values()]
        lengths += [cohort_size] * 3
        self.total = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
        *vectors, self.losses, self.steps, self.skipped = self.total.split(lengths)
        self.numbers = self.total[-3 * cohort_size :].view(3, cohort_size)
        self.vectors = dict(zip(uploads, vectors, strict=True))
        chunk = min(_CHUNK[self.total.device.type], max(lengths))
        self._wide = torch.empty(chunk, dtype=torch.float64, device=device)
        self._whole = torch.empty(chunk, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget a former round, in place."""
        self.total.zero_()

    def add(
        self,
        position: int,
        result: ClientResult,
        sub: SubModel,
        shares: Mapping[str, float],
    ) -> None:
        """Add one client at its `position` in the cohort. `shares`: for each upload, the client's
        weight divided by that of the whole cohort.

        Raises NumericError where its loss or an upload is not finite, or too large to be summed
        exactly; nothing of it is added then.
        """
        held = {name: sub.held(upload, name) for name, upload in self.uploads.items()}
        self._check(result, held)
        for name, where in held.items():
            values = _zero_absent_classes(result.vectors[name], where, result.task)
            factor = shares[name] * steps_in_one(self.uploads[name])
            self._add(self.vectors[name], where, values, factor)
        # its bits: one term, no rounding
        self.losses[position] = struct.unpack("q", struct.pack("d", result.loss))[0]
        self.steps[position] = result.steps

    def skip(self, position: int) -> None:
        """Leave a client out, the one at this `position` in the cohort."""
        self.skipped[position] = 1

    def _check(self, result: ClientResult, held: Mapping[str, Slice]) -> None:
        if not math.isfinite(result.loss):
            raise NumericError(_diverged(result.task, f"its mean training loss is {result.loss}"))
        names = [name for name in held if result.vectors[name].numel()]
        # one wait for the device: both are NaN where any value is
        bounds = [torch.stack(torch.aminmax(result.vectors[name])).double() for name in names]
        for name, (low, high) in zip(names, torch.stack(bounds).tolist(), strict=True):
            limit = self.uploads[name].limit
            if not (low > -limit and high < limit):
                what = _describe(result.vectors[name], held[name].layout, name, limit)
                raise NumericError(_diverged(result.task, what))

    def _add(self, total: Tensor, where: Slice, values: Tensor, factor: float) -> None:
        """Add a client's values, each times a factor and rounded, to the sums of its entries."""
        if values.numel() == 0:
            return
        weight = where.weight
        runs = where.runs_on(total.device)
        if runs is None:
            index = where.index_on(total.device)
            for begin, whole in self._whole_numbers(values, 0, len(values), factor, weight):
                total.index_add_(0, index.narrow(0, begin, len(whole)), whole)
            return
        for start, local, length in runs:
            for begin, whole in self._whole_numbers(values, local, length, factor, weight):
                total.narrow(0, start + begin, len(whole)).add_(whole)

    def _whole_numbers(
        self, values: Tensor, start: int, length: int, factor: float, weight: Tensor | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield a stretch of values times `factor` (and times each one's weight) as whole numbers,
        piece by piece with its offset.
        """
        chunk = len(self._wide)
        for begin in range(0, length, chunk):
            size = min(chunk, length - begin)
            wide = self._wide[:size]
            whole = self._whole[:size]
            wide.copy_(values.narrow(0, start + begin, size)).mul_(factor)
            if weight is not None:
                wide.mul_(weight.narrow(0, start + begin, size).to(wide.device))
            whole.copy_(wide.round_())
            yield begin, whole


def _zero_absent_classes(values: Tensor, where: Slice, task: ClientTask) -> Tensor:
    """Return an upload with zero in rows of classes of which the client has no example."""
    if where.rows is None or task.classes is None:
        return values
    rows = where.rows.on(values.device)
    values = values.clone()
    values[rows.local] *= task.classes.to(values)[rows.owner]
    return values


def _describe(values: Tensor, layout: Layout, name: str, limit: float) -> str:
    views = layout.views(values)
    tensor = next(n for n, view in views.items() if not (view.abs() < limit).all())
    bad = views[tensor][~(views[tensor].abs() < limit)].flatten()
    return (
        f"its upload '{name}' has {len(bad)} of {views[tensor].numel()} values of {tensor} (first:"
        f" {bad[0].item()}) that are not finite or above {limit:.3g}"
    )


def _diverged(task: ClientTask, what: str) -> str:
    return (
        f"round {task.round}, client {task.client}: {what}; nothing of this round has been applied."
        " Local training diverged: lower local.lr, look at this client's data, or leave such"
        " clients out with uplink.nonfinite=skip"
    )

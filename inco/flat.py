"""Models as flat vectors: where each named tensor lives, and which global coordinates a sub-model
holds.

The server knows one vector of length P (all trainable parameters of the global model) and one of
length B (its buffers). A client knows one of length n and its own buffers. A `Layout` says where
each tensor lives in such a vector, a `Slice` which of the P coordinates a client's n are.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Tensor, nn

Axes = tuple[str | None, ...]

# Above this many contiguous runs one indexed copy is faster than a copy for each run: on a GPU each
# run is a launch.
_MOST_RUNS = {"cpu": 4096, "cuda": 64}


@dataclass(frozen=True)
class Entry:
    """One named tensor of a layout.

    `axes` names the channel group of each dimension; equal names are tied.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    axes: Axes = ()
    integer: bool = (
        False  # a counter, such as BatchNorm's num_batches_tracked; kept whole by truncation
    )

    @cached_property
    def numel(self) -> int:
        return prod(self.shape)


class Layout:
    """Where each named tensor lives in one flat vector of `numel` elements.

    Convolution weights (four dimensions) are stored channels-last, so their view has shape [O, I,
    H, W] and the strides that CPU and GPU convolutions run fastest with.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: dict[str, Entry] = {e.name: e for e in entries}
        self.numel = sum(e.numel for e in self.entries.values())

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], axes: Mapping[str, Axes] | None = None) -> Layout:
        """Lay out `tensors` one after the other in their order.

        `axes` names channel groups by tensor name.
        """
        entries = []
        offset = 0
        for name, t in tensors.items():
            named = (axes or {}).get(name, (None,) * t.ndim)
            if len(named) != t.ndim:
                raise ValueError(
                    f"axes of {name} are {named}, but its shape is {tuple(t.shape)}: name one group"
                    " a dimension"
                )
            entries.append(Entry(name, tuple(t.shape), offset, named, not t.is_floating_point()))
            offset += t.numel()
        return cls(entries)

    @classmethod
    def concat(cls, parts: Mapping[str, Layout]) -> Layout:
        """Lay out whole layouts one after the other; names become `prefix/name`."""
        entries = []
        offset = 0
        for prefix, part in parts.items():
            for e in part.entries.values():
                entries.append(
                    Entry(f"{prefix}/{e.name}", e.shape, offset + e.offset, e.axes, e.integer)
                )
            offset += part.numel
        return cls(entries)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """Return the tensor `name` as a view of `flat` ([numel])."""
        e = self.entries[name]
        part = flat.narrow(0, e.offset, e.numel)
        if len(e.shape) == 4:
            out, into, height, width = e.shape
            return part.view(out, height, width, into).permute(0, 3, 1, 2)
        return part.view(e.shape)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every tensor by name, as views of `flat`."""
        return {name: self.view(flat, name) for name in self.entries}

    @torch.no_grad()
    def pack(self, tensors: Mapping[str, Tensor], flat: Tensor | None = None) -> Tensor:
        """Copy `tensors` into a flat float32 vector (a new one, or `flat`)."""
        flat = torch.empty(self.numel) if flat is None else flat
        for name in self.entries:
            self.view(flat, name).copy_(tensors[name])
        return flat

    def truncate_counters(self, flat: Tensor) -> None:
        """Make every integer entry whole again, toward zero (a mean of counters need not be)."""
        for e in self.entries.values():
            if e.integer:
                # a mean of equal counters may be rounded to just below them
                flat.narrow(0, e.offset, e.numel).add_(2.0**-12).trunc_()


@dataclass(frozen=True, eq=False)
class ClassRows:
    """Entries that belong to one class each (rows of a classifier). A client without that class
    leaves them out of the average.

    `local`, `place`: positions in the sub-model's and in the server's vector, int64 [k]; `owner`:
    the class of each, int64 [k].
    """

    local: Tensor
    place: Tensor
    owner: Tensor

    def on(self, device: torch.device) -> ClassRows:
        """Return the same on a device; the copy is made once."""
        if device.type == "cpu":
            return self
        if device not in self._copies:
            self._copies[device] = ClassRows(
                self.local.to(device), self.place.to(device), self.owner.to(device)
            )
        return self._copies[device]

    _copies: dict[torch.device, ClassRows] = field(default_factory=dict)


class Slice:
    """Which coordinates of a global vector a sub-model holds, and what each counts in an average:
    local entry k is global entry `index[k]` (int64[n]). A model's are unique; of another upload
    several may go to one.

    `runs`: the same as (global start, local start, length), or None where they are too many. Where
    there are runs the index is made anew for whoever asks: it is twice as large as the sub-model.
    `weight`: what each entry counts beside the client's own weight, in (0, 1], float64 [n] (None:
    1); `rows`: entries that only clients with their class contribute to.
    """

    def __init__(
        self,
        layout: Layout,
        index: Tensor,
        weight: Tensor | None = None,
        rows: ClassRows | None = None,
    ) -> None:
        self.layout = layout
        self.weight = weight
        self.rows = rows
        self.runs = _contiguous_runs(index)
        self._index = index if self.runs is None else None
        self._copies: dict[torch.device, Tensor] = {}

    @property
    def index(self) -> Tensor:
        if self._index is not None:
            return self._index
        pieces = [torch.arange(start, start + length) for start, _, length in self.runs or ()]
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)

    @classmethod
    def span(cls, start: int, stop: int) -> Slice:
        """Take all entries from `start` on and before `stop`."""
        return cls(Layout([Entry("entries", (stop - start,), 0)]), torch.arange(start, stop))

    @classmethod
    def by_name(cls, whole: Layout, part: Layout, prefix: str = "") -> Slice:
        """Take whole tensors: `part`'s tensor x is `whole`'s tensor `prefix + x`."""
        pieces = []
        for e in part.entries.values():
            held = whole.entries.get(prefix + e.name)
            if held is None or held.shape != e.shape:
                have = "missing" if held is None else f"of shape {held.shape}"
                raise ValueError(
                    f"the sub-model's {e.name} has shape {e.shape}, the global model's is {have}"
                )
            pieces.append(torch.arange(held.offset, held.offset + held.numel))
        return cls(part, torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64))

    @classmethod
    def by_axes(cls, whole: Layout, part: Layout, kept: Mapping[str, Tensor]) -> Slice:
        """Take the channels `kept` (int64, by channel group) along each axis of `whole`'s tensors;
        groups not named are taken whole.

        `part`: the sub-model's layout, whose tensors have the names of `whole`'s and the shapes
        that result.
        """
        pieces = [
            _coordinates(whole.entries[e.name], e, kept).flatten() for e in part.entries.values()
        ]
        return cls(part, torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64))

    def start_of(self, entry: Entry) -> int | None:
        """Return where a tensor of the sub-model starts in the global vector; None where it lies
        there in pieces.
        """
        runs = self.runs or ()
        at = bisect_right(runs, entry.offset, key=lambda run: run[1]) - 1
        if at < 0 or entry.offset + entry.numel > runs[at][1] + runs[at][2]:
            return None
        return runs[at][0] + entry.offset - runs[at][1]

    def gather(self, vector: Tensor, out: Tensor) -> Tensor:
        """Copy this slice of a global vector [P] into `out` [n]."""
        runs = self.runs_on(vector.device)
        if runs is None:
            return torch.index_select(vector, 0, self.index_on(vector.device), out=out)
        for start, local, length in runs:
            out.narrow(0, local, length).copy_(vector.narrow(0, start, length))
        return out

    def counting(self, weight: Tensor | None = None, rows: ClassRows | None = None) -> Slice:
        """Return the same coordinates, with what each of them counts."""
        counted = copy.copy(self)
        counted.weight = weight
        counted.rows = rows
        return counted

    def add(self, vector: Tensor, value: float, weighted: bool = True) -> None:
        """Add a number to every held coordinate of a global vector [P].

        `weighted`: times what the coordinate counts.
        """
        if weighted and self.weight is not None:
            vector.index_add_(
                0, self.index_on(vector.device), self.weight.to(vector.device) * value
            )
            return
        runs = self.runs_on(vector.device)
        if runs is None:
            vector[self.index_on(vector.device)] += value
            return
        for start, _, length in runs:
            vector.narrow(0, start, length).add_(value)

    def runs_on(self, device: torch.device) -> tuple[tuple[int, int, int], ...] | None:
        """Return the runs, or None where an indexed copy is faster on a device."""
        few = self.runs is not None and len(self.runs) <= _MOST_RUNS[device.type]
        return self.runs if few else None

    def index_on(self, device: torch.device) -> Tensor:
        """Return the index on a device; a copy for another device is made once and stays, as the
        slice is kept.
        """
        if device.type == "cpu":
            return self.index
        if device not in self._copies:
            self._copies[device] = self.index.to(device)
        return self._copies[device]


def _coordinates(held: Entry, own: Entry, kept: Mapping[str, Tensor]) -> Tensor:
    """Return where each element of `own` lies in the vector that has `held`, in the order in which
    `own` is stored.
    """
    dims = zip(held.axes, held.shape, strict=True)
    chosen = [
        torch.arange(size) if axis is None else kept.get(axis, torch.arange(size))
        for axis, size in dims
    ]
    if tuple(map(len, chosen)) != own.shape:
        raise ValueError(
            f"the sub-model's {own.name} has shape {own.shape}, the channels that it keeps make"
            f" {tuple(map(len, chosen))}"
        )
    # as Layout stores them
    order = (0, 2, 3, 1) if len(held.shape) == 4 else tuple(range(len(held.shape)))
    place = torch.full((1,) * len(order), held.offset)
    stride = 1
    for position in reversed(range(len(order))):
        dim = order[position]
        steps = chosen[dim] * stride
        place = place + steps.view([-1 if p == position else 1 for p in range(len(order))])
        stride *= held.shape[dim]
    return place


def _contiguous_runs(index: Tensor) -> tuple[tuple[int, int, int], ...] | None:
    if index.numel() == 0:
        return ()
    starts = torch.cat(
        [torch.zeros(1, dtype=torch.int64), (torch.diff(index) != 1).nonzero().flatten() + 1]
    )
    if len(starts) > max(_MOST_RUNS.values()):
        return None
    stops = torch.cat([starts[1:], torch.tensor([index.numel()])])
    lengths = (stops - starts).tolist()
    return tuple(zip(index[starts].tolist(), starts.tolist(), lengths, strict=True))


def layouts_of(model: nn.Module, axes: Mapping[str, Axes] | None = None) -> tuple[Layout, Layout]:
    """Return the layouts of a model's trainable parameters and of its buffers."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Layout.of(params, axes), Layout.of(dict(model.named_buffers()), axes)

"""The pretended GPU's memory, and CUDA graphs as tapes of operations on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import inco

_ROOT = Path(inco.__file__).parents[1]
_OURS = (f"{_ROOT}/inco/", f"{_ROOT}/benchmarks/")
# The GPU's memory, of the process: caches carry tensors from one run to the next. No address is
# used again while a weak reference to it is held.
_MEMORY: dict[int, StorageWeakRef] = {}


class DeviceError(RuntimeError):
    """What CUDA would refuse."""


def line() -> str:
    """Return the line of the package that is at work: `inco/file.py:line`."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{Path(frame.f_code.co_filename).relative_to(_ROOT)}:{frame.f_lineno}"


def on_gpu(t: Tensor) -> bool:
    """Tell whether a tensor lies on the pretended GPU."""
    memory = _MEMORY.get(t.untyped_storage()._cdata)
    return memory is not None and not memory.expired()


def allocated(device: object = None) -> int:
    """Return the bytes that are held on the pretended GPU."""
    held = (torch.UntypedStorage._new_with_weak_ptr(m.cdata) for m in _MEMORY.values())
    return sum(storage.nbytes() for storage in held if storage is not None)


def place(t: Tensor) -> Tensor:
    """Note that a new tensor lies on the pretended GPU, and now and then what has gone."""
    if len(_MEMORY) % 10_000 == 9_999:
        for key in [key for key, memory in _MEMORY.items() if memory.expired()]:
            del _MEMORY[key]
    if not t.is_meta:
        _MEMORY[t.untyped_storage()._cdata] = StorageWeakRef(t.untyped_storage())
    return t


def fresh(result: object, given: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of a result that lie in new memory, not in that of what was given."""
    held = {t.untyped_storage()._cdata for t in given}
    made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    return [t for t in made if t.untyped_storage()._cdata not in held]


class _Outside:
    """A tensor that a graph found: the graph knows where it lies, and does not keep it."""

    def __init__(self, t: Tensor) -> None:
        self.memory = StorageWeakRef(t.untyped_storage())
        self.dtype = t.dtype
        self.view = (t.storage_offset(), tuple(t.shape), tuple(t.stride()))

    def found(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.memory.cdata)
        if storage is None:
            raise DeviceError("a graph is replayed after memory that it uses has gone")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.view)


class Tape:
    """A CUDA graph as the list of its operations, done again on the same memory. What it allocates
    is its own, from one pool for all graphs: it holds nothing before a replay, nor after another's.
    """

    def __init__(self, launched: Callable[[Tape], None]) -> None:
        self.launched = launched  # called by each replay
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: dict[int, torch.UntypedStorage] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def record(self, func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """Note an operation, and do it for the shapes of its results."""
        written = tensors if func._schema.is_mutable else []
        if name == "native_batch_norm":  # its schema hides that it writes running statistics
            written = [t for t in args[3:5] if t is not None]
        for t in written:
            storage = t.untyped_storage()
            if storage._cdata not in self.own and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
        result = func(*args, **kwargs)
        made = fresh(result, tensors)
        for t in made:
            self.own[place(t).untyped_storage()._cdata] = t.untyped_storage()
        if made or func._schema.is_mutable:
            inputs = tree_map(self._held, (args, kwargs))
            self.steps.append((func, *inputs, [t.detach() for t in made]))
        return result

    def _held(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach() if x.untyped_storage()._cdata in self.own else _Outside(x)

    def close(self) -> None:
        """Leave everything as it was: a capture runs nothing."""
        with _disable_current_modes():
            for storage, before in self._before.values():
                storage.copy_(before)
        self._before.clear()
        self.spoil()

    def spoil(self) -> None:
        """Let the graph's own memory hold nothing that anyone may read."""
        with _disable_current_modes():
            for t in (t for *_, made in self.steps for t in made if t.is_floating_point()):
                t.fill_(float("nan"))

    @torch.no_grad()
    def replay(self) -> None:
        """Do what was captured, with what its memory holds now."""
        self.launched(self)
        below = torch._C._AutoDispatchBelowAutograd()
        with torch._C.DisableTorchFunction(), _disable_current_modes(), below:
            for func, *inputs, made in self.steps:
                args, kwargs = tree_map(lambda x: getattr(x, "found", lambda: x)(), inputs)
                result = func(*args, **kwargs)
                given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                for kept, t in zip(made, fresh(result, given), strict=True):
                    kept.copy_(t)

"""Models of which only shapes matter: no time spent on numbers that nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLS = {Tensor.normal_, Tensor.uniform_}  # what all random initialisers of torch.nn.init end in


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return args[0] if func in _FILLS else func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Random initialisation is left out within: models made here hold whatever was in memory."""
    with _Unfilled():
        yield


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors made within have a shape and a type, and no numbers.

    Filling them would do nothing, and import sympy and a compiler: 1 s and 75 MB.
    """
    with torch.device("meta"), _Unfilled():
        yield

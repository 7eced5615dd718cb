"""What happens to an upload on its way to the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from inco.flat import Layout


class Uplink(Protocol):
    """A change of a client's uploads: vectors by name [n], laid out by `layout`; randomness from `generator` alone."""

    def __call__(self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator) -> Mapping[str, Tensor]: ...


class Clean:
    """Uploads arrive as they were sent."""

    def __call__(self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator) -> Mapping[str, Tensor]:
        return vectors

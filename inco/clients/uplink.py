"""What happens to an upload on its way to the server.

Uploads are vectors of the client's whole layout, and bare numbers in vectors of one element, which
pass as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from inco.errors import ConfigError
from inco.flat import Layout
from inco.server.noise import add_noise


class Uplink(Protocol):
    """A change of a client's uploads: vectors by name [n], laid out by `layout`; randomness from
    `generator` alone.

    `nonfinite`: what becomes of an upload that is not finite, or too large to be summed: "stop"
    ends the run, "skip" leaves the client out.
    """

    nonfinite: str

    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]: ...


class Clean:
    """Uploads arrive as they were sent."""

    def __init__(self, nonfinite: str = "stop") -> None:
        self.nonfinite = nonfinite

    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return vectors


class Noise:
    """Add Gaussian noise to each tensor of each upload, of `scale` (at least 0) times that tensor's
    own standard deviation.

    A constant tensor has none and stays. Draws are made upload by upload, each in the order of its
    layout. Raises ConfigError. Chan et al., ICLR 2024, Internal Cross-layer Gradients, Figure 7.
    """

    def __init__(self, scale: float = 1.0, nonfinite: str = "stop") -> None:
        if not _number(scale) or scale < 0:
            raise ConfigError(
                f"uplink.scale={scale}: must be a number of at least 0; the paper uses 1 to 5, and"
                " uplink=clean adds none"
            )
        self.scale = scale
        self.nonfinite = nonfinite

    @torch.no_grad()
    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return {
            name: self._noisy(v, layout, generator) if _whole(v, layout) else v
            for name, v in vectors.items()
        }

    def _noisy(self, vector: Tensor, layout: Layout, generator: torch.Generator) -> Tensor:
        new = torch.empty_like(vector)
        for e in layout.entries.values():
            add_noise(
                vector.narrow(0, e.offset, e.numel),
                self.scale,
                generator,
                out=new.narrow(0, e.offset, e.numel),
            )
        return new


class Clip:
    """Scale each upload down to the Euclidean norm `max_norm` (above 0) where it is longer: flat
    clipping, the vector as one.

    Every upload is clipped by itself. Raises ConfigError.
    McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.
    """

    def __init__(self, max_norm: float = 1.0, nonfinite: str = "stop") -> None:
        if not _number(max_norm) or max_norm <= 0:
            raise ConfigError(
                f"uplink.max_norm={max_norm}: must be a number above 0; uplink=clean leaves uploads"
                " as they are"
            )
        self.max_norm = max_norm
        self.nonfinite = nonfinite

    @torch.no_grad()
    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return {name: self._clipped(v) if _whole(v, layout) else v for name, v in vectors.items()}

    def _clipped(self, vector: Tensor) -> Tensor:
        # squares of a diverged client overflow float32
        norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
        return vector * (self.max_norm / norm).clamp(max=1).to(vector.dtype)


def _whole(vector: Tensor, layout: Layout) -> bool:
    return vector.numel() == layout.numel and vector.numel() > 1


def _number(value: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

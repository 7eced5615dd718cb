"""What happens to uploads of parameters on their way to the server; others pass as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Protocol

import torch
from torch import Tensor

from inco.flat import Layout
from inco.server.noise import add_noise
from inco.settings import NoiseScale, NonFinite, above, checked


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

    @checked("uplink")
    def __init__(
        self,
        nonfinite: NonFinite = "stop",
    ) -> None:
        self.nonfinite = nonfinite

    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return vectors


class Noise:
    """Add Gaussian noise to each tensor of each upload, in proportion to that tensor's own standard
    deviation.

    A constant tensor has none and stays. Draws are made upload by upload, each in the order of its
    layout. Chan et al., ICLR 2024, Internal Cross-layer Gradients, Figure 7.
    """

    @checked("uplink")
    def __init__(
        self,
        scale: NoiseScale = 1.0,
        nonfinite: NonFinite = "stop",
    ) -> None:
        self.scale = scale
        self.nonfinite = nonfinite

    @torch.no_grad()
    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return {name: self._noisy(v, layout, generator) for name, v in vectors.items()}

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
    """Scale each upload down to a Euclidean norm where it is longer: flat clipping, the vector as
    one.

    Every upload is clipped by itself.
    McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018.
    """

    @checked("uplink")
    def __init__(
        self,
        max_norm: Annotated[
            float, above(0), "largest Euclidean norm of a whole upload; longer ones are scaled down"
        ] = 1.0,
        nonfinite: NonFinite = "stop",
    ) -> None:
        self.max_norm = max_norm
        self.nonfinite = nonfinite

    @torch.no_grad()
    def __call__(
        self, vectors: Mapping[str, Tensor], layout: Layout, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return {name: self._clipped(v) for name, v in vectors.items()}

    def _clipped(self, vector: Tensor) -> Tensor:
        # squares of a diverged client overflow float32
        norm = torch.linalg.vector_norm(vector, dtype=torch.float64)
        return vector * (self.max_norm / norm).clamp(max=1).to(vector.dtype)

"""Noise in the place of InCo: the control that asks whether any change of the same layers would
help.
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from torch import Tensor

from inco.flat import Layout
from inco.server.pairs import as_pairs, check_pairs
from inco.server.transforms import ModelPairs
from inco.settings import CHOSEN_PAIRS, NoiseScale, checked
from inco.types import Pair


class AddNoise:
    """Add Gaussian noise to each target of the pairs, in proportion to that tensor's own standard
    deviation.

    The references of pairs are not read. Metrics, for each target that somebody sent:
    `noise/std/<layer>`, the standard deviation of its noise. A target that nobody sent is zero
    throughout and stays so. Raises ValueError for pairs of a wrong form at once, for wrong pairs
    when bound. Chan et al., ICLR 2024, Internal Cross-layer Gradients, Figure 20.
    """

    @checked("transform")
    def __init__(
        self,
        scale: NoiseScale = 1.0,
        pairs: Annotated[
            str | list[list[str]], CHOSEN_PAIRS, "pairs of layers whose targets get the noise"
        ] = "official",
    ) -> None:
        self.scale = scale
        self.chosen = pairs if isinstance(pairs, str) else as_pairs(pairs)
        self.layout: Layout | None = None
        self.pairs: tuple[Pair, ...] = ()

    def bind(self, layout: Layout, model_pairs: ModelPairs) -> AddNoise:
        """Return a copy that knows where the targets of its pairs lie.

        ValueError names the pairs that do not fit `layout`.
        """
        chosen = tuple(model_pairs(self.chosen)) if isinstance(self.chosen, str) else self.chosen
        bound = copy.copy(self)
        bound.layout = layout
        bound.pairs = check_pairs(chosen, layout.entries)
        return bound

    @torch.no_grad()
    def __call__(
        self, update: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the noisy update [P], which leaves `update` as it was, and the metrics.

        Draws are made in the order of the pairs.
        """
        if self.layout is None:
            raise RuntimeError(
                "AddNoise is not bound to a model; use transform = transform.bind(layout,"
                " model_pairs) first"
            )
        if not self.pairs:
            return update, {}
        new = update.clone()
        stds = []
        for pair in self.pairs:
            e = self.layout.entries[pair.target]
            target = update.narrow(0, e.offset, e.numel)
            add_noise(target, self.scale, generator, out=new.narrow(0, e.offset, e.numel))
            stds.append(torch.where(target.any(), target.std(correction=0) * self.scale, -1.0))
        rows = zip(self.pairs, torch.stack(stds).tolist(), strict=True)  # the only synchronisation
        return new, {
            f"noise/std/{pair.target.removesuffix('.weight')}": std
            for pair, std in rows
            if std >= 0
        }


def add_noise(tensor: Tensor, scale: float, generator: torch.Generator, out: Tensor) -> None:
    """Write into `out` the tensor plus Gaussian noise of `scale` times its standard deviation (the
    population's: divided by n).

    The draws are made on the generator's device, which need not be the tensor's. `out` is other
    memory than `tensor`.
    """
    if generator.device.type == out.device.type:
        out.normal_(generator=generator)
    else:
        out.copy_(torch.randn(out.shape, generator=generator, device=generator.device))
    out.mul_(tensor.std(correction=0) * scale).add_(tensor)

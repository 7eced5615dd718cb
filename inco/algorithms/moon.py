"""MOON. Li et al., Model-Contrastive Federated Learning, CVPR 2021, Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.settings import Weights, above, at_least, checked
from inco.types import Beside, LocalRun, Output


class Moon(Algorithm):
    """A contrastive term draws a client's features to those of the model it received and away from
    those of its previous model.

    The term is -log(e^{s/T} / (e^{s/T} + e^{q/T})) times mu, where s and q are the cosines between
    an image's features and those of the received and of the previous model; mu = 0 is FedAvg, to
    the bit. The received model is the client's own sub-model as it came, the previous one is what
    its last participation ended with. Both stay as they are, in evaluation mode. There is no term
    at the first participation, nor where the client's level has changed since the last, which must
    be accepted by `allow_moving`. With a rolling window the previous model is that of the window of
    then.
    """

    kept_whole = ("previous", "buffers_previous")

    @checked("algorithm")
    def __init__(
        self,
        mu: Annotated[
            float, at_least(0), "mu, the weight of the contrastive term; 0 is FedAvg"
        ] = 1.0,
        temperature: Annotated[float, above(0), "T, which divides the cosines"] = 0.5,
        allow_moving: Annotated[
            bool,
            "accept capacity=resampled, where the term is left out whenever a client's level has"
            " changed",
        ] = False,
        weighting: Weights = "examples",
    ) -> None:
        super().__init__(weighting)
        self.mu = mu
        self.temperature = temperature
        self.allow_moving = allow_moving
        self.stateful = mu > 0

    def conflicts(self, beside: Beside) -> Iterator[str]:
        if self.mu and beside.moving_levels and not self.allow_moving:
            yield (
                "algorithm=moon with capacity=resampled: a client's previous model has another"
                " shape whenever its level has changed; use capacity=five_levels, or"
                " algorithm.allow_moving=true to leave the term out in those rounds"
            )

    def local_start(self, run: LocalRun) -> None:
        if self.mu and "level" in run.state and int(run.state["level"]) == run.task.level:
            assert run.frozen is not None and run.b0 is not None
            received = run.frozen("global", run.w0, run.b0)
            previous = run.frozen("previous", run.state["previous"], run.state["buffers_previous"])
            run.scratch["models"] = received, previous

    def local_loss(self, run: LocalRun, output: Output, x: Tensor) -> Tensor | float:
        if "models" not in run.scratch:
            return 0.0
        z = output.features.to(run.w.dtype)
        low = output.features.dtype == torch.bfloat16
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            received, previous = (model(x).features.to(z.dtype) for model in run.scratch["models"])
        s = F.cosine_similarity(z, received)
        q = F.cosine_similarity(z, previous)
        # log(1 + e^{(q - s)/T}), the same without overflow
        return self.mu * F.softplus((q - s) / self.temperature).mean()

    def local_end(self, run: LocalRun) -> dict[str, Tensor]:
        if self.mu:
            assert run.b is not None
            level = torch.tensor([float(run.task.level)])
            run.state.update(previous=run.w.clone(), buffers_previous=run.b.clone(), level=level)
        return super().local_end(run)

"""MOON. Li et al., Model-Contrastive Federated Learning, CVPR 2021, Algorithm 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.errors import ConfigError
from inco.types import LocalRun, Output, Weighting


class Moon(Algorithm):
    """A contrastive term draws a client's features to those of the model it received and away from
    those of its previous model.

    `mu`: weight of the term -log(e^{s/T} / (e^{s/T} + e^{q/T})), where s and q are the cosines
    between an image's features and those of the received and of the previous model; 0 is FedAvg, to
    the bit. `temperature`: T. The received model is the client's own sub-model as it came, the
    previous one is what its last participation ended with. Both stay as they are, in evaluation
    mode. There is no term at the first participation, nor where the client's level has changed
    since the last, which must be accepted by `allow_moving`. With a rolling window the previous
    model is that of the window of then.
    """

    kept_whole = ("previous", "buffers_previous")

    def __init__(
        self,
        mu: float = 1.0,
        temperature: float = 0.5,
        allow_moving: bool = False,
        weighting: Weighting = "examples",
    ) -> None:
        if not mu >= 0:
            raise ConfigError(
                f"algorithm.mu={mu}: MOON needs mu of at least 0; use 0.1 to 10, or 0 for FedAvg"
            )
        if not temperature > 0:
            raise ConfigError(
                f"algorithm.temperature={temperature}: MOON divides by the temperature; use one"
                " above 0 (its paper: 0.5)"
            )
        super().__init__(weighting)
        self.mu = mu
        self.temperature = temperature
        self.allow_moving = allow_moving
        self.stateful = mu > 0

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

"""SCAFFOLD.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.settings import Weights, checked
from inco.types import Aggregate, Beside, LocalRun, Upload


class Scaffold(Algorithm):
    """Control variates, estimates of each client's gradient (c_i) and of their mean (c), correct
    every local step by c - c_i.

    A client renews c_i after K steps from x to y. Option II: c_i - c + (x - y) / (K lr), which is
    an estimate of a gradient only where a step is lr times one (plain SGD); with Adam or momentum
    it is the mean step in units of lr, and the InCo paper ran it so. Option I: the gradient of its
    loss at x. Correction in the gradient and after the step (by lr (c - c_i), as NIID-Bench does)
    are the same with plain SGD. Control variates are averaged uniformly, as in the paper.

    On a client's coordinates c_i is zero at first, and c always is the mean of c_i over the N_p
    clients of the population that hold p.
    """

    downloads = ("c",)
    stateful = True

    @checked("algorithm")
    def __init__(
        self,
        option: Annotated[
            Literal["II", "I"],
            "how c_i is renewed. II: from the distance trained, for nothing, with plain SGD; I:"
            " from one more pass over the client's examples",
        ] = "II",
        correction: Annotated[
            Literal["grad", "post_step"],
            "grad: c - c_i joins the gradient; post_step: it is applied after the optimizer's step",
        ] = "grad",
        allow_adam: Annotated[
            bool, "accept option II with Adam or momentum, where it is an approximation"
        ] = False,
        weighting: Weights = "examples",
    ) -> None:
        super().__init__(weighting)
        self.option = option
        self.correction = correction
        self.allow_adam = allow_adam

    @property
    def uploads(self) -> dict[str, Upload]:
        return {"delta": Upload(self.weighting), "dc": Upload("uniform")}

    def conflicts(self, beside: Beside) -> Iterator[str]:
        if self.option == "II" and not self.allow_adam and (beside.adaptive or beside.momentum):
            what = "local=adam" if beside.adaptive else f"local.momentum={beside.momentum}"
            yield (
                f"algorithm=scaffold with {what}: option II reads a gradient off the distance"
                " trained, as plain SGD allows; use local=sgd local.momentum=0, or"
                " algorithm.option=I, or algorithm.allow_adam=true to take the mean step (as the"
                " InCo paper)"
            )
        if beside.weighted_channels:
            yield (
                "split.weighting=width with algorithm=scaffold: its server vectors are sums over"
                " clients alike; use split.weighting=clients"
            )

    def init_server(self, w: Tensor) -> dict[str, Tensor]:
        return {"c": torch.zeros_like(w)}

    def init_client(self, run: LocalRun) -> dict[str, Tensor]:
        return {"c_i": torch.zeros_like(run.w0)}

    def local_start(self, run: LocalRun) -> None:
        correction = run.server["c"] - run.state["c_i"]
        # adding zeros would turn -0.0 into 0.0: without them the first round is FedAvg's, to the
        # bit
        run.scratch["correction"] = correction if correction.any() else None
        if self.option == "I":
            run.scratch["gradient"] = run.full_gradient().clone()  # type: ignore[misc]  # never None in a run; it may be a view of run.g

    def local_grad(self, run: LocalRun) -> None:
        if self.correction == "grad" and run.scratch["correction"] is not None:
            run.g.add_(run.scratch["correction"])

    def local_step(self, run: LocalRun) -> None:
        if self.correction == "post_step" and run.scratch["correction"] is not None:
            run.w.sub_(run.scratch["correction"], alpha=run.lr)

    def local_end(self, run: LocalRun) -> dict[str, Tensor]:
        run.scratch.pop("correction", None)  # vectors are as large as the model
        delta = run.w - run.w0
        old = run.state["c_i"]
        new = (
            run.scratch["gradient"]
            if self.option == "I"
            else (old - run.server["c"]).sub_(delta / (max(run.steps, 1) * run.lr))
        )
        run.state["c_i"] = new
        return {"delta": delta, "dc": new - old}

    def server_update(self, server: dict[str, Tensor], aggregate: Aggregate) -> Tensor:
        # |S_p|/N_p times the mean over S_p is the sum over S_p divided by N_p: Algorithm 1, line
        # 17, for each coordinate
        moved = (aggregate.participation() * aggregate.mean["dc"]).add_(server["c"])
        server["c"] = torch.where(aggregate.covered, moved, server["c"])
        return aggregate.mean["delta"]

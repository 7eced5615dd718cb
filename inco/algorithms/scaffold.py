"""SCAFFOLD.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
Algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm, one_of
from inco.types import Aggregate, LocalRun, Weighting


class Scaffold(Algorithm):
    """Control variates, estimates of each client's gradient (c_i) and of their mean (c), correct
    every local step by c - c_i.

    `option`: how a client renews c_i after K steps from x to y. "II": c_i - c + (x - y) / (K lr),
    for nothing, but an estimate of a gradient only where a step is lr times one (plain SGD); "I":
    the gradient of its loss at x, by one more pass over its examples. `correction`: "grad" adds c -
    c_i to the gradient before the optimizer sees it; "post_step" takes lr (c - c_i) off the
    parameters after its step, as NIID-Bench does; with plain SGD they are the same. `allow_adam`:
    accept option II with Adam or momentum, where c_i is (x - y) / (K lr) all the same: the mean
    step in units of lr, not a gradient. The InCo paper ran it so. `weighting`: of the deltas;
    control variates are averaged uniformly, as in the paper.

    On a client's coordinates c_i is zero at first, and c always is the mean of c_i over the N_p
    clients of the population that hold p.
    """

    downloads = ("c",)
    stateful = True

    def __init__(
        self,
        option: str = "II",
        correction: str = "grad",
        allow_adam: bool = False,
        weighting: Weighting = "examples",
    ) -> None:
        one_of("option", option, ("II", "I"))
        one_of("correction", correction, ("grad", "post_step"))
        super().__init__(weighting)
        self.option = option
        self.correction = correction
        self.allow_adam = allow_adam

    @property
    def uploads(self) -> dict[str, Weighting]:
        return {"delta": self.weighting, "dc": "uniform"}

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

"""FedNova.

Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum
from typing import Annotated, Literal

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.settings import Weighting, checked
from inco.types import Beside, LocalRun, Plan


class FedNova(Algorithm):
    """FedAvg that takes out how long each client trained: deltas are divided by a_i before the mean
    and multiplied by tau_eff after it.

    a_i weighs a client's local steps: with momentum rho a gradient acts on in later steps, so tau
    steps count a_i = [tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho), which is tau for rho = 0.
    tau_eff is a mean of the a_i. Buffers are averaged as in FedAvg.
    """

    free_downloads = ("tau_eff",)

    @checked("algorithm")
    def __init__(
        self,
        tau: Annotated[
            Literal["holders", "cohort"],
            "tau_eff, the mean of a_i. holders: at each coordinate over its holders of the round;"
            " cohort: one number over all clients of the round",
        ] = "holders",
        allow_adam: Annotated[
            bool,
            "accept Adam, for which a_i is undefined, with a_i = the number of local steps",
        ] = False,
        weighting: Annotated[
            Weighting,
            "of deltas and of tau_eff. examples: in proportion to a client's examples; uniform: all"
            " clients alike",
        ] = "examples",
    ) -> None:
        super().__init__(weighting)
        self.tau = tau
        self.allow_adam = allow_adam

    def conflicts(self, beside: Beside) -> Iterator[str]:
        if beside.adaptive and not self.allow_adam:
            yield (
                "algorithm=fednova with local=adam: the normaliser a_i is defined for SGD; use"
                " local=sgd, or algorithm.allow_adam=true to count local steps instead (as the"
                " InCo paper)"
            )

    def init_server(self, w: Tensor) -> dict[str, Tensor]:
        return {"tau_eff": torch.zeros_like(w)}

    def server_start(self, server: dict[str, Tensor], plan: Plan) -> None:
        a = [normaliser(steps, plan.momentum) for steps in plan.steps]
        if self.tau == "holders":
            server["tau_eff"] = plan.mean(a, self.weighting)
        else:
            weights = plan.examples if self.weighting == "examples" else [1] * len(a)
            mean = fsum(n * a_i for n, a_i in zip(weights, a, strict=True)) / fsum(weights)
            server["tau_eff"] = torch.full_like(server["tau_eff"], mean)

    def local_end(self, run: LocalRun) -> dict[str, Tensor]:
        # The paper's client sends d_i = -delta_i / a_i and its server adds -tau_eff sum_i p_i d_i =
        # sum_i p_i (tau_eff / a_i) delta_i: the same number, as tau_eff does not depend on i and is
        # known before the round (so is the number of local steps).
        tau_eff = run.server["tau_eff"]
        a = normaliser(run.steps, run.momentum) or 1.0  # no step: the delta is zero
        # a tensor, as some devices multiply by the reciprocal of a number: equal a_i must give
        # exactly one, and so FedAvg
        return {"delta": (run.w - run.w0) * (tau_eff / tau_eff.new_full((1,), a))}


def normaliser(steps: int, momentum: float) -> float:
    """Return a_i, the weight of so many local steps: the sum over them of 1 + momentum + momentum^2
    + ... as far as each reaches.
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)

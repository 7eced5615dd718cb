"""FedProx. Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, Algorithm 2."""

from __future__ import annotations

from typing import Annotated

from inco.algorithms.fedavg import Algorithm
from inco.settings import Weights, at_least, checked
from inco.types import LocalRun


class FedProx(Algorithm):
    """FedAvg whose clients are held near what they received: each adds mu/2 ||w - w0||^2 to its
    loss.

    mu = 0 is FedAvg, to the bit. The term covers parameters, not buffers, and only those that the
    client holds. It is part of the loss, so its gradient mu (w - w0) passes through the optimizer
    (Adam, as in the InCo paper, scales it as well). The reported training loss leaves it out, so
    that losses of different algorithms can be compared.
    """

    @checked("algorithm")
    def __init__(
        self,
        mu: Annotated[
            float,
            at_least(0),
            "mu, the weight of mu/2 ||w - w0||^2 in a client's loss; 0 is FedAvg",
        ] = 0.1,
        weighting: Weights = "examples",
    ) -> None:
        super().__init__(weighting)
        self.mu = mu

    def local_grad(self, run: LocalRun) -> None:
        if self.mu:
            run.g.add_(run.w - run.w0, alpha=self.mu)

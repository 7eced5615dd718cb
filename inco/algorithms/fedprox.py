"""FedProx. Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, Algorithm 2."""

from __future__ import annotations

from inco.algorithms.fedavg import Algorithm
from inco.errors import ConfigError
from inco.types import LocalRun, Weighting


class FedProx(Algorithm):
    """FedAvg whose clients are held near what they received: each adds mu/2 ||w - w0||^2 to its
    loss.

    `mu`: weight of that term; 0 is FedAvg, to the bit. The term covers parameters, not buffers, and
    only those that the client holds. It is part of the loss, so its gradient mu (w - w0) passes
    through the optimizer (Adam, as in the InCo paper, scales it as well). The reported training
    loss leaves it out, so that losses of different algorithms can be compared.
    """

    def __init__(self, mu: float = 0.1, weighting: Weighting = "examples") -> None:
        if not mu >= 0:
            raise ConfigError(
                f"algorithm.mu={mu}: FedProx needs mu of at least 0; use 0.001 to 1, or 0 for"
                " FedAvg"
            )
        super().__init__(weighting)
        self.mu = mu

    def local_grad(self, run: LocalRun) -> None:
        if self.mu:
            run.g.add_(run.w - run.w0, alpha=self.mu)

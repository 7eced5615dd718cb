"""FedDyn.

Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.settings import above, checked
from inco.types import Aggregate, Beside, LocalRun


class FedDyn(Algorithm):
    """Clients minimise their loss - <h_i, w> + alpha/2 ||w - w0||^2, so that what they agree on is
    an optimum of the mean loss.

    A client keeps h_i, its gradient where it last ended; the server keeps h, at each coordinate the
    mean of h_i over the clients of the population that hold it. All clients count alike, as in the
    paper.
    """

    stateful = True

    @checked("algorithm")
    def __init__(
        self,
        alpha: Annotated[float, above(0), "alpha, the weight of the dynamic regulariser"] = 0.1,
    ) -> None:
        super().__init__("uniform")
        self.alpha = alpha

    def conflicts(self, beside: Beside) -> Iterator[str]:
        if beside.weighted_channels:
            yield (
                "split.weighting=width with algorithm=feddyn: its server vectors are sums over"
                " clients alike; use split.weighting=clients"
            )

    def init_server(self, w: Tensor) -> dict[str, Tensor]:
        return {"h": torch.zeros_like(w)}

    def init_client(self, run: LocalRun) -> dict[str, Tensor]:
        return {"h_i": torch.zeros_like(run.w0)}

    def local_grad(self, run: LocalRun) -> None:
        run.g.add_(run.w - run.w0, alpha=self.alpha).sub_(run.state["h_i"])

    def local_end(self, run: LocalRun) -> dict[str, Tensor]:
        delta = run.w - run.w0
        run.state["h_i"] = run.state["h_i"] - self.alpha * delta
        return {"delta": delta}

    def server_update(self, server: dict[str, Tensor], aggregate: Aggregate) -> Tensor:
        delta = aggregate.mean["delta"]
        covered = aggregate.covered
        # |S_p|/N_p times the mean over S_p is the sum over S_p divided by N_p: the paper's 1/m, for
        # each coordinate
        moved = server["h"] - self.alpha * aggregate.participation() * delta
        server["h"] = torch.where(covered, moved, server["h"])
        return torch.where(covered, delta - server["h"] / self.alpha, 0.0)

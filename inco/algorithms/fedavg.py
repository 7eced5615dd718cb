"""FedAvg, and the hooks that every other algorithm overrides.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS
2017, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from inco.settings import Weighting, Weights, checked
from inco.types import Aggregate, Beside, LocalRun, Output, Plan, Upload


class Algorithm:
    """FedAvg: clients minimise their own loss, the server adds the mean of their deltas.

    The mean is taken per coordinate over the clients that hold it. The paper weighs a client by its
    number of examples, the published InCo code all clients alike.
    """

    @checked("algorithm")
    def __init__(
        self,
        weighting: Weights = "examples",
    ) -> None:
        self.weighting: Weighting = weighting

    @property
    def uploads(self) -> Mapping[str, Upload]:
        """The vectors that clients send, and how each is averaged.

        The buffers of their models are sent beside them, weighted by `weighting`.
        """
        return {"delta": Upload(self.weighting)}

    downloads: tuple[str, ...] = ()
    """Vectors of the server that clients read, and receive with the model."""

    free_downloads: tuple[str, ...] = ()
    """Server vectors given to simulated clients that a real system would apply at the server, after
    the upload; so they are not counted as traffic.
    """

    stateful = False
    """Whether clients have vectors of their own that outlive a round (`init_client`)."""

    kept_whole: tuple[str, ...] = ()
    """Clients' own vectors that together are one model. They stay as they are, even if the client
    holds other coordinates from round to round.
    """

    def init_server(self, w: Tensor) -> dict[str, Tensor]:
        """Return the server's own vectors at the start, [P] each; `w` is the global model."""
        return {}

    def conflicts(self, beside: Beside) -> Iterator[str]:
        """Yield a message for each conflict: setting, value, rule and what to use instead."""
        return iter(())

    def init_client(self, run: LocalRun) -> dict[str, Tensor]:
        """Return a client's own vectors at its first participation."""
        return {}

    def server_start(self, server: dict[str, Tensor], plan: Plan) -> None:
        """Prepare the server's vectors for a round that is about to start.

        A round that fails may be started again, so starting twice must be as starting once.
        """

    def local_start(self, run: LocalRun) -> None:
        """Prepare a client's local training."""

    def local_loss(self, run: LocalRun, output: Output, x: Tensor) -> Tensor | float:
        """Return what is added to the mean loss of a batch."""
        return 0.0

    def local_grad(self, run: LocalRun) -> None:
        """Edit the gradient `run.g` in place, between backward and the optimizer step."""

    def local_step(self, run: LocalRun) -> None:
        """Act after each optimizer step; `run.steps` counts it already."""

    def local_end(self, run: LocalRun) -> dict[str, Tensor]:
        """Return the client's uploads, [n] each unless declared otherwise."""
        return {"delta": run.w - run.w0}

    def server_update(self, server: dict[str, Tensor], aggregate: Aggregate) -> Tensor:
        """Return the update that the server optimizer will apply, [P]."""
        return aggregate.mean["delta"]


class FedAvg(Algorithm):
    """The base class as it is."""

"""Server optimizers: how an update is added to the global model.

The update is zero where it is not covered; the simulator sees to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from inco.settings import Adaptivity, MeanDecay, ServerLearningRate, between, checked

# Elements at a time: temporaries are so long instead of [P]. On a CPU they stay in a core's cache,
# on a GPU each block is some launches.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}


class Average:
    """Add the update as it is: w <- w + update (a server learning rate of one)."""

    def init(self, w: Tensor) -> dict[str, Tensor]:
        """Return the optimizer's own vectors at the start; none here."""
        return {}

    def step(self, w: Tensor, update: Tensor, covered: Tensor, state: dict[str, Tensor]) -> None:
        """Change `w` [P] in place.

        Coordinates that are not `covered` (bool [P]) stay as they are.
        """
        w.add_(update)


class SGD:
    """FedAvgM, SGD with heavy-ball momentum at the server: m <- momentum m + update; w <- w + lr m.

    With lr=1 and momentum=0 it is `Average`, and without momentum it keeps no vector. Hsu et al.,
    Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification,
    2019.
    """

    @checked("server")
    def __init__(
        self,
        lr: ServerLearningRate = 1.0,
        momentum: Annotated[
            float, between(0, 1, open_high=True), "heavy-ball factor; 0 keeps no vector"
        ] = 0.0,
    ) -> None:
        self.lr = lr
        self.momentum = momentum

    def init(self, w: Tensor) -> dict[str, Tensor]:
        """Return `m` [P], zero at the start; nothing without momentum."""
        return {"m": torch.zeros_like(w)} if self.momentum else {}

    @torch.no_grad()
    def step(self, w: Tensor, update: Tensor, covered: Tensor, state: dict[str, Tensor]) -> None:
        """Change `w` and `m` in place where `covered` (bool [P])."""
        if not self.momentum:
            w.add_(update, alpha=self.lr)
            return
        for w_, d, held, m in _blocks(w, update, covered, state["m"]):
            _put(m, held, torch.add(d, m, alpha=self.momentum))
            _put(w_, held, torch.add(w_, m, alpha=self.lr))


class _Adaptive(ABC):
    """FedOpt: m <- beta1 m + (1 - beta1) D; v <- as the method says; w <- w + lr m / (sqrt(v) +
    tau), elementwise, D the update.

    m starts at zero and v at tau^2; there is no bias correction.
    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """

    lr: float
    beta1: float
    tau: float

    @abstractmethod
    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the new second moment from the old one and D^2, which may be overwritten; `v` must
        not be.
        """

    def init(self, w: Tensor) -> dict[str, Tensor]:
        """Return `m` [P], zero, and `v` [P], tau^2."""
        return {"m": torch.zeros_like(w), "v": torch.full_like(w, self.tau**2)}

    @torch.no_grad()
    def step(self, w: Tensor, update: Tensor, covered: Tensor, state: dict[str, Tensor]) -> None:
        """Change `w`, `m` and `v` in place where `covered` (bool [P])."""
        for w_, d, held, m, v in _blocks(w, update, covered, state["m"], state["v"]):
            _put(m, held, torch.mul(m, self.beta1).add_(d, alpha=1 - self.beta1))
            _put(v, held, self._second(v, d * d))
            _put(w_, held, torch.addcdiv(w_, m, v.sqrt().add_(self.tau), value=self.lr))


class Adam(_Adaptive):
    """FedAdam: v <- beta2 v + (1 - beta2) D^2.

    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """

    @checked("server")
    def __init__(
        self,
        lr: ServerLearningRate = 0.1,
        beta1: MeanDecay = 0.9,
        beta2: Annotated[
            float,
            between(0, 1, open_high=True),
            "decay of the mean of squared updates; 1 - beta2 is its pace",
        ] = 0.99,
        tau: Adaptivity = 1e-3,
    ) -> None:
        self.lr = lr
        self.beta1 = beta1
        self.beta2 = beta2
        self.tau = tau

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return square.mul_(1 - self.beta2).add_(v, alpha=self.beta2)


class Yogi(Adam):
    """FedYogi: v <- v - (1 - beta2) D^2 sign(v - D^2), so that v moves by at most (1 - beta2) D^2 a
    round. Settings are Adam's.

    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        direction = torch.sub(v, square).sign_()
        return torch.addcmul(v, square, direction, value=self.beta2 - 1)


class Adagrad(_Adaptive):
    """FedAdagrad: v <- v + D^2; its steps only ever get smaller.

    Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.
    """

    @checked("server")
    def __init__(
        self,
        lr: ServerLearningRate = 0.1,
        beta1: MeanDecay = 0.0,
        tau: Adaptivity = 1e-3,
    ) -> None:
        self.lr = lr
        self.beta1 = beta1
        self.tau = tau

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        return square.add_(v)


def _put(into: Tensor, covered: Tensor, new: Tensor) -> None:
    """Write the new values where they are covered.

    Elsewhere nobody has sent anything, and zero is then no measurement: taken for one, it would let
    old momentum move a weight that no client holds, and wear m and v down with each round's
    absence, so that the next real update would meet a step size of its own making.
    """
    torch.where(covered, new, into, out=into)


def _blocks(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of the same stretch of all vectors, one stretch after the other."""
    size = _BLOCK[vectors[0].device.type]
    return zip(*(v.split(size) for v in vectors), strict=True)

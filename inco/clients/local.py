"""Local training settings and optimizers, made once a worker and sub-model and reset for each
client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from inco.settings import (
    BatchSize,
    DropLast,
    Epochs,
    LearningRate,
    MaxGradNorm,
    Precision,
    WeightDecay,
    between,
    checked,
    many,
)


class Optimizer(Protocol):
    """What training needs of an optimizer: `step`, and `state`, whose tensors are zero in a new
    one.
    """

    state: Any

    def step(self) -> Any: ...


class Local(ABC):
    """How a client trains: epochs, batches, precision, and the optimizer on its one flat vector."""

    def __init__(
        self,
        epochs: int,
        batch_size: int,
        lr: float,
        drop_last: bool = False,
        precision: str = "fp32",
        max_grad_norm: float | None = None,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.drop_last = drop_last
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        self.momentum = 0.0

    adaptive = False
    """Whether a step is more than a gradient times the learning rate, with momentum."""

    @abstractmethod
    def optimizer(self, w: nn.Parameter) -> Optimizer:
        """Make the optimizer of one flat parameter vector.

        One of torch.optim will do; see `FlatSGD` for why ours do not.
        """

    def batches(
        self, count: int, smallest: int, drop_last: bool | None = None
    ) -> list[tuple[int, int]]:
        """Return [start, stop) of each batch of an epoch over `count` examples.

        `drop_last`: None takes the setting. A last batch below `smallest` joins the one before it:
        BatchNorm cannot train on one example.
        """
        size = self.batch_size
        stops = list(range(size, count + 1, size))
        left = count - (stops[-1] if stops else 0)
        if left and not ((self.drop_last if drop_last is None else drop_last) and stops):
            if stops and left < smallest:
                stops[-1] = count
            else:
                stops.append(count)
        return list(zip([0, *stops[:-1]], stops, strict=True))

    def steps(self, count: int, smallest: int) -> int:
        """Return the number of local steps that `count` examples give."""
        return self.epochs * len(self.batches(count, smallest))


class Adam(Local):
    """Adam (Kingma and Ba, ICLR 2015), the paper's local optimizer for ResNets."""

    adaptive = True

    @checked("local")
    def __init__(
        self,
        epochs: Epochs,
        batch_size: BatchSize,
        lr: LearningRate,
        betas: Annotated[
            list[float], many(between(0, 1, open_high=True), 2), "decay of the two moments"
        ] = [0.9, 0.999],  # noqa: B006  # only read
        weight_decay: WeightDecay = 0.0,
        drop_last: DropLast = False,
        precision: Precision = "fp32",
        max_grad_norm: MaxGradNorm = None,
    ) -> None:
        super().__init__(epochs, batch_size, lr, drop_last, precision, max_grad_norm)
        self.betas = (betas[0], betas[1])
        self.weight_decay = weight_decay

    def optimizer(self, w: nn.Parameter) -> Optimizer:
        return FlatAdam(w, self.lr, self.betas, self.weight_decay)


class SGD(Local):
    """Stochastic gradient descent."""

    @checked("local")
    def __init__(
        self,
        epochs: Epochs,
        batch_size: BatchSize,
        lr: LearningRate,
        momentum: Annotated[float, between(0, 1, open_high=True), "heavy-ball factor"] = 0.0,
        weight_decay: WeightDecay = 0.0,
        drop_last: DropLast = False,
        precision: Precision = "fp32",
        max_grad_norm: MaxGradNorm = None,
    ) -> None:
        super().__init__(epochs, batch_size, lr, drop_last, precision, max_grad_norm)
        self.momentum = momentum
        self.weight_decay = weight_decay

    def optimizer(self, w: nn.Parameter) -> Optimizer:
        return FlatSGD(w, self.lr, self.momentum, self.weight_decay)


class FlatSGD:
    """torch's own fused SGD of one vector, without the class around it.

    torch.optim.SGD imports a compiler on its first step, in order not to be compiled: 150 MB and 1
    s for each worker.
    """

    def __init__(self, w: nn.Parameter, lr: float, momentum: float, weight_decay: float) -> None:
        self.w = w
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.state = {w: {"momentum_buffer": torch.zeros_like(w.detach())} if momentum else {}}

    def step(self) -> None:
        buffer = self.state[self.w].get("momentum_buffer")
        settings = dict(
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        sgd([self.w.detach()], [_gradient(self.w)], [buffer], fused=True, lr=self.lr, **settings)  # type: ignore[arg-type]


class FlatAdam:
    """torch's own fused Adam of one vector, without the class around it; see `FlatSGD`."""

    def __init__(
        self, w: nn.Parameter, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.w = w
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        moments = {name: torch.zeros_like(w.detach()) for name in ("exp_avg", "exp_avg_sq")}
        self.state = {w: moments | {"step": torch.zeros((), device=w.device)}}

    def step(self) -> None:
        mean, square, step = (
            [self.state[self.w][name]] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        settings = dict(
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        adam(
            [self.w.detach()],
            [_gradient(self.w)],
            mean,
            square,
            [],
            step,
            fused=True,
            lr=self.lr,
            **settings,  # type: ignore[arg-type]
        )


def _gradient(w: nn.Parameter) -> Tensor:
    assert w.grad is not None
    return w.grad


def reset(optimizer: Optimizer) -> None:
    """Forget a former client in place: every moment and counter becomes zero, as in a new
    optimizer.
    """
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()

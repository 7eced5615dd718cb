"""The plain records that flow between the parts.

No behaviour, no knowledge of any algorithm, split or dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from inco.flat import Slice
from inco.settings import Weighting as Weighting


class Output(NamedTuple):
    """What a model returns for a batch of m images."""

    logits: Tensor  # [m, classes]
    features: Tensor  # [m, d]: what the classifier sees
    exits: tuple[
        Tensor, ...
    ] = ()  # [m, classes] each: logits of earlier heads, shallowest first, in training alone


Objective = Callable[[Output, Tensor, "ClientTask"], Tensor]
"""The mean loss of a batch, from a model's output and labels [m]; what an algorithm adds comes on
top. One whose arithmetic depends on the round says so by a method `phase(round)`, equal in rounds
of equal arithmetic.
"""


def cross_entropy(output: Output, labels: Tensor, task: ClientTask) -> Tensor:
    """Return the mean cross-entropy of a batch, the objective of most."""
    return F.cross_entropy(output.logits, labels)


@dataclass(frozen=True)
class Pair:
    """A cross-layer pair: the update of `target` is mixed with that of the shallower `reference` of
    equal shape.
    """

    target: str
    reference: str


@dataclass(frozen=True, eq=False)
class ClassRows:
    """Parameters that belong to one class each (rows of a classifier). A client without that class
    leaves them out of the average.

    `local`, `place`: positions in the sub-model's and in the server's vector, int64 [k]; `owner`:
    the class of each, int64 [k].
    """

    local: Tensor
    place: Tensor
    owner: Tensor


@dataclass(frozen=True, eq=False)
class SideSum:
    """A stretch of a client's delta that is also averaged apart, over the clients of its level
    alone.

    Delta entries `start` to `start + length` count `factor` times in the side vector's entries from
    `into` on.
    """

    start: int
    into: int
    length: int
    factor: float


@dataclass(frozen=True, eq=False)
class SubModel:
    """The model that clients of one level hold, and which global coordinates it is.

    `objective`: the loss of a batch; `class_rows`: parameters that only clients with their class
    contribute to; `importance`: what each coordinate counts beside the client's weight, in (0, 1],
    float64 [n] (None: 1); `side`: what is averaged over this level alone, for the split's own use.
    """

    level: int  # 0 is the smallest
    name: str  # short, for metrics and reports: resnet14, vit9, w1/4
    build: Callable[[], nn.Module]
    params: Slice
    buffers: Slice
    objective: Objective = cross_entropy
    class_rows: ClassRows | None = None
    importance: Tensor | None = None
    side: tuple[SideSum, ...] = ()


@dataclass(frozen=True)
class ClientTask:
    """One client's work in one round."""

    client: int
    round: int
    level: int
    examples: Tensor  # int64[m]: positions in the training set
    classes: Tensor | None = None  # bool [classes]: those that its examples have


@dataclass
class LocalRun:
    """One client's local training, as its algorithm sees it. Vectors are the client's own, [n].

    `w0`, `b0`: parameters and buffers received; `w`, `b`: current ones (live views of the model);
    `g`: gradient (live); `lr`, `momentum`: of the local optimizer (momentum is 0 for Adam);
    `server`: the server's vectors that the algorithm reads, restricted to this client; `state`:
    this client's own vectors, which outlive the round; `steps`: local steps taken so far, K_i;
    `scratch`: the algorithm's own notes of this run; `frozen(role, w, b)`: a copy of the model that
    holds these vectors, in evaluation mode and without gradients; `full_gradient()`: the gradient
    of the mean loss over all the client's examples at the current weights, [n], in training mode;
    buffers stay as they are.
    """

    task: ClientTask
    model: nn.Module
    w0: Tensor
    w: Tensor
    g: Tensor
    lr: float
    momentum: float = 0.0
    b0: Tensor | None = None
    b: Tensor | None = None
    server: Mapping[str, Tensor] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    scratch: dict[str, Any] = field(default_factory=dict)
    frozen: Callable[[str, Tensor, Tensor], nn.Module] | None = None
    full_gradient: Callable[[], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class ClientResult:
    """What a client sends back: `vectors` by name [n], buffers after training, and a few
    numbers.
    """

    task: ClientTask
    vectors: Mapping[str, Tensor]
    buffers: Tensor
    loss: float  # mean training loss over the examples seen
    steps: int


class Plan(Protocol):
    """What the server knows of a round before it starts: who trains how long, and how per-client
    numbers average over holders.

    `steps`, `examples`: local steps and examples of each client in cohort order; `momentum`: of the
    local optimizer.
    """

    steps: tuple[int, ...]
    examples: tuple[int, ...]
    momentum: float

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        """Return the weighted mean of one number per client over the holders of each coordinate,
        float32 [P]; 0 where there are none.
        """
        ...


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A round's uploads, averaged per coordinate over the clients that hold it.

    `mean`: by upload name, [P], zero where nobody holds the coordinate; `covered`: bool [P];
    `buffers`: [B], the mean of the holders' buffers; `buffers_covered`: bool [B]; `clients`: one
    row a client in cohort order; `participation()`: of each coordinate's holders in the population,
    the share that took part, |S_p| / N_p, [P]; `side`: means of the sub-models' side sums, [Q].
    """

    mean: Mapping[str, Tensor]
    covered: Tensor
    buffers: Tensor
    buffers_covered: Tensor
    clients: tuple[ClientRow, ...]
    participation: Callable[[], Tensor]
    side: Tensor | None = None


class Beside(NamedTuple):
    """What an algorithm may have to know of the parts beside it, before a run."""

    adaptive: bool  # the local optimizer is none of SGD's kind: Adam
    momentum: float  # of the local optimizer
    moving_levels: bool  # clients change their level from round to round
    weighted_channels: bool  # means over holders weigh channels, not clients alike


class ServerStep(NamedTuple):
    """What became of a round's uploads: their averages, the update that the transform was `given`
    [P], and what the server optimizer got, `added` [P].
    """

    aggregate: Aggregate
    given: Tensor
    added: Tensor


class ClientRow(NamedTuple):
    """What the record keeps of one client of a round."""

    client: int
    level: int
    examples: int
    loss: float
    steps: int


Metrics = dict[str, float]
"""A round's numbers by name."""


@dataclass
class ServerState:
    """All that a run needs to go on: the round done, parameters `w` [P], buffers `b` [B], and the
    methods' own vectors.

    `half_applied`: it is between two rounds, some of it stepped and some not; what an interruption
    leaves so is not to be saved.
    """

    round: int
    w: Tensor
    b: Tensor
    algorithm: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    split: dict[str, Tensor] = field(default_factory=dict)
    half_applied: bool = False

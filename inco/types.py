"""The plain records that flow between the parts. They know no algorithm, split or dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

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
top. An objective that depends on the round also has a method `phase(round)`, which returns the same
value for two rounds if the objective computes the same thing in both.
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


@dataclass(frozen=True)
class Upload:
    """One of the vectors that clients send. The server averages it entry by entry, over the clients
    that hold the entry.

    `weighting`: what a client counts. `entries`: the parameters or the buffers of the client's
    model, or the number of entries that the upload has of its own (1: a single number), which every
    client sends, except where its level's `SubModel.holds` says otherwise. `limit`: values must be
    below it; sums are made in steps of 2**-62 of it. Only uploads of parameters pass the uplink.
    """

    weighting: Weighting = "examples"
    entries: Literal["params", "buffers"] | int = "params"
    limit: float = 2.0**22  # a delta that large has diverged


Vectors = Mapping[str, Tensor]
"""A client's uploads by name, each of the entries that it holds."""


def nothing_derived(vectors: Vectors) -> Vectors:
    """Return no uploads beside the algorithm's, as most sub-models do."""
    return {}


@dataclass(frozen=True, eq=False)
class SubModel:
    """The model that clients of one level hold, and which global coordinates it is.

    `objective`: the loss of a batch. `derive`: makes the split's own uploads from the algorithm's,
    after the uplink, as the server of a deployment would. `holds`: of uploads with entries of their
    own, by name, the entries that this level sends.
    """

    level: int  # 0 is the smallest
    name: str  # short, for metrics and reports: resnet14, vit9, w1/4
    build: Callable[[], nn.Module]
    params: Slice
    buffers: Slice
    objective: Objective = cross_entropy
    derive: Callable[[Vectors], Vectors] = nothing_derived
    holds: Mapping[str, Slice] = field(default_factory=dict)

    def held(self, upload: Upload, name: str = "") -> Slice:
        """Return the slice of the server's vector for an upload that this level sends.

        `name`: needed where the upload has entries of its own.
        """
        if upload.entries == "params":
            return self.params
        if upload.entries == "buffers":
            return self.buffers
        return self.holds[name] if name in self.holds else Slice.span(0, upload.entries)


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
    """What a client sends back: its uploads, buffers after training among them, and two numbers."""

    task: ClientTask
    vectors: Vectors
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
    """A round's uploads, averaged per entry over the clients that hold it.

    `mean`: by upload name, zero where nobody holds the entry: [P] for parameters, [B] for
    "buffers"; `covered`: coordinates that somebody holds, bool [P]; `buffers_covered`: bool [B];
    `clients`: one row per client in cohort order; `participation()`: of each coordinate's holders
    in the population, the share that took part, |S_p| / N_p, [P].
    """

    mean: Mapping[str, Tensor]
    covered: Tensor
    buffers_covered: Tensor
    clients: tuple[ClientRow, ...]
    participation: Callable[[], Tensor]


class Beside(NamedTuple):
    """What an algorithm may have to know of the parts beside it, before a run."""

    adaptive: bool  # True for Adam, False for SGD
    momentum: float  # of the local optimizer
    moving_levels: bool  # clients change their level from round to round
    weighted_channels: bool  # means over holders weigh channels, not clients alike


class ServerStep(NamedTuple):
    """What became of a round's uploads: their averages, and the update [P] before the transform."""

    aggregate: Aggregate
    update: Tensor


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

    A round moves a copy, which becomes the state once the round has ended: whatever interrupts it,
    the state is that of a whole round.
    """

    round: int
    w: Tensor
    b: Tensor
    algorithm: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    split: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> ServerState:
        """Return a state with tensors of its own, but for the buffers: a round replaces them."""
        own = (
            {name: vector.clone() for name, vector in vectors.items()}
            for vectors in (self.algorithm, self.optimizer, self.split)
        )
        return ServerState(self.round, self.w.clone(), self.b, *own)

    def become(self, other: ServerState) -> None:
        """Take over the other's tensors, all at once: no signal comes in between."""
        vars(self).update(vars(other))

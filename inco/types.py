"""The plain records that flow between the parts. No behaviour, no knowledge of any algorithm, split or dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from inco.flat import Slice

Weighting = Literal["examples", "uniform"]
"""How uploads are averaged: in proportion to a client's examples, or each client alike."""


class Output(NamedTuple):
    """What a model returns for a batch of m images."""

    logits: Tensor  # [m, classes]
    features: Tensor  # [m, d]: what the classifier sees


@dataclass(frozen=True)
class Pair:
    """A cross-layer pair: the update of `target` is mixed with that of the shallower `reference` of equal shape."""

    target: str
    reference: str


@dataclass(frozen=True, eq=False)
class SubModel:
    """The model that clients of one level hold, and which global coordinates it is."""

    level: int  # 0 is the smallest
    name: str  # short, for metrics and reports: resnet14, vit9, w1/4
    build: Callable[[], nn.Module]
    params: Slice
    buffers: Slice


@dataclass(frozen=True)
class ClientTask:
    """One client's work in one round."""

    client: int
    round: int
    level: int
    examples: Tensor  # int64[m]: positions in the training set


@dataclass
class LocalRun:
    """One client's local training, as its algorithm sees it. Vectors are the client's own, [n].

    `w0`: parameters received; `w`: current parameters (a live view of the model); `g`: their gradient (live);
    `server`: the server's vectors restricted to this client; `steps`: local steps taken so far, K_i.
    """

    task: ClientTask
    model: nn.Module
    w0: Tensor
    w: Tensor
    g: Tensor
    lr: float
    server: Mapping[str, Tensor] = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True, eq=False)
class ClientResult:
    """What a client sends back: `vectors` by name [n], buffers after training, and a few numbers."""

    task: ClientTask
    vectors: Mapping[str, Tensor]
    buffers: Tensor
    loss: float  # mean training loss over the examples seen
    steps: int


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A round's uploads, averaged per coordinate over the clients that hold it.

    `mean`: by upload name, [P], zero where nobody holds the coordinate; `covered`: bool [P]; `buffers`: [B], the mean of the
    holders' buffers; `buffers_covered`: bool [B]; `clients`: one row a client in cohort order.
    """

    mean: Mapping[str, Tensor]
    covered: Tensor
    buffers: Tensor
    buffers_covered: Tensor
    clients: tuple[ClientRow, ...]


class ClientRow(NamedTuple):
    """What the record keeps of one client of a round."""

    client: int
    level: int
    examples: int
    loss: float
    steps: int

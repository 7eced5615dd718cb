"""The type and the range of every setting, as structured configs. No torch here: it is checked
before anything heavy is imported.

The fields of a schema are the constructor arguments of its class; a test holds schemas, YAML files
and constructors together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from inco.config.rules import (
    CHOSEN_PAIRS,
    COUNT,
    INTEGER_OR_AUTO,
    LAYERS,
    NULL_OR_BOUND,
    NULL_OR_CLIP,
    PAIRS,
    above,
    at_least,
    between,
    many,
    null_or,
    one_of,
    ruled,
)


@dataclass
class Root:
    """The top-level settings."""

    seed: int = ruled(at_least(0))
    rounds: int = ruled(COUNT)
    num_clients: int = ruled(COUNT)
    sample_ratio: float = ruled(between(0, 1, open_low=True))
    eval_every: int = ruled(COUNT)
    checkpoint_every: int = ruled(COUNT)
    name: str = MISSING
    fresh: bool = MISSING
    scale: str | None = ruled(null_or(one_of("paper", "mini")))


@dataclass
class Empty:
    """An option without settings."""


@dataclass
class Source:
    transforms: str = ruled(one_of("published", "corrected"))


@dataclass
class Synthetic(Source):
    shape: list[int] = ruled(many(COUNT, 3))
    num_classes: int = ruled(at_least(2))
    num_train: int = ruled(COUNT)
    num_test: int = ruled(COUNT)
    seed: int = ruled(at_least(0))


@dataclass
class Rooted(Source):
    root: str | None = MISSING
    test_drop_last: int | None = ruled(null_or(COUNT))


@dataclass
class Downloadable(Rooted):
    download: bool = MISSING


@dataclass
class ImageFolder(Source):
    root: str = MISSING
    size: int = ruled(COUNT)
    test_share: float = ruled(between(0, 1, open_low=True, open_high=True))


@dataclass
class Dirichlet:
    alpha: float = ruled(above(0))
    min_size: int = ruled(COUNT)
    max_tries: int = ruled(COUNT)


@dataclass
class Quantity:
    beta: float = ruled(above(0))
    min_size: int = ruled(COUNT)
    max_tries: int = ruled(COUNT)


@dataclass
class ByClass:
    classes_per_client: int = ruled(COUNT)


@dataclass
class InCo:
    rule: str = ruled(one_of("official", "algorithm1", "theorem"))
    pairs: Any = ruled(PAIRS)
    normalize: bool = MISSING
    optimize: bool = MISSING
    granularity: str = ruled(one_of("auto", "kernel", "layer"))
    theta_max: float | None = ruled(NULL_OR_BOUND)
    clip: float | None = ruled(NULL_OR_CLIP)


@dataclass
class Wandb:
    project: str = MISSING
    mode: str = ruled(one_of("auto", "online", "offline"))
    entity: str | None = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    timeout_s: float = ruled(between(0, 10, open_low=True))
    job_type: str = MISSING
    report: bool = MISSING


@dataclass
class Resampled:
    shares: list[float] | None = ruled(null_or(many(at_least(0))))


@dataclass
class FixedLevel:
    which: str = ruled(one_of("small", "large"))


@dataclass
class Path:
    path: str = MISSING


@dataclass
class FedAvg:
    weighting: str = ruled(one_of("examples", "uniform"))


@dataclass
class FedProx(FedAvg):
    mu: float = ruled(at_least(0))


@dataclass
class Scaffold(FedAvg):
    option: str = ruled(one_of("II", "I"))
    correction: str = ruled(one_of("grad", "post_step"))
    allow_adam: bool = MISSING


@dataclass
class FedNova(FedAvg):
    tau: str = ruled(one_of("holders", "cohort"))
    allow_adam: bool = MISSING


@dataclass
class Moon(FedAvg):
    mu: float = ruled(at_least(0))
    temperature: float = ruled(above(0))
    allow_moving: bool = MISSING


@dataclass
class FedDyn:
    alpha: float = ruled(above(0))


@dataclass
class ServerSGD:
    lr: float = ruled(above(0))
    momentum: float = ruled(between(0, 1, open_high=True))


@dataclass
class Adagrad:
    lr: float = ruled(above(0))
    beta1: float = ruled(between(0, 1, open_high=True))
    tau: float = ruled(above(0))


@dataclass
class Adaptive(Adagrad):
    beta2: float = ruled(between(0, 1, open_high=True))


@dataclass
class Uplink:
    nonfinite: str = ruled(one_of("stop", "skip"))


@dataclass
class Noise(Uplink):
    scale: float = ruled(at_least(0))


@dataclass
class AddNoise:
    scale: float = ruled(at_least(0))
    pairs: Any = ruled(CHOSEN_PAIRS)


@dataclass
class Clip(Uplink):
    max_norm: float = ruled(above(0))


@dataclass
class Local:
    epochs: int = ruled(COUNT)
    batch_size: int = ruled(COUNT)
    lr: float = ruled(above(0))
    weight_decay: float = ruled(at_least(0))
    drop_last: bool = MISSING
    max_grad_norm: float | None = ruled(null_or(above(0)))
    precision: str = ruled(one_of("fp32", "bf16"))


@dataclass
class Adam(Local):
    betas: list[float] = ruled(many(between(0, 1, open_high=True), 2))


@dataclass
class SGD(Local):
    momentum: float = ruled(between(0, 1, open_high=True))


@dataclass
class CKADiagnostics:
    every: int = ruled(COUNT)
    images: int = ruled(at_least(2))
    batch: int = ruled(at_least(2))
    models: str = ruled(one_of("clients", "capacities"))
    estimator: str = ruled(one_of("unbiased", "biased"))
    most: int = ruled(at_least(2))


@dataclass
class GradientsDiagnostics:
    every: int = ruled(COUNT)
    layers: Any = ruled(LAYERS)
    pairs: str = ruled(one_of("official", "paper"))
    values: int = ruled(at_least(0))


@dataclass
class AllDiagnostics(CKADiagnostics):
    layers: Any = ruled(LAYERS)
    pairs: str = ruled(one_of("official", "paper"))
    values: int = ruled(at_least(0))


@dataclass
class EngineSettings:
    workers: Any = ruled(INTEGER_OR_AUTO)
    device: str = ruled(one_of("auto", "cpu", "cuda"))
    gpus: int | None = ruled(null_or(COUNT))
    mode: str = ruled(one_of("auto", "eager", "graph"))
    retry: int = ruled(at_least(0))
    profile: bool = MISSING
    state_dir: str | None = MISSING

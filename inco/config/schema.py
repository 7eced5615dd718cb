"""The type and the range of every setting, as structured configs. No torch here: it is checked before anything heavy is imported.

The fields of a schema are the constructor arguments of its class; a test holds schemas, YAML files and constructors together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy, and how to say it."""

    holds: Callable[[Any], bool]
    text: str


def ruled(rule: Rule, default: Any = MISSING) -> Any:
    """Return a dataclass field that carries a rule."""
    return field(default=default, metadata={"rule": rule})


def _number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


def at_least(low: float) -> Rule:
    return Rule(lambda v: _number(v) and v >= low, f"at least {low}")


def above(low: float) -> Rule:
    return Rule(lambda v: _number(v) and v > low, f"above {low}")


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Rule:
    left, right = "(" if open_low else "[", ")" if open_high else "]"

    def holds(v: Any) -> bool:
        return _number(v) and (low < v if open_low else low <= v) and (v < high if open_high else v <= high)

    return Rule(holds, f"in {left}{low}, {high}{right}")


def one_of(*options: str) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def many(each: Rule, most: int | None = None) -> Rule:
    """A list whose entries all satisfy a rule."""
    count = "a list" if most is None else f"a list of {most}"
    return Rule(lambda v: len(v) > 0 and most in (None, len(v)) and all(each.holds(x) for x in v), f"{count}, each {each.text}")


def null_or(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.holds(v), f"null, or {rule.text}")


def _count(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and v >= 1


COUNT = Rule(_count, "a whole number of at least 1")
WEIGHTS = Rule(lambda v: isinstance(v, bool) or (isinstance(v, str) and v != ""), "true, false or the path of a file")
LEVELS = Rule(
    lambda v: len(v) > 0 and all(_count(x) or (isinstance(x, list) and len(x) > 0 and all(_count(y) for y in x)) for x in v),
    "a list with one entry a level, each a number of blocks or a list of them",
)
PAIRS = Rule(
    lambda v: v in ("auto", "official", "paper") or (isinstance(v, list) and all(isinstance(x, list) and len(x) == 2 for x in v)),
    "auto, official, paper or a list of [target, reference]",
)
NULL_OR_BOUND = Rule(lambda v: v is None or (isinstance(v, float) and v >= 0), "null, or at least 0 (inf: no bound)")
NULL_OR_CLIP = Rule(lambda v: v is None or (isinstance(v, float) and v > 0), "null, or above 0 (inf: no clip)")
INTEGER_OR_AUTO = Rule(lambda v: v == "auto" or _count(v), "auto or a whole number of at least 1")


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
class ResNetFamily:
    blocks: list[int] = ruled(many(COUNT))
    widths: list[int] = ruled(many(COUNT))
    stem: str = ruled(one_of("imagenet", "small"))
    image_size: int | None = ruled(null_or(COUNT))
    pretrained: Any = ruled(WEIGHTS)


@dataclass
class ViTFamily:
    depth: int = ruled(COUNT)
    dim: int = ruled(COUNT)
    heads: int = ruled(COUNT)
    patch: int = ruled(COUNT)
    image_size: int = ruled(COUNT)
    mlp_ratio: float = ruled(above(0))
    pretrained: Any = ruled(WEIGHTS)
    timm_name: str | None = MISSING


@dataclass
class Depth:
    levels: list[Any] = ruled(LEVELS)


@dataclass
class Isolated:
    levels: list[Any] | None = ruled(null_or(LEVELS))


@dataclass
class FedAvg:
    weighting: str = ruled(one_of("examples", "uniform"))


@dataclass
class Local:
    epochs: int = ruled(COUNT)
    batch_size: int = ruled(COUNT)
    lr: float = ruled(above(0))
    weight_decay: float = ruled(at_least(0))
    drop_last: bool = MISSING
    precision: str = ruled(one_of("fp32", "bf16"))


@dataclass
class Adam(Local):
    betas: list[float] = ruled(many(between(0, 1, open_high=True), 2))


@dataclass
class SGD(Local):
    momentum: float = ruled(between(0, 1, open_high=True))


@dataclass
class EngineSettings:
    workers: Any = ruled(INTEGER_OR_AUTO)
    device: str = ruled(one_of("auto", "cpu", "cuda"))


# Which schema describes the settings of which class. A class of the user's own has none: its constructor is what checks it.
SCHEMAS: dict[str, type] = {
    "inco.data.sources.Digits": Source,
    "inco.data.sources.Synthetic": Synthetic,
    "inco.data.sources.FashionMNIST": Downloadable,
    "inco.data.sources.SVHN": Downloadable,
    "inco.data.sources.CIFAR10": Downloadable,
    "inco.data.folders.CINIC10": Rooted,
    "inco.data.folders.ImageFolder": ImageFolder,
    "inco.data.partition.IID": Empty,
    "inco.data.partition.Dirichlet": Dirichlet,
    "inco.data.partition.Fixed": Path,
    "inco.data.partition.Shards": ByClass,
    "inco.data.partition.Quantity": Quantity,
    "inco.data.partition.Labels": ByClass,
    "inco.server.transforms.Identity": Empty,
    "inco.server.transforms.InCo": InCo,
    "inco.tracker.NoTracker": Empty,
    "inco.tracker.Wandb": Wandb,
    "inco.capacity.FiveLevels": Empty,
    "inco.capacity.Resampled": Resampled,
    "inco.capacity.Fixed": FixedLevel,
    "inco.capacity.Table": Path,
    "inco.models.resnet.ResNetFamily": ResNetFamily,
    "inco.models.vit.ViTFamily": ViTFamily,
    "inco.splits.base.Whole": Empty,
    "inco.splits.depth.Depth": Depth,
    "inco.splits.isolated.Isolated": Isolated,
    "inco.algorithms.fedavg.FedAvg": FedAvg,
    "inco.local.Adam": Adam,
    "inco.local.SGD": SGD,
    "inco.server.optim.Average": Empty,
    "inco.uplink.Clean": Empty,
    "inco.diagnostics.NoDiagnostics": Empty,
    "inco.config.schema.EngineSettings": EngineSettings,
}

"""The parts of a run but its data: built from settings, and held against one another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from inco.algorithms.fedavg import Algorithm
from inco.clients.local import Local
from inco.config.targets import build, locate
from inco.config.validate import GROUPS, validate
from inco.data.recipes import Recipe
from inco.errors import ConfigError, InCoError
from inco.models.base import Family
from inco.splits.base import Split
from inco.types import Beside


@dataclass(frozen=True, eq=False)
class Parts:
    """What the groups name, built and held against one another before any data is loaded."""

    source: Any
    recipe: Recipe
    family: Family
    split: Split
    capacity: Any
    partition: Any
    local: Local
    algorithm: Algorithm
    transform: Any
    uplink: Any
    optimizer: Any
    diagnostics: Any


class _Builder:
    """Builds parts one by one, and keeps every problem; what needs a missing part is left out."""

    def __init__(self, settings: Mapping[str, Any], sound: Collection[str]) -> None:
        self._settings = settings
        self._sound = sound
        self.problems: list[str] = []
        self.failed: InCoError | None = None

    def group(self, name: str, **wiring: Any) -> Any:
        """Build a group's object, unless its settings are known to be wrong."""
        if name not in self._sound or None in wiring.values():
            return None
        return self.attempt(lambda: build(name, self._settings[name], **wiring))

    def is_sound(self, name: str) -> bool:
        """Tell whether nothing is known to be wrong with a group's settings."""
        return name in self._sound

    def attempt(self, work: Callable[[], Any], *needs: object) -> Any:
        """Do what needs some parts, if they are there."""
        if any(need is None for need in needs):
            return None
        try:
            return work()
        except ConfigError as error:
            self.problems += error.problems
        except InCoError as error:
            self.failed = self.failed or error
        return None


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Return all that is wrong with settings, each group's and between groups. Loads no data."""
    found = validate(settings)
    bad = {re.split(r"[.=:]", problem)[0] for problem in found}
    if bad & {"num_clients", "seed"}:  # which a capacity is given
        bad.add("capacity")
    sound = frozenset(GROUPS) - bad
    made, told = _structure_of(json.dumps({g: settings.get(g) for g in _STRUCTURE}), sound)
    builder = _Builder(settings, sound)
    _build(settings, builder, made)
    return found + [problem for problem in (*told, *builder.problems) if problem not in found]


def built(settings: Mapping[str, Any]) -> Parts:
    """Build the parts of sound settings. Raises ConfigError with all that is wrong between them."""
    builder = _Builder(settings, GROUPS)
    made = _build(settings, builder, _structure(settings, builder))
    if builder.problems:
        raise ConfigError(builder.problems)
    if builder.failed:
        raise builder.failed
    return Parts(**made)


_STRUCTURE = ("dataset", "model", "split")


@lru_cache(maxsize=8)  # points of a sweep share it, and a split takes a second to build
def _structure_of(text: str, sound: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the structure of settings, given as JSON, and its problems."""
    settings = json.loads(text)
    builder = _Builder(settings, sound)
    return _structure(settings, builder), builder.problems


def _structure(settings: Mapping[str, Any], builder: _Builder) -> dict[str, Any]:
    """Build what says which model clients of a level hold; what has problems is None."""
    source = builder.group("dataset")
    model: Any = settings["model"] if builder.is_sound("model") else None
    recipe = builder.attempt(lambda: _recipe(source, model), source, model)
    shape = recipe.shape if recipe else None
    classes = source.num_classes if source else None
    family = builder.group("model", shape=shape, num_classes=classes)
    split = builder.group("split", family=family)
    return {"source": source, "recipe": recipe, "family": family, "split": split}


def _build(
    settings: Mapping[str, Any], builder: _Builder, structure: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the other parts, and hold all against one another; what has problems is None."""
    family = structure["family"]
    split = structure["split"]
    capacity = builder.group(
        "capacity",
        num_clients=settings.get("num_clients"),
        num_levels=len(split.names) if split else None,
        seed=settings.get("seed"),
    )
    local = builder.group("local")
    algorithm = builder.group("algorithm")
    transform = builder.group("transform")
    bound = builder.attempt(lambda: _bound(transform, split), transform, split)
    builder.attempt(lambda: _check_batches(family, local), family, local)
    builder.attempt(lambda: _check_method(algorithm, local, capacity, split), algorithm, local)
    return {
        **structure,
        "capacity": capacity,
        "partition": builder.group("partition"),
        "local": local,
        "algorithm": algorithm,
        "transform": bound,
        "uplink": builder.group("uplink"),
        "optimizer": builder.group("server"),
        "diagnostics": builder.group("diagnostics"),
    }


def _recipe(source: Any, model: Mapping[str, Any]) -> Recipe:
    """Return how images are prepared for a kind of model; a user's may have no image_size."""
    kind = locate("model", model["_target_"]).recipe
    recipe: Recipe = source.recipe(kind, model.get("image_size"))
    return recipe


def _bound(transform: Any, split: Split) -> Any:
    try:
        return transform.bind(split.params, split.pairs)
    except ValueError as error:
        raise ConfigError(f"transform: {error}") from error


def _check_batches(family: Family, local: Local) -> None:
    least = family.min_batch
    if local.batch_size < least:
        raise ConfigError(
            f"local.batch_size={local.batch_size}: {family.name} has BatchNorm, which cannot train"
            f" on fewer than {least} examples; use local.batch_size={least} or more"
        )


def _check_method(algorithm: Algorithm, local: Local, capacity: Any, split: Split | None) -> None:
    """Hold a method against the parts beside it; of one that could not be built nothing is said."""
    beside = Beside(
        adaptive=local.adaptive,
        momentum=local.momentum,
        moving_levels=capacity is not None and capacity.moving,
        weighted_channels=split is not None and split.weighting == "width",
    )
    found = list(algorithm.conflicts(beside))
    if found:
        raise ConfigError(found)

"""Random images in place of a dataset that is not on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inco.config.targets import build
from inco.data.dataset import Source
from inco.data.fetch import Downloadable
from inco.data.readers import Arrays
from inco.data.recipes import Recipe
from inco.errors import DataError


class StandIn(Source):
    """Random bytes and balanced labels, prepared as the dataset whose settings are `of`."""

    def __init__(self, of: Mapping[str, Any]) -> None:
        self.real: Source = build("dataset", of)
        real = self.real
        super().__init__(
            real.root, real.transforms, real.test_drop_last, real.limit, real.test_limit
        )
        self.name = self.real.name
        self.shape = self.real.shape
        self.classes = self.real.classes
        self.counts = self.real.counts

    def read(self) -> tuple[Arrays, Arrays]:
        assert self.counts is not None  # `prepared` refuses such
        rng = np.random.default_rng(0)
        return self._split(self.counts[0], rng), self._split(self.counts[1], rng)

    def _split(self, count: int, rng: np.random.Generator) -> Arrays:
        images = rng.integers(0, 256, (count, *self.shape), dtype=np.uint8)
        return images, rng.permutation(count) % self.num_classes

    def recipe(self, family: str, image_size: int | None) -> Recipe:
        return self.real.recipe(family, image_size)


def prepared(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings with what is absent replaced, and notes that say so; downloads nothing.

    Raises DataError where the number of images is not known without them.
    """
    replaced = dict(settings)
    notes = []
    source: Source = build("dataset", settings["dataset"])
    problem = _absent(source)
    if problem is not None:
        if source.counts is None or not source.classes:
            raise problem
        replaced["dataset"] = {"_target_": f"{__name__}.StandIn", "of": settings["dataset"]}
        notes.append(
            f"{source.name} is not on this machine: measured on random images of its shape, number"
            " and classes"
        )
    if settings["model"].get("pretrained"):  # costs the same, and is not to be fetched
        replaced["model"] = {**settings["model"], "pretrained": False}
    return replaced, notes


def _absent(source: Source) -> DataError | None:
    if isinstance(source, Downloadable) and not source.is_there():
        return source.missing_error()
    try:
        source.check()
    except DataError as error:
        return error
    return None

"""Images in place of a dataset that is not on this machine: same shape, number and classes, so that
a plan can be measured without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inco.config.targets import build
from inco.data.dataset import Dataset, Images, Source
from inco.data.fetch import Downloadable
from inco.data.recipes import Recipe
from inco.errors import DataError


class StandIn(Source):
    """Random bytes and balanced labels, prepared by the recipe of the dataset that they stand for
    (`of`: its settings).
    """

    def __init__(self, of: Mapping[str, Any]) -> None:
        self.real: Source = build("dataset", of)
        super().__init__(self.real.root, self.real.transforms)
        self.name = self.real.name
        self.shape = self.real.shape
        self.classes = self.real.classes
        self.counts = self.real.counts

    def load(self) -> Dataset:
        assert self.counts is not None  # absent without known counts: `prepared` refuses
        stream = torch.Generator().manual_seed(0)
        train, test = (self._split(count, stream) for count in self.counts)
        return Dataset(self.name, train, test, self.classes, "stand-in")

    def _split(self, count: int, stream: torch.Generator) -> Images:
        images: Tensor = torch.randint(
            0, 256, (count, *self.shape), dtype=torch.uint8, generator=stream
        )
        return Images(images, torch.randperm(count, generator=stream) % self.num_classes)

    def read(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Return the same as arrays."""
        data = self.load()
        return (data.train.images.numpy(), data.train.labels.numpy()), (
            data.test.images.numpy(),
            data.test.labels.numpy(),
        )

    def recipe(self, family: str, image_size: int | None) -> Recipe:
        return self.real.recipe(family, image_size)


def prepared(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings with what is absent replaced, and a line for each replacement. Nothing is
    downloaded.

    Raises DataError where the number of images is not known without them.
    """
    whole = dict(settings)
    notes = []
    source: Source = build("dataset", settings["dataset"])
    problem = _absent(source)
    if problem is not None:
        if source.counts is None or not source.classes:
            raise problem
        whole["dataset"] = {"_target_": f"{__name__}.StandIn", "of": settings["dataset"]}
        notes.append(
            f"{source.name} is not on this machine: measured on random images of its shape, number"
            " and classes"
        )
    if settings["model"].get("pretrained"):
        # costs the same, and is not to be fetched
        whole["model"] = {
            **settings["model"],
            "pretrained": False,
        }
    return whole, notes


def _absent(source: Source) -> DataError | None:
    if isinstance(source, Downloadable) and not source.is_there():
        return source.missing_error()
    try:
        source.check()
    except DataError as error:
        return error
    return None

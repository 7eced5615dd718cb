"""The very same work for every system: the product's own clients, batches, images and first
weights, read off an assembled run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from inco.assembly import assemble
from inco.clients.trainer import Batch, take
from inco.data.dataset import Images
from inco.engine.ranks import Ranks
from inco.models.base import fresh
from inco.seeding import generator


@dataclass(frozen=True, eq=False)
class Client:
    """One client of a round: its number, its level, how many examples it holds, and the examples of
    each of its local steps.
    """

    number: int
    level: int
    examples: int
    batches: tuple[Tensor, ...]


class Material:
    """What a round consists of, by the product's own sampling and shuffling; nothing of it is the
    product's way of computing.

    Images are float32 in the default layout. `lr`: of the clients' SGD.
    """

    def __init__(self, settings: Mapping[str, Any], device: str = "cpu") -> None:
        self.run = assemble(settings, Ranks(0, 1, torch.device(device)))
        self.seed = settings["seed"]
        self.device = torch.device(device)
        self.lr = settings["local"]["lr"]
        self.batch_size = settings["local"]["batch_size"]
        simulator = self.run.simulator
        self.population = simulator.population
        self._trainer = simulator.engine.trainer
        self._test = simulator.engine.evaluator

    def clients(self, round: int) -> list[Client]:
        """Return the round's clients, with the examples of each step in the order in which the
        product takes them.
        """
        counting = self._numbering()
        return [
            Client(
                t.client,
                t.level,
                len(t.examples),
                tuple(x.flatten() for x, _ in counting._batches(t)),
            )
            for t in self.population.tasks(round)
        ]

    def _numbering(self) -> Any:
        """The product's trainer on a training set in which each image is its own number."""
        trainer: Any = copy.copy(self._trainer)
        labels = trainer.train.labels
        trainer.train = Images(
            torch.arange(len(labels), device=labels.device).view(-1, 1, 1, 1), labels
        )
        trainer.transform = lambda images, stream: images
        return trainer

    def batch(self, index: Tensor) -> Batch:
        """Return prepared images [m, C, S, S] and labels of some training examples."""
        x, y = take(self._trainer.train, index, self._trainer.transform, self._stream())
        return x.contiguous(), y

    def image(self, index: int) -> tuple[Tensor, int]:
        """Return one training image as it lies in the data set, uint8 [C, H, W], and its label."""
        train = self._trainer.train
        return train.images[index], int(train.labels[index])

    @cached_property
    def test(self) -> Batch:
        """All test images and labels, prepared."""
        images = self._test.test
        x, y = take(
            images,
            torch.arange(len(images.labels), device=self.device),
            self._test.transform,
            self._stream(),
        )
        return x.contiguous(), y

    def _stream(self) -> torch.Generator:
        return generator(self.seed, "benchmark", device=self.device)

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that clients can hold; each is scored."""
        return tuple(self.population.capacity.levels)

    def model(self, level: int | None = None) -> nn.Module:
        """Build the global model with the product's first weights, or a level's model with fresh
        ones.
        """
        split: Any = self.run.split
        if level is None:
            return fresh(split.family, self.seed).to(self.device)
        return split.submodel(level, 1).build().to(self.device)

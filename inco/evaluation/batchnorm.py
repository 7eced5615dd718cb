"""BatchNorm statistics measured on training images before a sub-model is scored (HeteroFL's static
BatchNorm).

While a model has no statistics, each batch is normalised by its own, so batches do not depend on
one another: workers measure theirs apart, and whole numbers are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from inco.clients.pool import ModelPool
from inco.clients.trainer import take
from inco.data.dataset import Images
from inco.data.transforms import Transform
from inco.seeding import generator

BATCH = 250  # training images at once; part of the arithmetic
_STEPS = 2.0**32  # fixed-point steps of summed means and variances
# larger statistics count as not finite: their sum over batches must fit into 64 bits
_LIMIT = 2.0**20


class StaticNorm:
    """Mean and variance of every BatchNorm layer, averaged over batches, each batch alike.

    `images`: how many of the training set, evenly spaced (None: all); prepared as for training,
    from a named stream. The published code takes batches of ten for pictures. Diao et al.,
    HeteroFL, ICLR 2021, Section 3, and its published code.
    """

    def __init__(
        self,
        pool: ModelPool,
        train: Images,
        transform: Transform,
        images: int | None,
        seed: int,
        precision: str = "fp32",
    ) -> None:
        self.pool = pool
        self.train = train
        self.transform = transform
        self.seed = seed
        self.precision = precision
        have = len(train.labels)
        count = have if images is None else min(images, have)
        # a sorted set would have one class a batch
        mixed = torch.randperm(count, generator=generator(seed, "statistics_order"))
        self.examples = (torch.arange(count)[mixed] * have // count).to(pool.device)
        self.starts = list(range(0, count, BATCH))
        if len(self.starts) > 1 and count - self.starts[-1] < 2:
            self.starts.pop()  # one image has no variance

    def batches(self) -> int:
        """Return the number of batches, the units of work of one level."""
        return len(self.starts)

    @staticmethod
    def size(model: nn.Module) -> int:
        """Return how many numbers the statistics of a model are, and one more: of batches in which
        they were not finite.
        """
        return sum(2 * norm.num_features for norm in _norms(model)) + 1 if _norms(model) else 0

    @torch.no_grad()
    def measure(self, model: nn.Module, number: int, round: int) -> Tensor:
        """Return means and variances of every layer on one batch, as whole numbers, int64
        [size].
        """
        start = self.starts[number]
        stop = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.examples)
        stream = generator(self.seed, "statistics", round, number, device=self.pool.device)
        x, _ = take(self.train, self.examples[start:stop], self.transform, stream)
        found: dict[nn.Module, Tensor] = {}
        with _watched(model, lambda norm, z: found.__setitem__(norm, torch.cat(_statistics(z)))):
            # without statistics of their own, norms take the batch's; early heads stay out
            model.eval()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                model(x)
        whole = [
            found.get(norm, torch.zeros(2 * norm.num_features, device=x.device))
            for norm in _norms(model)
        ]
        if not whole:
            return torch.zeros(0, dtype=torch.int64, device=x.device)
        values = torch.cat(whole).double()
        broken = ~(values.abs().max() < _LIMIT)
        return torch.cat(
            [torch.where(broken, 0.0, values * _STEPS).round().long(), broken.long()[None]]
        )

    def install(self, model: nn.Module, total: Tensor) -> None:
        """Give a model the averages of summed statistics, for scoring."""
        values = (total.double() / _STEPS / self.batches()).float()
        start = 0
        if len(total) and int(total[-1]):
            values.fill_(float("nan"))  # a model that has diverged: its loss will say so
        for norm in _norms(model):
            norm.running_mean = values[start : start + norm.num_features]
            norm.running_var = values[start + norm.num_features : start + 2 * norm.num_features]
            start += 2 * norm.num_features

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Take a model's statistics away again."""
        for norm in _norms(model):
            norm.running_mean = norm.running_var = None


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def _statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel of [m, C, h, w]."""
    variance, mean = torch.var_mean(z.float(), dim=(0, 2, 3), correction=1)
    return mean, variance


@contextmanager
def _watched(model: nn.Module, note: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    hooks = [
        norm.register_forward_pre_hook(lambda m, inputs: note(m, inputs[0]))
        for norm in _norms(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

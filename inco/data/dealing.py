"""`Partition`, the record of who holds what, and the vectorised dealing that the schemes share."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Partition:
    """Client i holds `order[offsets[i]:offsets[i + 1]]`: int64 [total] and int64 [N + 1]."""

    order: np.ndarray
    offsets: np.ndarray

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Number of examples of each client, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def digest(self) -> str:
        """sha256 over order and offsets: equal digests are equal partitions."""
        offsets = self.offsets.astype("<i8")
        order = self.order.astype("<i8")
        return hashlib.sha256(offsets.tobytes() + order.tobytes()).hexdigest()

    def examples(self, client: int) -> np.ndarray:
        """Return the dataset indices that `client` holds, int64 [n_i], in its own order."""
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} is out of range (0 to {self.num_clients - 1})")
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def class_counts(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Return how many examples each client holds of each class, int64 [N, C]; `labels` [M]."""
        client = np.repeat(np.arange(self.num_clients), self.sizes)
        cell = client * num_classes + np.asarray(labels)[self.order]
        counts = np.bincount(cell, minlength=self.num_clients * num_classes)
        return counts.reshape(self.num_clients, num_classes)


def even_offsets(total: int, parts: int) -> np.ndarray:
    """Return offsets [parts + 1] as `numpy.array_split` cuts: sizes as equal as can be."""
    i = np.arange(parts + 1, dtype=np.int64)
    return i * (total // parts) + np.minimum(i, total % parts)


def shard_owner(count: int, owners: np.ndarray) -> np.ndarray:
    """Return the owner of each of `count` examples, cut evenly and in order among `owners`."""
    return np.repeat(owners, np.diff(even_offsets(count, len(owners))))


def deal_counts(labels: np.ndarray, counts: np.ndarray, rng: Rng) -> Partition:
    """Give client j `counts[k, j]` random examples of class k; `counts` int64 [C, N]."""
    num_classes, num_clients = counts.shape
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.repeat(np.tile(np.arange(num_clients), num_classes), counts.ravel())
    return group(by_class, owner, num_clients, rng)


def group(examples: np.ndarray, owner: np.ndarray, num_clients: int, rng: Rng) -> Partition:
    """Collect the examples of each owner, in random order; `examples` and `owner` int64 [total]."""
    shuffled = rng.permutation(len(examples))
    order = shuffled[np.argsort(owner[shuffled], kind="stable")]
    sizes = np.bincount(owner, minlength=num_clients)
    return Partition(examples[order].astype(np.int64), offsets_of(sizes))


def offsets_of(sizes: ArrayLike) -> np.ndarray:
    """Return where each part begins, and the end of the last: int64 [parts + 1]."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

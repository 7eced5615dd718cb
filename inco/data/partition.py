"""Which client holds which training example: pure functions of labels, parameters and a stream.

M is the number of training examples, N of clients, C of classes. No example is given to two
clients; no client is left without any.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np

from inco.data.dealing import Partition, Rng, deal_counts, even_offsets, group, shard_owner
from inco.data.partition_file import read_partition
from inco.errors import ConfigError
from inco.settings import COUNT, MaxTries, MinSize, above, checked

log = logging.getLogger(__name__)


class Scheme(ABC):
    """A way to deal M examples to N clients: `deal`. What holds for all schemes is checked here."""

    name = ""

    def __call__(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng
    ) -> Partition:
        """Return the partition of `labels` [M], 0..C-1; ConfigError where it cannot be had."""
        if num_clients < 1:
            raise ConfigError(f"num_clients={num_clients}: must be at least 1")
        if num_clients > len(labels):
            raise ConfigError(
                f"num_clients={num_clients}: the training set has {len(labels)} examples and no"
                f" client may be empty; use num_clients={len(labels)} or fewer"
            )
        partition = self.deal(np.asarray(labels), num_classes, num_clients, rng)
        empty = np.flatnonzero(partition.sizes == 0)
        if len(empty):
            raise ConfigError(
                f"partition={self.name} with num_clients={num_clients}: {len(empty)} clients would"
                f" be empty (the first is client {empty[0]}); use fewer clients"
            )
        return partition

    @abstractmethod
    def deal(self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng) -> Partition:
        """Return the partition; `num_clients` is between 1 and M."""


class IID(Scheme):
    """Shuffle everything and cut into N parts whose sizes differ by at most one."""

    name = "iid"

    def deal(self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng) -> Partition:
        return Partition(rng.permutation(len(labels)), even_offsets(len(labels), num_clients))


class Repeated(Scheme):
    """A scheme that draws again until every client has `min_size` examples.

    `concentration`: name of the setting that makes a draw more even.
    """

    concentration: str
    min_size: int
    max_tries: int

    def deal(self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng) -> Partition:
        if num_clients * self.min_size <= len(labels):
            for _ in range(self.max_tries):
                partition = self.draw(labels, num_classes, num_clients, rng)
                if partition is not None:
                    return partition
        concentration = f"{self.concentration}={getattr(self, self.concentration):g}"
        raise ConfigError(
            f"partition={self.name} with {concentration}, num_clients={num_clients},"
            f" min_size={self.min_size}: no draw in {self.max_tries} gave every client"
            f" {self.min_size} of the {len(labels)} examples ({len(labels) / num_clients:.1f}"
            " per client on average); use fewer clients, a smaller partition.min_size or a larger"
            f" partition.{self.concentration}"
        )

    @abstractmethod
    def draw(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng
    ) -> Partition | None:
        """Return one draw, or None where a client has fewer than `min_size` examples."""


class Dirichlet(Repeated):
    """Label skew: each class is dealt out by its own draw q ~ Dir(alpha 1_N), softly capped.

    Classes are visited in label order. A client that already holds M / N or more gets no further
    class; the cap is looked at before adding, so final sizes may exceed it. Li et al., "Federated
    Learning on Non-IID Data Silos", ICDE 2022 (noniid-labeldir); Chan et al., ICLR 2024.
    """

    name = "dirichlet"
    concentration = "alpha"

    @checked("partition")
    def __init__(
        self,
        alpha: Annotated[
            float, above(0), "concentration; 0.1: one or two classes a client, 100: nearly IID"
        ] = 0.5,
        min_size: MinSize = 10,
        max_tries: MaxTries = 1000,
    ) -> None:
        self.alpha = float(alpha)
        self.min_size = min_size
        self.max_tries = max_tries

    def draw(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng
    ) -> Partition | None:
        class_sizes = np.bincount(labels, minlength=num_classes)
        held = np.zeros(num_clients, dtype=np.int64)
        counts = np.zeros((num_classes, num_clients), dtype=np.int64)
        cap = len(labels) / num_clients
        for k, size in enumerate(class_sizes):
            share = rng.dirichlet(np.full(num_clients, self.alpha)) * (held < cap)
            total = share.sum()
            if not total > 0:  # a tiny alpha may put the whole class on full clients
                return None
            cuts = np.floor(np.cumsum(share / total)[:-1] * size).astype(np.int64)
            counts[k] = np.diff(np.concatenate([[0], np.minimum(cuts, size), [size]]))
            held += counts[k]
        return deal_counts(labels, counts, rng) if held.min() >= self.min_size else None


class Quantity(Repeated):
    """Quantity skew: sizes follow one draw q ~ Dir(beta 1_N), labels stay IID.

    Li et al., ICDE 2022 (iid-diff-quantity, beta 0.5).
    """

    name = "quantity"
    concentration = "beta"

    @checked("partition")
    def __init__(
        self,
        beta: Annotated[float, above(0), "concentration of the clients' sizes"] = 0.5,
        min_size: MinSize = 10,
        max_tries: MaxTries = 1000,
    ) -> None:
        self.beta = float(beta)
        self.min_size = min_size
        self.max_tries = max_tries

    def draw(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng
    ) -> Partition | None:
        total = len(labels)
        share = rng.dirichlet(np.full(num_clients, self.beta))
        if not share.min() * total >= self.min_size:
            return None
        cuts = np.floor(np.cumsum(share)[:-1] * total).astype(np.int64)
        offsets = np.concatenate([[0], np.minimum(cuts, total), [total]])
        return Partition(rng.permutation(total), offsets)


class Shards(Scheme):
    """HeteroFL's non-iid-s: each client is dealt `classes_per_client` shards of one class each.

    Each class, in dataset order, is cut into m = s N / C shards (the first ones one longer where it
    does not divide); a shuffled list with every label m times gives each client s labels. A client
    that draws a label twice gets one shard of it, and the other is not used by anybody, as
    published. Needs s N divisible by C. Diao et al., "HeteroFL", ICLR 2021.
    """

    name = "shards"

    @checked("partition")
    def __init__(
        self,
        classes_per_client: Annotated[
            int, COUNT, "shards of one class each, at most the number of classes"
        ] = 2,
    ) -> None:
        self.classes_per_client = classes_per_client

    def deal(self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng) -> Partition:
        shards = self._shards_per_class(labels, num_classes, num_clients)
        drawn = rng.permutation(np.tile(np.arange(num_classes), shards)).reshape(num_clients, -1)
        owns = _owns(drawn, num_classes)  # a label drawn twice is one shard
        owner = np.full(len(labels), -1)
        for k in range(num_classes):
            clients = np.flatnonzero(owns[:, k])
            members = np.flatnonzero(labels == k)
            owner_of_shard = np.full(shards, -1)
            owner_of_shard[rng.permutation(shards)[: len(clients)]] = clients
            owner[members] = shard_owner(len(members), owner_of_shard)
        by_class = np.argsort(labels, kind="stable")
        dealt = by_class[owner[by_class] >= 0]
        return group(dealt, owner[dealt], num_clients, rng)

    def _shards_per_class(self, labels: np.ndarray, num_classes: int, num_clients: int) -> int:
        _check_classes(self.classes_per_client, num_classes)
        where = (
            f"partition=shards with classes_per_client={self.classes_per_client},"
            f" num_clients={num_clients}"
        )
        shards, rest = divmod(self.classes_per_client * num_clients, num_classes)
        if rest:
            near = max(1, round(num_clients / num_classes)) * num_classes
            raise ConfigError(
                f"{where}: classes_per_client x num_clients must be a multiple of the {num_classes}"
                f" classes; use num_clients={near}"
            )
        smallest = int(np.bincount(labels, minlength=num_classes).min())
        if smallest < shards:
            raise ConfigError(
                f"{where}: the smallest class has {smallest} examples for {shards} shards; use"
                " fewer clients"
            )
        return shards


class Labels(Scheme):
    """`#C = k`: client i holds class i mod C and k - 1 others; owners of a class share it evenly.

    A class that nobody drew (possible where N < C) is not used, as published; the log says so.
    Li et al., ICDE 2022 (noniid-#label k, k = 1, 2, 3).
    """

    name = "labels"

    @checked("partition")
    def __init__(
        self,
        classes_per_client: Annotated[int, COUNT, "k, at most the number of classes"] = 2,
    ) -> None:
        self.classes_per_client = classes_per_client

    def deal(self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng) -> Partition:
        _check_classes(self.classes_per_client, num_classes)
        # a uniform subset of the classes, but class i mod C always comes first
        rank = rng.random((num_clients, num_classes))
        clients = np.arange(num_clients)
        rank[clients, clients % num_classes] = -1.0
        owns = _owns(np.argsort(rank, axis=1)[:, : self.classes_per_client], num_classes)
        unused = np.flatnonzero(~owns.any(0))
        if len(unused):
            message = "partition=labels: no client drew class(es) %s; their examples are not used"
            log.warning(message, unused.tolist())
        examples = []
        owners = []
        for k in np.flatnonzero(owns.any(0)):
            members = np.flatnonzero(labels == k)
            examples.append(rng.permutation(members))
            owners.append(shard_owner(len(members), np.flatnonzero(owns[:, k])))
        return group(np.concatenate(examples), np.concatenate(owners), num_clients, rng)


def _check_classes(classes_per_client: int, num_classes: int) -> None:
    if classes_per_client > num_classes:
        raise ConfigError(
            f"partition.classes_per_client={classes_per_client}: the dataset has {num_classes}"
            f" classes; use {num_classes} or fewer"
        )


def _owns(drawn: np.ndarray, num_classes: int) -> np.ndarray:
    """Return which classes each client has among those it drew, [N, k] -> bool [N, C]."""
    owns = np.zeros((len(drawn), num_classes), dtype=bool)
    np.put_along_axis(owns, drawn, True, axis=1)
    return owns


class Fixed(Scheme):
    """Read the partition from a file: the published `.npy`, our `.npz` or `.json`, or another
    tool's.

    Examples that the file does not mention are not used (the published files, made for 50,000
    images, leave 10,000 of Fashion-MNIST's 60,000 out).
    """

    name = "fixed"

    @checked("partition")
    def __init__(
        self,
        path: Annotated[
            str, "the file: .npy, .npz, .json or .pkl; it is checked, and nothing in it is run"
        ],
    ) -> None:
        if not os.path.isfile(os.path.expanduser(path)):
            raise ConfigError(f"partition.path={path}: no such file")
        self.path = path

    def deal(self, labels: np.ndarray, num_classes: int, num_clients: int, rng: Rng) -> Partition:
        return Partition(*read_partition(self.path, len(labels), num_clients))

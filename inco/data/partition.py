"""Which client holds which training example: pure functions of labels, parameters and a stream.

M is the number of training examples, N of clients, C of classes. Every scheme returns a
`Partition`: one index array and N + 1 offsets, so a million clients cost two arrays. No example is
given to two clients; no client is left without any.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np

from inco.data.dealing import Partition, deal_counts, even_offsets, group, shard_owner
from inco.data.partition_file import read_partition
from inco.errors import ConfigError
from inco.settings import COUNT, MaxTries, MinSize, above, checked

log = logging.getLogger(__name__)


class Scheme(ABC):
    """A way to deal M examples to N clients: `deal`. What holds for all schemes is checked here."""

    name = ""

    def __call__(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
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
    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        """Return the partition; `num_clients` is between 1 and M."""


class IID(Scheme):
    """Shuffle everything and cut into N parts whose sizes differ by at most one."""

    name = "iid"

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        return Partition(rng.permutation(len(labels)), even_offsets(len(labels), num_clients))


class Dirichlet(Scheme):
    """Label skew: each class is dealt out by its own draw q ~ Dir(alpha 1_N), softly capped.

    Classes are visited in label order. A client that already holds M / N or more gets no further
    class; the cap is looked at before adding, so final sizes may exceed it. The whole draw is
    repeated until the smallest client has `min_size`. Li et al., "Federated Learning on Non-IID
    Data Silos", ICDE 2022 (noniid-labeldir); Chan et al., ICLR 2024.
    """

    name = "dirichlet"

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

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        class_sizes = np.bincount(labels, minlength=num_classes)
        if num_clients * self.min_size <= len(labels):
            for _ in range(self.max_tries):
                counts = self._draw(class_sizes, num_clients, rng)
                if counts is not None and counts.sum(0).min() >= self.min_size:
                    return deal_counts(labels, counts, rng)
        raise ConfigError(
            f"partition=dirichlet with alpha={self.alpha:g}, num_clients={num_clients},"
            f" min_size={self.min_size}: no draw in {self.max_tries} gave every client"
            f" {self.min_size} of the {len(labels)} examples ({len(labels) / num_clients:.1f} a"
            " client on average); use fewer clients, a smaller partition.min_size or a larger"
            " partition.alpha"
        )

    def _draw(
        self, class_sizes: np.ndarray, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray | None:
        """Return one draw of counts [C, N], or None where every share was cut to nothing."""
        held = np.zeros(num_clients, dtype=np.int64)
        counts = np.zeros((len(class_sizes), num_clients), dtype=np.int64)
        cap = class_sizes.sum() / num_clients
        for k, size in enumerate(class_sizes):
            share = rng.dirichlet(np.full(num_clients, self.alpha)) * (held < cap)
            total = share.sum()
            if not total > 0:  # a tiny alpha may put the whole class on full clients
                return None
            cuts = np.floor(np.cumsum(share / total)[:-1] * size).astype(np.int64)
            counts[k] = np.diff(np.concatenate([[0], np.minimum(cuts, size), [size]]))
            held += counts[k]
        return counts


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

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        shards = self._shards_per_class(labels, num_classes, num_clients)
        drawn = rng.permutation(np.tile(np.arange(num_classes), shards)).reshape(num_clients, -1)
        # a label drawn twice collapses to one shard
        wants = np.zeros((num_clients, num_classes), dtype=bool)
        np.put_along_axis(wants, drawn, True, axis=1)
        examples = []
        owners = []
        for k in range(num_classes):
            clients = np.flatnonzero(wants[:, k])
            members = np.flatnonzero(labels == k)
            owner_of_shard = np.full(shards, -1)
            owner_of_shard[rng.permutation(shards)[: len(clients)]] = clients
            owner = shard_owner(len(members), owner_of_shard)
            examples.append(members[owner >= 0])
            owners.append(owner[owner >= 0])
        return group(np.concatenate(examples), np.concatenate(owners), num_clients, rng)

    def _shards_per_class(self, labels: np.ndarray, num_classes: int, num_clients: int) -> int:
        where = (
            f"partition=shards with classes_per_client={self.classes_per_client},"
            f" num_clients={num_clients}"
        )
        if self.classes_per_client > num_classes:
            raise ConfigError(
                f"{where}: the dataset has {num_classes} classes; use"
                f" classes_per_client={num_classes} or fewer"
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


class Quantity(Scheme):
    """Quantity skew: sizes follow one draw q ~ Dir(beta 1_N), labels stay IID.

    Li et al., ICDE 2022 (iid-diff-quantity, beta 0.5).
    """

    name = "quantity"

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

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        total = len(labels)
        if num_clients * self.min_size <= total:
            for _ in range(self.max_tries):
                share = rng.dirichlet(np.full(num_clients, self.beta))
                if share.min() * total >= self.min_size:
                    cuts = np.floor(np.cumsum(share)[:-1] * total).astype(np.int64)
                    offsets = np.concatenate([[0], np.minimum(cuts, total), [total]])
                    return Partition(rng.permutation(total), offsets)
        raise ConfigError(
            f"partition=quantity with beta={self.beta:g}, num_clients={num_clients},"
            f" min_size={self.min_size}: no draw in {self.max_tries} gave every client"
            f" {self.min_size} of the {total} examples; use fewer clients, a smaller"
            " partition.min_size or a larger partition.beta"
        )


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

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        owns = self._draw_owners(num_classes, num_clients, rng)
        unused = np.flatnonzero(~owns.any(0))
        if len(unused):
            said = "partition=labels: no client drew class(es) %s; their examples are not used"
            log.warning(said, unused.tolist())
        examples = []
        owners = []
        for k in range(num_classes):
            clients = np.flatnonzero(owns[:, k])
            if len(clients):
                members = np.flatnonzero(labels == k)
                examples.append(rng.permutation(members))
                owners.append(shard_owner(len(members), clients))
        return group(np.concatenate(examples), np.concatenate(owners), num_clients, rng)

    def _draw_owners(
        self, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return who owns what, bool [N, C]: class i mod C, and a uniform subset of the others."""
        if self.classes_per_client > num_classes:
            raise ConfigError(
                f"partition.classes_per_client={self.classes_per_client}: the dataset has"
                f" {num_classes} classes; use {num_classes} or fewer"
            )
        rank = rng.random((num_clients, num_classes))
        clients = np.arange(num_clients)
        rank[clients, clients % num_classes] = -1.0
        chosen = np.argsort(rank, axis=1)[:, : self.classes_per_client]
        owns = np.zeros((num_clients, num_classes), dtype=bool)
        np.put_along_axis(owns, chosen, True, axis=1)
        return owns


class Fixed(Scheme):
    """Read the partition from a file: the published `.npy`, our `.npz` or `.json`; see
    `partition_file` for what is checked.

    Examples that the file does not mention are not used (the published files, made for 50,000
    images, leave 10,000 of Fashion-MNIST's 60,000 out).
    """

    name = "fixed"

    @checked("partition")
    def __init__(
        self,
        path: Annotated[
            str, "the file: .npy, .npz or .json; it is checked, and nothing in it is run"
        ],
    ) -> None:
        if not os.path.isfile(os.path.expanduser(path)):
            raise ConfigError(f"partition.path={path}: no such file")
        self.path = path

    def deal(
        self, labels: np.ndarray, num_classes: int, num_clients: int, rng: np.random.Generator
    ) -> Partition:
        return Partition(*read_partition(self.path, len(labels), num_clients))

"""A dataset: two splits of uint8 images in memory, known by a digest; `Source`: its origin."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inco.data.readers import Arrays
from inco.data.recipes import Recipe, make_recipe
from inco.errors import ConfigError, DataError
from inco.seeding import numpy_rng
from inco.settings import DataRoot, Limit, TestDropLast, TestLimit, Transforms, checked

QUICKSTART = "python run.py experiment=quickstart"


@dataclass(frozen=True, eq=False)
class Images:
    """One split in memory: `images` uint8 [M, C, H, W], `labels` int64 [M]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded and checked dataset; `digest`, of `digest_of`, is the identity of its content."""

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    digest: str


class Source(ABC):
    """A dataset before it is loaded. A subclass says where its files are and reads them.

    `shape` is the native (C, H, W). `counts` (train, test), `balanced` (every class equally often),
    `blank_images` (an image of zeros alone is allowed) and `known_digest` are what the content is
    checked against.
    """

    name: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    classes: tuple[str, ...] = ()
    counts: tuple[int, int] | None = None
    balanced: bool = False
    blank_images: bool = False
    known_digest: str | None = None

    @checked("dataset")
    def __init__(
        self,
        root: DataRoot = None,
        transforms: Transforms = "published",
        test_drop_last: TestDropLast = None,
        limit: Limit = None,
        test_limit: TestLimit = None,
    ) -> None:
        self.root = root
        self.transforms = transforms
        self.test_drop_last = test_drop_last
        self.limit = limit
        self.test_limit = test_limit

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.classes)

    def check(self) -> None:
        """Raise a DataError of one screen if the files are not there. Quick: decodes nothing."""
        problems = [
            f"dataset.{name}={limit}: every class needs an example; use {self.num_classes} or more"
            for name, limit in (("limit", self.limit), ("test_limit", self.test_limit))
            if limit is not None and limit < self.num_classes
        ]
        if problems:
            raise ConfigError(problems)

    def load(self) -> Dataset:
        """Read the files; DataError for anything missing, damaged or different."""
        self.check()
        train, test = [_as_tensors(*split) for split in self.read()]
        self._verify(train, test)
        digest = digest_of(train, test)
        if self.known_digest is not None and digest != self.known_digest:
            raise DataError(
                f"dataset={self.name}{self.where()}: the content has sha256 {digest}, and the"
                f" original {self.known_digest}: a file is damaged or another dataset under this"
                " name; fetch it again or set dataset.root to a good copy"
            )
        kept, scored = _limited(train, self.limit), _limited(test, self.test_limit)
        if kept is not train or scored is not test:
            digest = digest_of(kept, scored)
        return Dataset(self.name, kept, self._scored(scored), self.classes, digest)

    @abstractmethod
    def read(self) -> tuple[Arrays, Arrays]:
        """Return (training, test): images uint8 [M, C, H, W] and integer labels [M] of each."""

    def where(self) -> str:
        """Return ` in FOLDER` for messages about the content; nothing where there is no folder."""
        return ""

    def recipe(self, family: str, image_size: int | None) -> Recipe:
        """Return the transforms for a model `family` (resnet, vit); `image_size` None: as usual."""
        return make_recipe(self.name, self.shape, family, image_size, self.transforms)

    def _scored(self, test: Images) -> Images:
        """Leave out a last batch of `test_drop_last` images that is not full."""
        if self.test_drop_last is None:
            return test
        kept = len(test.labels) // self.test_drop_last * self.test_drop_last
        if not kept:
            raise DataError(
                f"dataset.test_drop_last={self.test_drop_last}: there are {len(test.labels):,} test"
                " images, and none would be scored; use a smaller batch, or null"
            )
        return Images(test.images[:kept], test.labels[:kept])

    def _verify(self, train: Images, test: Images) -> None:
        """Raise DataError with all that is wrong with the content of the two splits."""
        counts = self.counts or (None, None)
        problems = [f"train: {problem}" for problem in self._problems(train, counts[0])]
        problems += [f"test: {problem}" for problem in self._problems(test, counts[1])]
        if problems:
            raise DataError(
                f"dataset={self.name}{self.where()}: the files do not hold what they should:\n  "
                + "\n  ".join(problems)
            )

    def _problems(self, split: Images, count: int | None) -> list[str]:
        images = split.images
        labels = split.labels
        if tuple(images.shape[1:]) != self.shape or len(images) != len(labels) or not len(images):
            return [
                f"images {tuple(images.shape)} and labels {tuple(labels.shape)}; expected [M,"
                f" {self.shape}] and [M]"
            ]
        if labels.min() < 0 or labels.max() >= self.num_classes:
            return [
                f"labels run from {labels.min()} to {labels.max()}; expected 0 to"
                f" {self.num_classes - 1}"
            ]
        problems = []
        if count is not None and len(images) != count:
            problems.append(f"{len(images):,} images; expected {count:,}")
        per_class = torch.bincount(labels, minlength=self.num_classes).tolist()
        if self.balanced and len(set(per_class)) > 1:
            problems.append(f"images per class {per_class}; expected the same number of each")
        absent = [label for label, n in zip(self.classes, per_class, strict=True) if n == 0]
        if absent:
            problems.append(f"no image of class(es) {absent[:10]}")
        blank = [] if self.blank_images else _blank(images)
        if blank:
            problems.append(
                f"{len(blank):,} images are zero throughout (the first is number {blank[0]}): a"
                " damaged file"
            )
        return problems


def _as_tensors(images: np.ndarray, labels: np.ndarray) -> Images:
    """Return the arrays as tensors; images that allow it are not copied."""
    shared = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return Images(shared, torch.from_numpy(np.array(labels, dtype=np.int64)))


def balanced_subset(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Return which of M examples to keep, int64 [at most `limit`] in their order: equally many of
    each class, as far as there are; the same ones every time.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    rng = numpy_rng(0, "dataset/limit")
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # the first of each class, then the second; where a turn is cut short, classes drawn at random
    first = rng.permutation(len(counts))[labels[by_class]]
    return np.sort(by_class[np.lexsort((first, turn))[:limit]])


def _limited(split: Images, limit: int | None) -> Images:
    if limit is None or limit >= len(split.labels):
        return split
    kept = torch.from_numpy(balanced_subset(split.labels.numpy(), limit))
    return Images(split.images[kept], split.labels[kept])


def digest_of(train: Images, test: Images) -> str:
    """Return the sha256 over images and labels of both splits, each led by its type and shape."""
    digest = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        array = tensor.numpy()
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.name}{list(array.shape)}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _blank(images: Tensor) -> list[int]:
    """Return the numbers of the images whose every byte is zero: the mark of a file with a hole."""
    brightest = [part.flatten(1).amax(1) for part in images.split(8192)]  # bounded memory
    return (torch.cat(brightest) == 0).nonzero().flatten().tolist()


@dataclass(frozen=True)
class Expected:
    """One file of a dataset: its path below the root, and what its owner publishes about it."""

    path: str
    about: str


def missing(
    name: str,
    searched: Sequence[Path | str],
    files: Sequence[Expected],
    ways: Sequence[str],
    why: str = "",
) -> DataError:
    """Return the one-screen error for data that is not there: what, where, and how to get it."""
    by_hand = "copy the files by hand, in the layout above, and say where: dataset.root=PATH"
    lines = [
        f"dataset={name}: the data is not there{f' ({why})' if why else ''}.",
        "Looked for",
        *(f"  {file.path:<44} {file.about}" for file in files),
        "in",
        *(f"  {place}" for place in searched),
        "Get it in one of these ways:",
        *(f"  {i}. {way}" for i, way in enumerate([*ways, by_hand], 1)),
        f"Or try now without data: {QUICKSTART}",
    ]
    return DataError("\n".join(lines))

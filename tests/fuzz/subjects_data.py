"""Datasets as subjects of the file fuzzer; see `subjects`."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from typing import Any

import numpy as np
from PIL import Image

from fuzz.subject import Subject
from inco.data.dataset import Dataset, Source, digest_of
from inco.data.folders import ImageFolder, TreeCache
from inco.data.sources import CIFAR10, FashionMNIST


def _images(count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.integers(1, 255, (count, *shape), dtype=np.uint8), (np.arange(count) % 10).astype(
        np.uint8
    )


class Vouched(Subject):
    """A dataset whose content is known by a digest: it is that, or a refusal."""

    source: type[Source]

    def read(self) -> Dataset:
        made = self.source(root=str(self.folder))
        return made.load()

    def judge(self, got: Dataset) -> str | None:
        return (
            None
            if digest_of(got.train, got.test) == self.digest
            else "other images under the known digest"
        )

    def know(self) -> None:
        """Take what is there as the original."""
        self.digest = self.read().digest
        self.source = type("Known", (self.source,), {"known_digest": self.digest})


class Idx(Vouched):
    """Fashion-MNIST's files, small: two plain, two compressed."""

    def make(self) -> None:
        names = FashionMNIST.files
        for i, count in ((0, 20), (2, 10)):
            images, labels = _images(count, (28, 28))
            for name, array in ((names[i], images), (names[i + 1], labels)):
                data = (
                    bytes([0, 0, 8, array.ndim])
                    + struct.pack(f">{array.ndim}I", *array.shape)
                    + array.tobytes()
                )
                zipped = i == 2
                (self.folder / f"{name}{'.gz' if zipped else ''}").write_bytes(
                    gzip.compress(data) if zipped else data
                )
        self.source = type(
            "Small",
            (FashionMNIST,),
            {"counts": (20, 10), "known_digest": None, "debian": self.folder / "none"},
        )
        self.know()


class ImageArchive(Vouched):
    """`cifar10.npz`: nothing vouches for its content, but its shape, its counts and its balance
    do.
    """

    def make(self) -> None:
        (x, y), (tx, ty) = _images(20, (3, 32, 32)), _images(10, (3, 32, 32))
        np.savez_compressed(self.folder / "cifar10.npz", x_train=x, y_train=y, x_test=tx, y_test=ty)
        self.source = type("Small", (CIFAR10,), {"counts": (20, 10)})

    def judge(self, got: Dataset) -> str | None:
        shapes = [tuple(part.images.shape) for part in (got.train, got.test)]
        return None if shapes == [(20, 3, 32, 32), (10, 3, 32, 32)] else f"images of {shapes}"


class Batches(Vouched):
    """CIFAR-10's own files, which are pickles: those whose MD5 is not the published one are never
    opened, and here none is.
    """

    def make(self) -> None:
        home = self.folder / "cifar-10-batches-py"
        home.mkdir()
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
            (home / name).write_bytes(pickle.dumps({"data": [1, 2, 3]}))
        self.source = CIFAR10

    def judge(self, got: Dataset) -> str | None:
        return "a file of unknown MD5 was opened"


class Pictures(Subject):
    """A folder of images: each is read as pixels of the right size, or named."""

    def make(self) -> None:
        for k, (label, suffix) in enumerate(
            (
                ("cat", "png"),
                ("cat", "jpg"),
                ("dog", "gif"),
                ("dog", "bmp"),
                ("cat", "webp"),
                ("dog", "tiff"),
            )
        ):
            (self.folder / label).mkdir(exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 255, (9, 7, 3), dtype=np.uint8)
            raw = io.BytesIO()
            Image.fromarray(pixels).save(raw, suffix.replace("jpg", "jpeg"))
            (self.folder / label / f"{k}.{suffix}").write_bytes(raw.getvalue())

    def read(self) -> Dataset:
        return ImageFolder(str(self.folder), size=8).load()

    def judge(self, got: Dataset) -> str | None:
        return (
            None
            if got.train.images.shape[1:] == (3, 8, 8)
            and len(got.train.labels) + len(got.test.labels) == 6
            else "other images"
        )


class Cache(Subject):
    """The cache that a folder of images is converted into once, with the record that vouches for
    it.
    """

    def make(self) -> None:
        tree, self.classes = self.folder.with_name("tree"), ("a", "b")
        for k in range(4):
            (tree / self.classes[k % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(
                tree / self.classes[k % 2] / f"{k}.png"
            )
        self.cache = TreeCache(tree, self.folder, "train", self.classes, 8)
        self.cache.build(None)

    def read(self) -> Any:
        if not self.cache.is_current():
            self.cache.build(None)
        return self.cache.open()

    def judge(self, got: Any) -> str | None:
        images, labels = got
        same = (
            images.shape == (4, 3, 8, 8)
            and labels.tolist() == [0, 0, 1, 1]
            and images[:, 0, 0, 0].tolist() == [0, 80, 40, 120]
        )
        return None if same else f"other images or labels: {images.shape} {labels}"

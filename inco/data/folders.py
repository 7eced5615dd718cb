"""Datasets in folders of images, one per class: CINIC-10, converted once, and anybody's own."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from inco.data.dataset import Expected, Source, balanced_subset, missing
from inco.data.fetch import OnDisk, data_root
from inco.data.image_tree import Trees, class_folders, counted, find_splits
from inco.data.images import read_images
from inco.data.readers import Arrays, write_atomic
from inco.data.sources import CIFAR_CLASSES
from inco.errors import DataError, StorageError
from inco.seeding import numpy_rng
from inco.settings import COUNT, Limit, TestLimit, Transforms, between, checked, one_of

log = logging.getLogger(__name__)


class TreeCache:
    """One split of a class-folder tree as `NAME-images.npy`, vouched for by `NAME.json`.

    The `.json` is written last and holds the counts, the sha256 of the images and the folders'
    times of change, so a half-written, damaged or outdated cache is seen. Opened copy-on-write:
    processes share the pages.
    """

    def __init__(
        self, tree: Path, place: Path, name: str, classes: Sequence[str], size: int
    ) -> None:
        self.tree = tree
        self.folders = [tree / label for label in classes]
        self.size = size
        self.images = place / f"{name}-images.npy"
        self.record = place / f"{name}.json"

    def is_current(self) -> bool:
        """Say whether the cache is there, and the tree is gone or has not changed since."""
        record = self._record()
        if record is None or not self.images.is_file():
            return False
        return not self.has_tree() or record["changed"] == self._changed()

    def has_tree(self) -> bool:
        """Say whether every class has its folder."""
        return all(folder.is_dir() for folder in self.folders)

    def build(self, expected_per_class: int | None) -> None:
        """Convert the tree; DataError for a bad image, a wrong size or a wrong number of files."""
        classes = [folder.name for folder in self.folders]
        by_class = Trees().files(self.tree, classes)
        counts = [len(of_class) for of_class in by_class]
        found = zip(classes, counts, strict=True)
        wrong = {k: n for k, n in found if n == 0 or (expected_per_class or n) != n}
        if wrong:
            raise DataError(
                f"{self.tree}: images per class {wrong}; expected {expected_per_class or 'some'} of"
                " each; extract it again"
            )
        log.info("converting %d images of %s into %s, once", sum(counts), self.tree, self.images)
        files = [file for of_class in by_class for file in of_class]
        write_atomic(self.images, lambda file: self._convert(Path(file.name), files))
        record = {"counts": counts, "sha256": _sha256(self.images), "changed": self._changed()}
        write_atomic(self.record, lambda file: file.write(json.dumps(record).encode()))

    def open(self) -> Arrays:
        """Return (images uint8 [M, 3, S, S], mapped; labels int64 [M]); DataError for damage."""
        again = f"delete it, and it will be made again from {self.tree}"
        record = self._record()
        if record is None or _sha256(self.images) != record["sha256"]:
            raise DataError(f"{self.images}: the cache is damaged; {again}")
        images = np.load(self.images, mmap_mode="c")
        counts = record["counts"]
        are_counts = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
        if not are_counts or len(counts) != len(self.folders) or sum(counts) != len(images):
            raise DataError(f"{self.record}: it counts other images than there are; {again}")
        return images, np.repeat(np.arange(len(counts)), counts)

    def _convert(self, path: Path, files: list[Path]) -> None:
        shape = (len(files), 3, self.size, self.size)
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        read_images(files, self.size, fixed=True, out=out)
        out.flush()

    def _record(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self.record.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        known = isinstance(record, dict) and {"counts", "sha256", "changed"} <= set(record)
        return record if known else None

    def _changed(self) -> list[int]:
        return [folder.stat().st_mtime_ns for folder in self.folders]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CINIC10(OnDisk):
    """CINIC-10: CIFAR-10's classes, 90,000 + 90,000 images of 3x32x32 (Darlow et al., 2018).

    The part `valid` is not used. Order: classes alphabetically, files sorted, as torchvision's
    ImageFolder. The PNG tree is slow to open, so it is converted once to `.npy` files of 276 MB per
    split in `inco-cache` beside it, or below `./cache` where that cannot be written.
    """

    name = "cinic10"
    published_prefix = "cinic10_"  # of the published partition files
    shape = (3, 32, 32)
    classes = CIFAR_CLASSES
    counts = (90_000, 90_000)
    balanced = True
    blank_images = True  # every PNG was decoded, the cache has a checksum: it is a black photograph
    subfolders = ("CINIC-10", "cinic10", "")

    def read(self) -> tuple[Arrays, Arrays]:
        place = self._place()
        if place is None:
            raise self.missing_error()
        train, test = self.counts or (0, 0)
        return self._split(place, "train", train), self._split(place, "test", test)

    def _split(self, place: Path, split: str, count: int) -> Arrays:
        caches = self._caches(place, split)
        current = next((cache for cache in caches if cache.is_current()), None)
        return (current or self._build(caches, count // len(self.classes))).open()

    def _build(self, caches: list[TreeCache], per_class: int) -> TreeCache:
        """Make the cache in the first place that can be written."""
        beside, elsewhere = caches
        try:
            beside.build(per_class)
            return beside
        except StorageError as error:
            log.info("%s; using %s", error, elsewhere.images.parent)
            elsewhere.build(per_class)
            return elsewhere

    def _caches(self, place: Path, split: str) -> list[TreeCache]:
        tag = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
        folders = [place / "inco-cache", Path("cache").absolute() / f"cinic10-{tag}"]
        tree = place / split
        return [TreeCache(tree, folder, split, self.classes, self.shape[1]) for folder in folders]

    def _holds(self, place: Path) -> bool:
        return all(
            any(cache.has_tree() or cache.is_current() for cache in self._caches(place, split))
            for split in ("train", "test")
        )

    def _expected(self) -> list[Expected]:
        about = "90,000 PNG images of 32x32, 9,000 in each of"
        return [
            Expected("train/CLASS/*.png", about),
            Expected("test/CLASS/*.png", about),
            Expected("", " ".join(self.classes)),
        ]

    def _ways(self) -> list[str]:
        place = self._places()[0]
        return [
            "from https://datashare.ed.ac.uk/handle/10283/3192 take CINIC-10.tar.gz (656 MB),"
            f" then mkdir -p {place} && tar xzf CINIC-10.tar.gz -C {place}",
            "python -m inco.data fetch cinic10: says the same, and checks and converts what is"
            " there",
        ]


class ImageFolder(Source):
    """Any folder of class folders with images.

    With two splits inside it (`train` and `test`, or names as usual, in any case) these are read,
    else each class is split at random (the same way every time) with `test_share` of it, at least
    one image, for testing. Every file is read once; what is passed over is counted in the log.

    Images become `channels` x `size` x `size` on reading (bilinear, the aspect ratio is not kept).
    Their EXIF orientation is not applied.
    """

    name = "images"
    blank_images = True

    @checked("dataset")
    def __init__(
        self,
        root: Annotated[str, "the folder; a relative path is taken from the working directory"],
        size: Annotated[int, COUNT, "pixels: every image becomes size x size on reading"] = 64,
        test_share: Annotated[
            float,
            between(0, 1, open_low=True, open_high=True),
            "share of each class kept for testing; not used where train/ and test/ exist",
        ] = 0.2,
        transforms: Transforms = "published",
        channels: Annotated[int, one_of(1, 3), "3: images are read as RGB; 1: as grey"] = 3,
        limit: Limit = None,
        test_limit: TestLimit = None,
    ) -> None:
        super().__init__(root, transforms, limit=limit, test_limit=test_limit)
        self.size = size
        self.test_share = test_share
        self.shape = (channels, size, size)
        self.place = data_root(root)
        self.layout = find_splits(self.place)
        self.classes = tuple(class_folders(self.layout.train))

    def check(self) -> None:
        if len(self.classes) < 2:
            pictures = "CLASS/*.png (or jpg, bmp, webp, ...)"
            files = [
                Expected(pictures, "a folder for each class, at least two"),
                Expected("train/CLASS/*, test/CLASS/*", "the same, already split"),
            ]
            ways = ["put the class folders there"]
            if self.classes:
                inside = self.place / self.classes[0]
                ways.insert(0, f"if the classes are in {inside.name}: dataset.root={inside}")
            found = f"{len(self.classes)} class folders"
            raise missing(self.name, [self.place], files, ways, found)
        train, test = self.layout.train, self.layout.test
        tested = tuple(class_folders(test)) if test else self.classes
        if tested != self.classes:
            different = sorted(set(tested) ^ set(self.classes))
            raise DataError(
                f"dataset=images: {self.place}: {train.name}/ and {test and test.name}/ must have"
                f" the same classes; they differ in {different}"
            )
        super().check()

    def read(self) -> tuple[Arrays, Arrays]:
        trees = Trees()
        train = self._files(trees, self.layout.train)
        if self.layout.test:
            trees.beside(self.place)
            test = self._files(trees, self.layout.test)
        else:
            train, test = self._divided(train)
        told: Counter[str] = Counter()
        read = self._read(train, self.limit, told), self._read(test, self.test_limit, told)
        self._tell(trees.passed_over, told)
        return read

    def _divided(self, files: list[list[Path]]) -> tuple[list[list[Path]], list[list[Path]]]:
        """Return the training and the test images of classes that are not split yet."""
        # not the run's seed: the test set of a folder is always the same
        rng = numpy_rng(0, "images/test")
        train = []
        test = []
        for label, of_class in zip(self.classes, files, strict=True):
            if len(of_class) < 2:
                raise DataError(
                    f"{self.place / label}: one image cannot be both for training and for testing;"
                    " add another"
                )
            count = min(max(1, round(len(of_class) * self.test_share)), len(of_class) - 1)
            chosen = set(rng.permutation(len(of_class))[:count].tolist())
            train.append([file for i, file in enumerate(of_class) if i not in chosen])
            test.append([file for i, file in enumerate(of_class) if i in chosen])
        return train, test

    def _files(self, trees: Trees, split: Path) -> list[list[Path]]:
        files = trees.files(split, self.classes)
        empty = [label for label, of_class in zip(self.classes, files, strict=True) if not of_class]
        if empty:
            raise DataError(
                f"dataset=images: {split}: no image in class folder(s) {empty[:10]};"
                " fill or remove them"
            )
        return files

    def _read(self, files: list[list[Path]], limit: int | None, told: Counter[str]) -> Arrays:
        labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])
        paths = [file for of_class in files for file in of_class]
        kept = balanced_subset(labels, limit)  # before they are decoded
        chosen = [paths[i] for i in kept]
        channels, size, _ = self.shape
        return read_images(chosen, size, channels=channels, told=told), labels[kept]

    def _tell(self, passed_over: Counter[str], told: Counter[str]) -> None:
        """Say in a line each what has not been read, and what has not been read as it is."""
        if self.layout.unused:
            names = ", ".join(path.name for path in self.layout.unused)
            log.warning("dataset=images: %s in %s is not used", names, self.place)
        if passed_over:
            log.warning("dataset=images: passed over in %s: %s", self.place, counted(passed_over))
        if counted(told):
            log.warning("dataset=images: images in %s: %s", self.place, counted(told))

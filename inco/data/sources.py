"""The datasets: one class each. `check` looks for the files, `load` reads and checks them.

A relative root is taken from the current working directory; the default is `data`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np

from inco.data.dataset import Expected, Source
from inco.data.fetch import Downloadable, check_md5
from inco.data.readers import Arrays, read_idx, read_npz
from inco.errors import ConfigError
from inco.settings import COUNT, Limit, TestLimit, Transforms, at_least, checked, many

CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Digits(Source):
    """1,797 handwritten digits of 8x8 pixels, values 0..16, that come with the package.

    The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998; UCI
    Machine Learning Repository, CC BY 4.0), in the order of scikit-learn's `load_digits`. Test: 360
    examples, 20 % of each class (largest remainder), evenly spaced in that order; train: the other
    1,437. Writers are in both.
    """

    name = "digits"
    shape = (1, 8, 8)
    classes = tuple("0123456789")
    counts = (1437, 360)
    known_digest = "9e4b015445a2d1b82c33d7c3baed31a850f89852facccf04f029298850da9ce3"

    @checked("dataset")
    def __init__(
        self,
        transforms: Transforms = "published",
        limit: Limit = None,
        test_limit: TestLimit = None,
    ) -> None:
        super().__init__(None, transforms, limit=limit, test_limit=test_limit)

    def read(self) -> tuple[Arrays, Arrays]:
        return read_npz(Path(__file__).with_name("assets") / "digits.npz")


class Synthetic(Source):
    """Images made from a seed: a smooth random pattern for each class, plus noise for each image.

    Labels are balanced and shuffled; `noise` is its standard deviation in grey levels.
    """

    name = "synthetic"
    noise = 48.0
    blank_images = True  # a tiny dark image may well be zero throughout

    @checked("dataset")
    def __init__(
        self,
        shape: Annotated[
            list[int], many(COUNT, 3), "channels, side and side again in pixels: images are square"
        ] = [3, 32, 32],  # noqa: B006
        num_classes: Annotated[int, at_least(2), "number of classes"] = 10,
        num_train: Annotated[int, COUNT, "training images, at least one a class"] = 2000,
        num_test: Annotated[int, COUNT, "test images, at least one a class"] = 500,
        seed: Annotated[
            int,
            at_least(0),
            "names the data, apart from the run's seed: runs with other seeds see the same images",
        ] = 0,
        transforms: Transforms = "published",
        limit: Limit = None,
        test_limit: TestLimit = None,
    ) -> None:
        super().__init__(None, transforms, limit=limit, test_limit=test_limit)
        problems = [
            f"dataset.{name}={value}: every class needs an example; use {num_classes} or more"
            for name, value in (("num_train", num_train), ("num_test", num_test))
            if value < num_classes
        ]
        if shape[1] != shape[2]:
            square = f"dataset.shape={list(shape)}: must be [channels, side, side]; use [3,32,32]"
            problems.insert(0, square)
        if problems:
            raise ConfigError(problems)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.classes = tuple(str(k) for k in range(num_classes))
        self.counts = (num_train, num_test)
        self.seed = seed

    def read(self) -> tuple[Arrays, Arrays]:
        patterns = self._patterns(np.random.default_rng([self.seed, 0]))
        train, test = self.counts or (0, 0)
        return self._split(patterns, train, 1), self._split(patterns, test, 2)

    def _patterns(self, rng: np.random.Generator) -> np.ndarray:
        """Return float32 [C, channels, S, S]: coarse random levels for each class, interpolated."""
        channels, side, _ = self.shape
        coarse = min(4, side)
        levels = rng.uniform(32, 224, (self.num_classes, channels, coarse, coarse))
        place = np.clip((np.arange(side) + 0.5) * coarse / side - 0.5, 0, coarse - 1)
        # [S, coarse]
        weights = np.clip(1 - np.abs(place[:, None] - np.arange(coarse)), 0, 1).astype(np.float32)
        return weights @ levels.astype(np.float32) @ weights.T

    def _split(self, patterns: np.ndarray, count: int, stream: int) -> Arrays:
        rng = np.random.default_rng([self.seed, stream])
        labels = rng.permutation(np.arange(count) % self.num_classes)
        images = np.empty((count, *self.shape), np.uint8)
        for start in range(0, count, 2048):  # bounded memory, whatever the size
            part = patterns[labels[start : start + 2048]]
            noisy = part + self.noise * rng.standard_normal(part.shape, dtype=np.float32)
            images[start : start + 2048] = np.clip(np.rint(noisy), 0, 255)
        return images, labels


class FashionMNIST(Downloadable):
    """Fashion-MNIST: 60,000 + 10,000 images of 1x28x28 of clothing (Xiao, Rasul, Vollgraf, 2017).

    Also looked for where Debian's package dataset-fashion-mnist puts it. The content must be the
    original's, byte for byte.
    """

    name = "fashion_mnist"
    shape = (1, 28, 28)
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    )  # fmt: skip
    counts = (60_000, 10_000)
    balanced = True
    known_digest = "21b303b534174981203c4820641c1482b0d4d234f68cd14ed6e4e3d0e1e17374"
    torchvision_class = "FashionMNIST"
    subfolders = ("FashionMNIST/raw", "fashion-mnist", "")
    debian = Path("/usr/share/datasets/fashion-mnist")
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    sizes = (
        "47,040,016 bytes, 26 MB as .gz",
        "60,008 bytes",
        "7,840,016 bytes, 4.4 MB as .gz",
        "10,008 bytes",
    )

    def read(self) -> tuple[Arrays, Arrays]:
        place = self._fetched()
        images, labels, test_images, test_labels = (
            read_idx(self._file(place, name), 3 if "images" in name else 1) for name in self.files
        )
        return (images[:, None], labels), (test_images[:, None], test_labels)

    def _places(self) -> list[Path]:
        return [*super()._places(), self.debian]

    def _holds(self, place: Path) -> bool:
        return all(self._file(place, name).is_file() for name in self.files)

    def _file(self, place: Path, name: str) -> Path:
        plain = place / name
        return plain if plain.is_file() else place / f"{name}.gz"

    def _expected(self) -> list[Expected]:
        return [Expected(f"{file.path}[.gz]", file.about) for file in super()._expected()]

    def _ways(self) -> list[str]:
        return ["apt-get install dataset-fashion-mnist", super()._ways()[0]]


class SVHN(Downloadable):
    """Street View House Numbers, cropped: 73,257 + 26,032 images of 3x32x32 (Netzer et al., 2011).

    The part `extra` is not used. torchvision reads the .mat files, and maps label 10 to 0.
    """

    name = "svhn"
    shape = (3, 32, 32)
    classes = tuple("0123456789")
    counts = (73_257, 26_032)
    torchvision_class = "SVHN"
    published_prefix = "SVHN_"  # of the published partition files
    downloads = ({"split": "train"}, {"split": "test"})
    subfolders = ("", "SVHN", "svhn")
    files = ("train_32x32.mat", "test_32x32.mat")
    sizes = (
        "182 MB, md5 e26dedcc434d2e4c54c9b2d4a06d8373",
        "64 MB, md5 eb5a983be6a315427106f1b164d9cef3",
    )

    def read(self) -> tuple[Arrays, Arrays]:
        place = self._fetched()
        return self._split(place, "train"), self._split(place, "test")

    def _split(self, place: Path, split: str) -> Arrays:
        torchvision = self._torchvision()
        _, name, md5 = torchvision.split_list[split]
        check_md5(place / name, md5)
        loaded = torchvision(str(place), split=split)
        return np.ascontiguousarray(loaded.data), loaded.labels


class CIFAR10(Downloadable):
    """CIFAR-10: 50,000 + 10,000 images of 3x32x32 (Krizhevsky, 2009), as batches or `cifar10.npz`.

    The original batches are pickles: none is opened before its MD5 is the published one.
    """

    name = "cifar10"
    shape = (3, 32, 32)
    classes = CIFAR_CLASSES
    counts = (50_000, 10_000)
    balanced = True
    torchvision_class = "CIFAR10"
    subfolders = ("", "cifar10", "cifar10.npz")
    files = (
        *(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        "cifar-10-batches-py/test_batch",
        "cifar-10-batches-py/batches.meta",
    )
    sizes = (*["31 MB"] * 6, "158 bytes")

    def read(self) -> tuple[Arrays, Arrays]:
        place = self._fetched()
        if place.suffix == ".npz":
            return read_npz(place)
        torchvision = self._torchvision()
        meta = torchvision.meta
        pickles = [*torchvision.train_list, *torchvision.test_list, (meta["filename"], meta["md5"])]
        for name, md5 in pickles:
            check_md5(place / torchvision.base_folder / name, md5)
        train, test = [torchvision(str(place), train=train) for train in (True, False)]
        return _channels_first(train.data, train.targets), _channels_first(test.data, test.targets)

    def _holds(self, place: Path) -> bool:
        return place.is_file() if place.suffix == ".npz" else super()._holds(place)

    def _expected(self) -> list[Expected]:
        archive = Expected("or cifar10.npz", "x_train [50000,32,32,3], y_train, x_test, y_test")
        return [*super()._expected(), archive]


def _channels_first(images: np.ndarray, labels: list[int]) -> Arrays:
    return images.transpose(0, 3, 1, 2), np.array(labels)

"""The datasets: one class each. `check` looks for the files, `load` reads them and checks what is
in them.

A relative root is taken from the current working directory; the default is `data`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inco.data.dataset import Expected, Source, missing
from inco.data.fetch import Downloadable, check_md5, data_root, downloading, fetch_command
from inco.data.readers import read_idx, read_npz
from inco.errors import ConfigError, DataError

Arrays = tuple[np.ndarray, np.ndarray]
CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


class Digits(Source):
    """1,797 real handwritten digits of 8x8 pixels, values 0..16, inside the package: needs no file
    and no network.

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

    def __init__(self, transforms: str = "published") -> None:
        super().__init__(None, transforms)

    def read(self) -> tuple[Arrays, Arrays]:
        return read_npz(Path(__file__).with_name("assets") / "digits.npz")


class Synthetic(Source):
    """Images made from a seed: each class is a smooth random pattern, each image its pattern plus
    noise. Any size, no file.

    `shape` (C, H, W) with H = W; labels are balanced and shuffled; noise has a standard deviation
    of 48 grey levels.
    """

    name = "synthetic"
    noise = 48.0

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        num_train: int = 2000,
        num_test: int = 500,
        seed: int = 0,
        transforms: str = "published",
    ) -> None:
        super().__init__(None, transforms)
        problems = []
        if len(shape) != 3 or min(shape) < 1 or shape[1] != shape[2]:
            problems.append(
                f"dataset.shape={list(shape)}: must be [channels, side, side], all at least 1; use"
                " [3,32,32]"
            )
        if num_classes < 2:
            problems.append(f"dataset.num_classes={num_classes}: must be at least 2")
        for knob, value in (("num_train", num_train), ("num_test", num_test)):
            if value < num_classes:
                problems.append(
                    f"dataset.{knob}={value}: every class needs an example; use {num_classes} or"
                    " more"
                )
        if problems:
            raise ConfigError(problems)
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.classes = tuple(str(k) for k in range(num_classes))
        self.counts = (num_train, num_test)
        self.blank_images = True  # a tiny dark image may well be zero throughout
        self.seed = seed

    def read(self) -> tuple[Arrays, Arrays]:
        patterns = self._patterns(np.random.default_rng([self.seed, 0]))
        train, test = self.counts or (0, 0)
        return self._split(patterns, train, 1), self._split(patterns, test, 2)

    def _patterns(self, rng: np.random.Generator) -> np.ndarray:
        """Return one pattern for each class, float32 [C, channels, S, S]: coarse random levels,
        interpolated.
        """
        channels, side, _ = self.shape
        coarse = min(4, side)
        levels = rng.uniform(32, 224, (self.num_classes, channels, coarse, coarse)).astype(
            np.float32
        )
        place = np.clip((np.arange(side) + 0.5) * coarse / side - 0.5, 0, coarse - 1)
        # [S, coarse]
        weights = np.clip(1 - np.abs(place[:, None] - np.arange(coarse)), 0, 1).astype(np.float32)
        return weights @ levels @ weights.T

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
    """Fashion-MNIST: 60,000 + 10,000 images of 1x28x28, 10 kinds of clothing (Xiao, Rasul,
    Vollgraf, 2017).

    Looked for in `root` (torchvision's FashionMNIST/raw, fashion-mnist, or the folder itself), then
    where Debian's package dataset-fashion-mnist puts it. The content must be the original's, byte
    for byte.
    """

    name = "fashion_mnist"
    shape = (1, 28, 28)
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    counts = (60_000, 10_000)
    balanced = True
    known_digest = "21b303b534174981203c4820641c1482b0d4d234f68cd14ed6e4e3d0e1e17374"
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

    def is_there(self) -> bool:
        return self._found() is not None

    def read(self) -> tuple[Arrays, Arrays]:
        if self._found() is None:
            with downloading(self):
                from torchvision.datasets import FashionMNIST as Torchvision

                Torchvision(str(data_root(self.root)), download=True)
        found = self._found()
        if found is None:
            raise self.missing_error("the download left no complete set of files")
        images, labels, test_images, test_labels = (
            read_idx(file, 3 - 2 * (i % 2)) for i, file in enumerate(found)
        )
        return (images[:, None], labels), (test_images[:, None], test_labels)

    def where(self) -> str:
        found = self._found()
        return f" in {found[0].parent}" if found else ""

    def _places(self) -> list[Path]:
        root = data_root(self.root)
        return [root / "FashionMNIST" / "raw", root / "fashion-mnist", root, self.debian]

    def _found(self) -> list[Path] | None:
        for place in self._places():
            files = [
                next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None)
                for name in self.files
            ]
            if all(files):
                return [file for file in files if file is not None]
        return None

    def missing_error(self, why: str = "") -> DataError:
        files = [
            Expected(f"{name}[.gz]", about)
            for name, about in zip(self.files, self.sizes, strict=True)
        ]
        ways = ["apt-get install dataset-fashion-mnist", fetch_command(self)]
        return missing(self.name, self._places(), files, ways, why)


class SVHN(Downloadable):
    """Street View House Numbers, cropped: 73,257 + 26,032 images of 3x32x32 (Netzer et al., 2011);
    `extra` is not used.

    torchvision reads the two .mat files after comparing their MD5 with the published one, and maps
    label 10 to 0.
    """

    name = "svhn"
    shape = (3, 32, 32)
    classes = tuple("0123456789")
    counts = (73_257, 26_032)

    def is_there(self) -> bool:
        return self._place() is not None

    def read(self) -> tuple[Arrays, Arrays]:
        return self._split("train"), self._split("test")

    def _split(self, split: str) -> Arrays:
        from torchvision.datasets import SVHN as Torchvision

        place = self._place()
        if place is None:
            place = data_root(self.root)
            with downloading(self):
                Torchvision(str(place), split=split, download=True)
        _, name, md5 = Torchvision.split_list[split]
        check_md5(place / name, md5)
        loaded = Torchvision(str(place), split=split)
        return np.ascontiguousarray(loaded.data), loaded.labels

    def where(self) -> str:
        return f" in {self._place()}"

    def _place(self) -> Path | None:
        both = ("train_32x32.mat", "test_32x32.mat")
        return next(
            (place for place in self._places() if all((place / name).is_file() for name in both)),
            None,
        )

    def _places(self) -> list[Path]:
        root = data_root(self.root)
        return [root, root / "SVHN", root / "svhn"]

    def missing_error(self, why: str = "") -> DataError:
        files = [
            Expected("train_32x32.mat", "182 MB, md5 e26dedcc434d2e4c54c9b2d4a06d8373"),
            Expected("test_32x32.mat", "64 MB, md5 eb5a983be6a315427106f1b164d9cef3"),
        ]
        return missing(
            self.name,
            self._places(),
            files,
            [fetch_command(self), "let the run download it: dataset.download=true"],
            why,
        )


class CIFAR10(Downloadable):
    """CIFAR-10: 50,000 + 10,000 images of 3x32x32 (Krizhevsky, 2009), torchvision's folder or a
    plain `cifar10.npz`.

    The original batches are pickles: none is opened before its MD5 is the published one, so nobody
    else's pickle is ever run.
    """

    name = "cifar10"
    shape = (3, 32, 32)
    classes = CIFAR_CLASSES
    counts = (50_000, 10_000)
    balanced = True

    def is_there(self) -> bool:
        return self._place() is not None

    def read(self) -> tuple[Arrays, Arrays]:
        from torchvision.datasets import CIFAR10 as Torchvision

        place = self._place()
        if place is None:
            place = data_root(self.root)
            with downloading(self):
                Torchvision(str(place), download=True)
        if place.suffix == ".npz":
            return read_npz(place)
        for name, md5 in self._batches():
            check_md5(place / name, md5)
        splits = [Torchvision(str(place), train=train) for train in (True, False)]
        train, test = (
            (split.data.transpose(0, 3, 1, 2), np.array(split.targets)) for split in splits
        )
        return train, test

    def _batches(self) -> list[tuple[str, str]]:
        """Return (path below the root, md5) of every pickle that torchvision opens."""
        from torchvision.datasets import CIFAR10 as Torchvision

        listed = [(name, md5) for name, md5 in Torchvision.train_list + Torchvision.test_list]
        listed.append((Torchvision.meta["filename"], Torchvision.meta["md5"]))
        return [(f"{Torchvision.base_folder}/{name}", md5) for name, md5 in listed]

    def _places(self) -> list[Path]:
        root = data_root(self.root)
        return [root, root / "cifar10", root / "cifar10.npz"]

    def where(self) -> str:
        return f" in {self._place()}"

    def _place(self) -> Path | None:
        for place in self._places():
            if place.suffix == ".npz":
                found = place.is_file()
            else:
                found = all(
                    (place / "cifar-10-batches-py" / name).is_file() for name in self._file_names()
                )
            if found:
                return place
        return None

    def _file_names(self) -> list[str]:
        return [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]

    def missing_error(self, why: str = "") -> DataError:
        about = {"batches.meta": "158 bytes"}
        files = [
            Expected(f"cifar-10-batches-py/{name}", about.get(name, "31 MB"))
            for name in self._file_names()
        ]
        files.append(Expected("or cifar10.npz", "x_train [50000,32,32,3], y_train, x_test, y_test"))
        return missing(
            self.name,
            self._places(),
            files,
            [fetch_command(self), "let the run download it: dataset.download=true"],
            why,
        )

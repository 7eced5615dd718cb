"""Fashion-MNIST, CIFAR-10 and SVHN: small files in the exact formats on disk, the real ones where
they are, and damage.
"""

import gzip
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inco.data.dataset import digest_of
from inco.data.readers import read_idx
from inco.data.sources import CIFAR10, CIFAR_CLASSES, SVHN, FashionMNIST
from inco.errors import ConfigError, DataError

DEBIAN = FashionMNIST.debian


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def says(error: pytest.ExceptionInfo[Any], *words: str) -> None:
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


# --- Fashion-MNIST
# ----------------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = head + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


class SmallFashion(FashionMNIST):
    counts, known_digest, debian = (20, 10), None, Path("/nowhere")


def fashion(folder: Path, suffix: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, n in (("train", 20), ("t10k", 10)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels(n, 28, 28, seed=n))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(n, dtype=np.uint8) % 10)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "fashion-mnist", "."])
def test_fashion_mnist_idx_files(tmp_path: Path, inside: str, suffix: str) -> None:
    fashion(tmp_path / inside, suffix)
    dataset = SmallFashion(str(tmp_path)).load()
    assert np.array_equal(dataset.train.images[:, 0].numpy(), pixels(20, 28, 28, seed=20))
    assert dataset.test.labels.tolist() == list(range(10))


def test_fashion_mnist_is_found_where_debian_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmallFashion, "debian", fashion(tmp_path / "share", ".gz"))
    assert len(SmallFashion(str(tmp_path / "empty")).load().train.images) == 20


@pytest.mark.parametrize("damage", ["cut", "grow", "magic", "gzip", "empty"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    path = (
        fashion(tmp_path, ".gz" if damage == "gzip" else "")
        / f"train-images-idx3-ubyte{'.gz' if damage == 'gzip' else ''}"
    )
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-5],
            "grow": data + b"x",
            "magic": b"\x01" + data[1:],
            "gzip": data[:500],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError) as error:
        SmallFashion(str(tmp_path)).load()
    says(error, str(path))
    with pytest.raises(DataError):
        read_idx(path, 1)


def test_a_zeroed_block_is_refused_where_torchvision_sees_nothing(tmp_path: Path) -> None:
    path = fashion(tmp_path / "FashionMNIST" / "raw", "") / "train-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[4000:8000] = bytes(4000)
    path.write_bytes(data)
    from torchvision.datasets import FashionMNIST as Torchvision

    assert len(Torchvision(str(tmp_path)).data) == 20
    with pytest.raises(DataError, match="images are zero throughout") as error:
        SmallFashion(str(tmp_path)).load()
    says(error, str(path.parent))


@pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_real_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = FashionMNIST().load()
    assert dataset.train.images.shape == (60_000, 1, 28, 28) and dataset.test.images.shape == (
        10_000,
        1,
        28,
        28,
    )
    assert torch.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert dataset.digest == FashionMNIST.known_digest
    assert abs(dataset.train.images.float().mean() / 255 - 0.2860) < 1e-4
    dataset.train.images[5, 0, 14, 14] ^= 1
    assert digest_of(dataset.train, dataset.test) != FashionMNIST.known_digest


# --- CIFAR-10
# ---------------------------------------------------------------------------------------------------------------


class SmallCIFAR(CIFAR10):
    counts = (50, 10)


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, hostile: str | None = None) -> np.ndarray:
    """Write the batches as the original ones are (dicts with bytes keys), and teach torchvision
    their MD5.
    """
    from torchvision.datasets import CIFAR10 as Torchvision

    folder, images = root / "cifar-10-batches-py", pixels(60, 3072)
    folder.mkdir(parents=True)
    md5s = []
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {
            "data": images[10 * i : 10 * i + 10],
            "labels": list(range(10)),
            "batch_label": name,
            "filenames": ["x"] * 10,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        md5s.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    (folder / "batches.meta").write_bytes(
        pickle.dumps({"label_names": list(CIFAR_CLASSES)}, protocol=2)
    )
    meta = {
        **Torchvision.meta,
        "md5": hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest(),
    }
    monkeypatch.setattr(Torchvision, "train_list", md5s[:5])
    monkeypatch.setattr(Torchvision, "test_list", md5s[5:])
    monkeypatch.setattr(Torchvision, "meta", meta)
    return images.reshape(60, 3, 32, 32)


@pytest.mark.parametrize("inside", [".", "cifar10"])
def test_cifar10_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    images = cifar(tmp_path / inside, monkeypatch)
    dataset = SmallCIFAR(str(tmp_path)).load()
    assert np.array_equal(dataset.train.images.numpy(), images[:50]) and np.array_equal(
        dataset.test.images.numpy(), images[50:]
    )
    assert dataset.train.labels.tolist() == list(range(10)) * 5


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_no_pickle_but_the_original_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cifar(tmp_path, monkeypatch)

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=f"{name}: has md5 .* not opened"):
        SmallCIFAR(str(tmp_path)).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_cifar10_npz(tmp_path: Path, layout: str) -> None:
    images = pixels(60, 3, 32, 32)
    x = images.transpose(0, 2, 3, 1) if layout == "NHWC" else images
    y = (np.arange(60) % 10)[:, None]  # keras keeps labels as a column
    np.savez(tmp_path / "cifar10.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])
    dataset = SmallCIFAR(str(tmp_path)).load()
    assert np.array_equal(
        dataset.train.images.numpy(), images[:50]
    ) and dataset.test.labels.tolist() == list(range(10))


@pytest.mark.parametrize(
    "change",
    [
        {"x_test": np.zeros((10, 32, 32, 3))},
        {"y_test": np.zeros((10, 2), int)},
        {"y_train": np.array([{}] * 50)},
        None,
    ],
)
def test_a_wrong_cifar10_npz_is_named(tmp_path: Path, change: dict[str, Any] | None) -> None:
    arrays = {
        "x_train": pixels(50, 32, 32, 3),
        "y_train": np.arange(50) % 10,
        "x_test": pixels(10, 32, 32, 3),
        "y_test": np.arange(10),
    }
    np.savez(tmp_path / "cifar10.npz", **(arrays | (change or {})))
    if change is None:
        (tmp_path / "cifar10.npz").write_bytes((tmp_path / "cifar10.npz").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cifar10\.npz"):
        SmallCIFAR(str(tmp_path)).load()


# --- SVHN
# -------------------------------------------------------------------------------------------------------------------


class SmallSVHN(SVHN):
    counts = (24, 12)


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    from scipy.io import savemat
    from torchvision.datasets import SVHN as Torchvision

    table, images = {}, {}
    for split, n in (("train", 24), ("test", 12)):
        images[split] = pixels(n, 3, 32, 32, seed=n)
        path = root / f"{split}_32x32.mat"
        savemat(
            path,
            {
                "X": images[split].transpose(2, 3, 1, 0),
                "y": (np.arange(n)[:, None] % 10 + 1).astype(np.uint8),
            },
        )
        table[split] = [
            Torchvision.split_list[split][0],
            path.name,
            hashlib.md5(path.read_bytes()).hexdigest(),
        ]
    monkeypatch.setattr(Torchvision, "split_list", table)
    return images


def test_svhn_mat_files_and_label_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = svhn(tmp_path, monkeypatch)
    dataset = SmallSVHN(str(tmp_path)).load()
    assert np.array_equal(dataset.train.images.numpy(), images["train"]) and np.array_equal(
        dataset.test.images.numpy(), images["test"]
    )
    assert dataset.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    with pytest.raises(DataError, match=r"test_32x32\.mat: has md5"):
        SmallSVHN(str(tmp_path)).load()


def test_a_last_test_batch_that_is_not_full_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published code does; the digest stays that of the whole content.

    All are scored unless asked.
    """
    images = svhn(tmp_path, monkeypatch)
    whole = SmallSVHN(str(tmp_path)).load()
    for batch, kept in ((5, 10), (12, 12), (1, 12)):
        dataset = SmallSVHN(str(tmp_path), test_drop_last=batch).load()
        assert (
            np.array_equal(dataset.test.images.numpy(), images["test"][:kept])
            and len(dataset.test.labels) == kept
        )
        assert dataset.digest == whole.digest and len(dataset.train.labels) == 24
    with pytest.raises(DataError, match="12 test images, and none would be scored"):
        SmallSVHN(str(tmp_path), test_drop_last=13).load()
    with pytest.raises(
        ConfigError,
        match=r"dataset\.test_drop_last=0: must be null, or a whole number of at least 1",
    ):
        SmallSVHN(str(tmp_path), test_drop_last=0)

"""CINIC-10 and folders of images: small trees, their conversion, and damage of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inco.data.folders import CINIC10, ImageFolder
from inco.data.images import read_image
from inco.data.sources import CIFAR_CLASSES
from inco.errors import ConfigError, DataError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def says(error: pytest.ExceptionInfo[Any], *words: str) -> None:
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


# --- CINIC-10
# ---------------------------------------------------------------------------------------------------------------


class SmallCINIC(CINIC10):
    counts = (20, 20)


def save_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0) if image.ndim == 3 else image).save(path)


@pytest.fixture
def cinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    images = pixels(20, 3, 32, 32)
    for split in ("train", "test"):
        for i, image in enumerate(images if split == "train" else images[::-1]):
            save_png(
                tmp_path / "data" / "CINIC-10" / split / CIFAR_CLASSES[i // 2] / f"n{i}.png", image
            )
    return tmp_path / "data" / "CINIC-10"


def test_cinic10_is_converted_once_in_torchvisions_order(
    cinic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import ImageFolder as Torchvision

    dataset = SmallCINIC().load()
    reference = Torchvision(str(cinic / "train"))
    assert dataset.train.labels.tolist() == reference.targets
    for image, (picture, _) in zip(dataset.train.images, reference, strict=True):
        assert np.array_equal(image.numpy(), np.asarray(picture).transpose(2, 0, 1))
    assert sorted(p.name for p in (cinic / "inco-cache").iterdir()) == [
        "test-images.npy",
        "test.json",
        "train-images.npy",
        "train.json",
    ]
    monkeypatch.setattr("inco.data.folders.read_images", None)  # a second conversion would fail
    again = SmallCINIC().load()
    assert again.digest == dataset.digest
    again.train.images[0] = 0  # the map is copy-on-write: the cache stays as it is
    assert SmallCINIC().load().digest == dataset.digest


def test_cinic10_cache_stands_alone_and_follows_the_tree(cinic: Path) -> None:
    digest = SmallCINIC().load().digest
    save_png(cinic / "train" / "cat" / "n7.png", pixels(3, 32, 32, seed=5))
    (cinic / "train" / "cat" / "n7b.png").touch()
    (cinic / "train" / "cat" / "n7b.png").unlink()  # the folder's time of change moves
    changed = SmallCINIC().load().digest
    assert changed != digest
    for split in ("train", "test"):
        (cinic / split).rename(cinic / f"{split}-gone")
    assert SmallCINIC().load().digest == changed


def test_cinic10_damaged_and_half_written_caches(cinic: Path) -> None:
    digest = SmallCINIC().load().digest
    (cinic / "inco-cache" / "train.json").unlink()  # as after a crash: images without their record
    assert SmallCINIC().load().digest == digest
    path = cinic / "inco-cache" / "train-images.npy"
    data = bytearray(path.read_bytes())
    data[2000:2500] = bytes(500)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-images\.npy: the cache is damaged; delete it"):
        SmallCINIC().load()


def test_cinic10_beside_a_tree_that_cannot_be_written(cinic: Path) -> None:
    (cinic / "inco-cache").write_text("in the way")  # works for root too, whom no permission stops
    digest = SmallCINIC().load().digest
    assert len(list((cinic.parent.parent / "cache").glob("cinic10-*/*.npy"))) == 2
    assert SmallCINIC().load().digest == digest


@pytest.mark.parametrize("damage", ["zeros", "size", "count", "empty", "grey"])
def test_cinic10_damaged_trees(cinic: Path, damage: str) -> None:
    path = cinic / "test" / "frog" / "n12.png"
    if damage == "grey":  # CINIC-10 has some: they become RGB
        save_png(path, pixels(32, 32))
        image = SmallCINIC().load().test.images[12]
        assert torch.equal(image[0], image[2])
        return
    if damage == "zeros":
        path.write_bytes(bytes(path.stat().st_size))
    if damage == "size":
        save_png(path, pixels(3, 16, 32))
    if damage == "count":
        path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        SmallCINIC().load()
    says(
        error,
        *{"size": (str(path), "32x16", "32x32"), "count": ("'frog': 1", "expected 2")}.get(
            damage, (str(path), "readable")
        ),
    )
    assert not (cinic / "inco-cache" / "test.json").exists()


# --- a folder of images
# -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, n in (("apple", 10), ("pear", 4), ("fig", 2)):
        for i in range(n):
            save_png(tmp_path / label / f"{i:02d}.png", pixels(3, 20 + i, 30, seed=i))
    save_png(tmp_path / "pear" / "deep" / "x.JPG".lower(), pixels(3, 8, 8))
    (tmp_path / "apple" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_class_folders_is_split_the_same_way_every_time(folder: Path) -> None:
    source = ImageFolder(str(folder), size=16)
    assert (
        source.num_classes == 3
        and source.shape == (3, 16, 16)
        and source.classes == ("apple", "fig", "pear")
    )
    dataset = source.load()
    assert torch.bincount(dataset.test.labels).tolist() == [2, 1, 1] and torch.bincount(
        dataset.train.labels
    ).tolist() == [
        8,
        1,
        4,
    ]
    assert dataset.digest == ImageFolder(str(folder), size=16).load().digest
    everything = torch.cat([dataset.train.images, dataset.test.images])
    files = [file for file in folder.rglob("*.*g") if file.is_file()]
    assert sorted(i.numpy().tobytes() for i in everything) == sorted(
        read_image(f, 16).tobytes() for f in files
    )
    assert source.recipe("vit", 224).shape == (3, 224, 224)


def test_images_are_resized_as_pil_does(folder: Path) -> None:
    image = ImageFolder(str(folder), size=16, test_share=0.01).load().train.images
    files = sorted((folder / "apple").glob("*.png"))
    expected = [
        np.asarray(Image.open(f).resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        for f in files
    ]
    found = [any(np.array_equal(e, i) for i in image.numpy()) for e in expected]
    assert sum(found) >= 9


def test_a_folder_with_train_and_test(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("split")
    for split, n in (("train", 3), ("test", 1)):
        for label in ("a", "b"):
            for i in range(n):
                save_png(root / split / label / f"{i}.png", pixels(3, 8, 8, seed=i))
    dataset = ImageFolder(str(root), size=8).load()
    assert (len(dataset.train.images), len(dataset.test.images), dataset.classes) == (
        6,
        2,
        ("a", "b"),
    )
    (root / "test" / "b").rename(root / "test" / "c")
    with pytest.raises(DataError, match=r"differ in \['b', 'c'\]"):
        ImageFolder(str(root), size=8).load()


@pytest.mark.parametrize("damage", ["zeros", "cut", "text", "lonely", "empty"])
def test_damaged_folders_name_the_file(folder: Path, damage: str) -> None:
    path = folder / "apple" / "03.png"
    data = path.read_bytes()
    contents = {
        "zeros": bytes(len(data)),
        "cut": data[: len(data) // 2],
        "text": b"hello",
        "lonely": data,
        "empty": data,
    }
    path.write_bytes(contents[damage])
    if damage in ("lonely", "empty"):
        for file in sorted((folder / "fig").iterdir())[: 1 if damage == "lonely" else 2]:
            file.unlink()
        path = folder / "fig" if damage == "lonely" else Path("fig")
    with pytest.raises(DataError) as error:
        ImageFolder(str(folder), size=16).load()
    says(error, str(path))


def test_a_folder_that_is_not_there_and_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        ImageFolder(str(tmp_path / "none")).check()
    says(error, str(tmp_path / "none"), "CLASS/", "experiment=quickstart")
    with pytest.raises(ConfigError) as error2:
        ImageFolder(str(tmp_path), size=0, test_share=1.0, transforms="published")
    assert len(error2.value.problems) == 2

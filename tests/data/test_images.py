"""Folders of images as people have them: splits, links, leftovers, modes; and subsets of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import simulate

from inco.data.folders import ImageFolder
from inco.data.image_tree import counted
from inco.data.images import read_image
from inco.errors import DataError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def says(error: pytest.ExceptionInfo[Any], *words: str) -> None:
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


def save_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path)


def fill(root: Path, *classes: str, n: int = 3, seed: int = 0) -> None:
    for k, label in enumerate(classes or ("cat", "dog")):
        for i in range(n):
            save_png(root / label / f"{i}.png", pixels(3, 8, 8, seed=100 * seed + 10 * k + i))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "valid"),
        ("training_set", "test_set"),
        ("trainset", "testset"),
        ("train_images", "validation_images"),
        ("train", "dev"),
    ],
)
def test_the_usual_names_of_splits(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path / train, n=4)
    fill(tmp_path / test, n=2, seed=1)
    dataset = ImageFolder(str(tmp_path), size=8).load()
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (8, 4)


def test_of_three_splits_the_test_is_scored_and_the_third_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, n in (("train", 4), ("val", 1), ("test", 2)):
        fill(tmp_path / split, n=n, seed=n)
    dataset = ImageFolder(str(tmp_path), size=8).load()
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (8, 4)
    assert "val in" in caplog.text and "is not used" in caplog.text


def test_a_test_without_labels_gives_way_to_the_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, n in (("train", 4), ("val", 1)):
        fill(tmp_path / split, n=n, seed=n)
    save_png(tmp_path / "test" / "1.png", pixels(3, 8, 8))
    dataset = ImageFolder(str(tmp_path), size=8).load()
    assert len(dataset.test.labels) == 2 and "test in" in caplog.text


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train",), ("holds train", "dataset.root={}/train")),
        (("val", "test"), ("no classes", "dataset.root={}/test")),
        (("train", "test", "cat"), ("cat stand(s) beside",)),
        (("train", "Train", "test"), ("Train and train may both be meant",)),
        (("train", "val", "dev"), ("dev and val may both be meant",)),
        (("flowers",), ("1 class folders", "dataset.root={}/flowers")),
    ],
)
def test_layouts_with_two_readings_are_refused(
    tmp_path: Path, folders: tuple[str, ...], words: tuple[str, ...]
) -> None:
    for i, folder in enumerate(folders):
        fill(tmp_path / folder, seed=i)
    with pytest.raises(DataError) as error:
        ImageFolder(str(tmp_path), size=8).load()
    says(error, *(word.format(tmp_path) for word in words))


def test_a_test_split_without_labels_alone_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train")
    save_png(tmp_path / "test" / "1.png", pixels(3, 8, 8))
    with pytest.raises(DataError, match="test has no class folders"):
        ImageFolder(str(tmp_path), size=8)


def test_train_may_be_a_vehicle(tmp_path: Path) -> None:
    fill(tmp_path, "bus", "train", "tram")
    assert ImageFolder(str(tmp_path), size=8).load().classes == ("bus", "train", "tram")


def test_each_file_is_read_once_whatever_links_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, n=4)
    (tmp_path / "cat" / "up").symlink_to("..")
    (tmp_path / "cat" / "itself").symlink_to(".")
    (tmp_path / "dog" / "other").symlink_to("../cat")
    (tmp_path / "dog" / "again.png").symlink_to("0.png")
    (tmp_path / "dog" / "hard.png").hardlink_to(tmp_path / "dog" / "1.png")
    (tmp_path / "dog" / "gone.png").symlink_to("nowhere.png")
    dataset = ImageFolder(str(tmp_path), size=8).load()
    assert len(dataset.train.labels) + len(dataset.test.labels) == 8
    for text in (
        "links to folders that are read anyway: 3",
        "links to files that are read anyway: 2",
        "links to nothing: 1",
    ):
        assert text in caplog.text


def test_a_class_may_be_a_link_to_elsewhere(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    fill(elsewhere, "birds")
    fill(tmp_path, "cat")
    (tmp_path / "bird").symlink_to(elsewhere / "birds")
    assert ImageFolder(str(tmp_path), size=8).load().classes == ("bird", "cat")


@pytest.mark.parametrize("where", ["classes", "splits"])
def test_a_file_in_two_classes_or_splits_is_refused(tmp_path: Path, where: str) -> None:
    if where == "classes":
        fill(tmp_path)
        (tmp_path / "dog" / "x.png").symlink_to("../cat/0.png")
    else:
        fill(tmp_path / "train")
        fill(tmp_path / "test", n=1, seed=1)
        (tmp_path / "test" / "dog" / "x.png").hardlink_to(tmp_path / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"x\.png is the same file as .*0\.png"):
        ImageFolder(str(tmp_path), size=8).load()


def test_what_others_leave_is_passed_over_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, n=4)
    for name in ("cat/._0.png", "cat/Thumbs.db", "cat/deep/.ipynb_checkpoints/0-checkpoint.png",
                 "dog/@eaDir/0.png", "__MACOSX/cat/._0.png", ".git/x.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "labels.csv").write_text("")
    (tmp_path / "dog" / "0.xml").write_text("")
    (tmp_path / "dog" / "README").write_text("")
    (tmp_path / "beside.png").write_bytes(b"")
    dataset = ImageFolder(str(tmp_path), size=8).load()
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.train.labels) + len(dataset.test.labels) == 8
    for text in (".csv: 1", ".xml: 1", "files without a suffix: 1",
                 "images outside of class folders: 1", "archives leave: 4"):  # fmt: skip
        assert text in caplog.text


def test_a_tidy_folder_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path)
    ImageFolder(str(tmp_path), size=8).load()
    assert not caplog.text


RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("grey.png", lambda: Image.fromarray(RAMP)),
        ("rgb.png", lambda: Image.fromarray(RAMP).convert("RGB")),
        ("palette.png", lambda: Image.fromarray(RAMP).convert("RGB").quantize(64)),
        ("palette.gif", lambda: Image.fromarray(RAMP)),
        ("alpha.png", lambda: Image.fromarray(RAMP).convert("RGBA")),
        ("grey-alpha.png", lambda: Image.fromarray(RAMP).convert("LA")),
        ("sixteen.png", lambda: Image.fromarray(RAMP.astype(np.uint16) * 257)),
        ("sixteen.tiff", lambda: Image.fromarray(RAMP.astype(np.uint16) * 257)),
        ("sixteen.pgm", lambda: Image.fromarray(RAMP.astype(np.uint16) * 257)),
        ("cmyk.tiff", lambda: Image.fromarray(RAMP).convert("RGB").convert("CMYK")),
        ("rgb.webp", lambda: Image.fromarray(RAMP).convert("RGB")),
    ],
)
def test_no_mode_loses_its_greys(tmp_path: Path, name: str, made: Any) -> None:
    path = saved(tmp_path / name, made())
    for channels in (1, 3):
        image = read_image(path, 8, channels)
        assert image.shape == (channels, 8, 8)
        near = 12 if name.endswith("webp") else 1  # which is lossy
        assert np.abs(image[0].astype(int) - RAMP).max() <= near


def test_two_levels_stay_black_and_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.png", Image.fromarray(RAMP > 127))
    assert np.array_equal(read_image(path, 8)[0], np.where(RAMP > 127, 255, 0))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_white_are_refused(tmp_path: Path, kind: type) -> None:
    path = saved(tmp_path / "deep.tiff", Image.fromarray(RAMP.astype(kind)))
    with pytest.raises(DataError, match=r"deep\.tiff.*32 bits.*convert it"):
        read_image(path, 8)


def test_ink_on_nothing_is_ink_on_white(tmp_path: Path) -> None:
    """A drawing whose shape is in its transparency alone: dropped, it would be black throughout."""
    drawing = np.zeros((8, 8, 4), np.uint8)
    drawing[2:4, :, 3] = 255
    path = saved(tmp_path / "ink.png", Image.fromarray(drawing))
    told: Counter[str] = Counter()
    image = read_image(path, 8, told=told)
    assert (image[:, 2:4] == 0).all() and (image[:, 4:] == 255).all()
    assert counted(told) == "partly transparent (laid over white): 1"


def test_what_is_not_kept_of_images_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, n=4)
    dark = Image.fromarray(RAMP.astype(np.uint16) * 16)  # 12 bits in 16
    saved(tmp_path / "cat" / "dark.png", dark)
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    frames[0].save(tmp_path / "cat" / "two.gif", save_all=True, append_images=frames[1:])
    dataset = ImageFolder(str(tmp_path), size=8).load()
    assert len(dataset.train.labels) + len(dataset.test.labels) == 10
    for text in ("of 16 bits (divided by 257): 1", "brighter than a sixteenth of white: 1",
                 "with several frames (the first is read): 1"):  # fmt: skip
        assert text in caplog.text


@pytest.mark.parametrize("model", ["resnet26", "vit_tiny"])
def test_grey_images_train(tmp_path: Path, model: str) -> None:
    fill(tmp_path, n=6)
    words = ("dataset=images", f"dataset.root={tmp_path}", "dataset.size=16", "dataset.channels=1",
             f"model={model}", "num_clients=2", "partition=iid", "split=none",
             "capacity=all_large", "rounds=1")  # fmt: skip
    if model == "vit_tiny":
        words = (*words, "model.image_size=32")
    _, rows, run = simulate(*words)
    assert run.dataset.train.images.shape[1:] == (1, 16, 16) and len(rows) == 1


# --- subsets
# -------------------------------------------------------------------------------------------------------


def test_a_limit_decodes_no_more_than_it_keeps(tmp_path: Path) -> None:
    fill(tmp_path / "train", n=6)
    fill(tmp_path / "test", n=3, seed=1)
    whole = ImageFolder(str(tmp_path), size=8).load()
    few = ImageFolder(str(tmp_path), size=8, limit=5, test_limit=2).load()
    assert sorted(torch.bincount(few.train.labels).tolist()) == [2, 3]
    assert torch.bincount(few.test.labels).tolist() == [1, 1]
    assert few.digest != whole.digest
    everything = {image.numpy().tobytes() for image in whole.train.images}
    assert {image.numpy().tobytes() for image in few.train.images} <= everything

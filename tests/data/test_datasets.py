"""Datasets: the bundled and the made ones, the checks that all share, and what is said when data is
not there.
"""

import hashlib
import importlib
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support import ROOT

from inco.config.targets import build
from inco.data.__main__ import main
from inco.data.dataset import Source, balanced_subset, digest_of
from inco.data.folders import CINIC10
from inco.data.readers import write_atomic
from inco.data.sources import CIFAR10, SVHN, Digits, FashionMNIST, Synthetic
from inco.errors import ConfigError, DataError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


def says(error: pytest.ExceptionInfo[Any], *words: str) -> None:
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


class SmallFashion(FashionMNIST):
    debian = Path("/nowhere")


# --- digits and synthetic
# ---------------------------------------------------------------------------------------------------


def test_digits_are_real_complete_and_stratified() -> None:
    dataset = Digits().load()
    assert dataset.train.images.shape == (1437, 1, 8, 8) and dataset.test.images.shape == (
        360,
        1,
        8,
        8,
    )
    assert dataset.train.images.dtype == torch.uint8 and dataset.train.labels.dtype == torch.int64
    assert dataset.train.images.max() == 16 and dataset.digest == Digits.known_digest
    sizes = torch.bincount(torch.cat([dataset.train.labels, dataset.test.labels]))
    assert sizes.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    share = torch.bincount(dataset.test.labels) / sizes
    assert ((share - 360 / 1797).abs() < 0.005).all()
    # real handwriting: the nearest training image tells nearly every test digit
    distance = torch.cdist(
        dataset.test.images.flatten(1).float(), dataset.train.images.flatten(1).float()
    )
    assert (dataset.train.labels[distance.argmin(1)] == dataset.test.labels).float().mean() > 0.97


def test_digits_normalisation_is_that_of_the_training_images() -> None:
    dataset, recipe = Digits().load(), Digits().recipe("resnet", 8)
    x = recipe.train(dataset.train.images, torch.Generator())
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3


def test_synthetic_is_made_from_its_seed_and_can_be_learned() -> None:
    make = {"shape": [2, 12, 12], "num_classes": 4, "num_train": 403, "num_test": 80}
    first, again, other = (Synthetic(**make, seed=seed).load() for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert first.train.images.shape == (403, 2, 12, 12)
    assert sorted(torch.bincount(first.train.labels).tolist()) == [100, 101, 101, 101]
    means = torch.stack(
        [first.train.images[first.train.labels == k].float().mean(0) for k in range(4)]
    )
    nearest = torch.cdist(first.test.images.flatten(1).float(), means.flatten(1)).argmin(1)
    assert (nearest == first.test.labels).float().mean() > 0.95
    assert not torch.equal(first.train.images[:80], first.test.images)


def test_synthetic_of_one_pixel_and_in_chunks() -> None:
    assert Synthetic(
        shape=[1, 1, 1], num_classes=2, num_train=5000, num_test=2
    ).load().train.images.shape == (5000, 1, 1, 1)


def test_synthetic_tells_all_its_problems() -> None:
    with pytest.raises(ConfigError) as error:
        Synthetic(shape=[3, 8, 0], num_classes=1, num_train=0, num_test=0, transforms="published")
    assert len(error.value.problems) == 4
    with pytest.raises(ConfigError) as error:
        Synthetic(shape=[3, 8, 9], num_classes=5, num_train=4, num_test=4, transforms="published")
    assert len(error.value.problems) == 3
    with pytest.raises(
        ConfigError, match=r"dataset\.transforms=best: must be one of published, corrected"
    ):
        Digits(transforms="best")


# --- the general checks
# -----------------------------------------------------------------------------------------------------


class Made(Source):
    """A source whose arrays a test supplies."""

    name, shape, classes, balanced, counts = "digits", (1, 4, 4), ("a", "b"), True, (6, 4)

    def __init__(self, **change: Any) -> None:
        super().__init__()
        self.arrays = {
            "x": pixels(6, 1, 4, 4),
            "y": np.array([0, 1] * 3),
            "tx": pixels(4, 1, 4, 4),
            "ty": np.array([0, 1] * 2),
        } | change

    def read(self) -> Any:
        return (self.arrays["x"], self.arrays["y"]), (self.arrays["tx"], self.arrays["ty"])


def holed() -> np.ndarray:
    images = pixels(6, 1, 4, 4)
    images[3:5] = 0
    return images


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": pixels(7, 1, 4, 4)}, "train: images"),
        ({"x": pixels(6, 1, 4, 5)}, "train: images"),
        ({"y": np.array([0, 1, 2, 0, 1, 2])}, "labels run from 0 to 2; expected 0 to 1"),
        ({"y": np.array([0, -1, 1, 0, 1, 0])}, "labels run from -1"),
        ({"ty": np.zeros(4, int)}, "test: no image of class(es) ['b']"),
        ({"y": np.array([0, 0, 0, 0, 1, 1])}, "images per class [4, 2]"),
        ({"tx": pixels(2, 1, 4, 4), "ty": np.array([0, 1])}, "test: 2 images; expected 4"),
        ({"x": holed()}, "2 images are zero throughout (the first is number 3)"),
        ({"x": pixels(0, 1, 4, 4), "y": np.zeros(0, int)}, "train: images (0, 1, 4, 4)"),
    ],
)
def test_content_that_is_not_what_it_should_be_is_refused(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as error:
        Made(**change).load()
    says(error, said, "dataset=digits")


def test_the_digest_sees_a_single_bit_and_the_split() -> None:
    first, changed = Made().load(), Made(ty=np.array([1, 0] * 2)).load()
    assert first.digest != changed.digest
    reference = hashlib.sha256()
    for array in (
        pixels(6, 1, 4, 4),
        np.array([0, 1] * 3),
        pixels(4, 1, 4, 4),
        np.array([0, 1] * 2),
    ):
        reference.update(f"{array.dtype.name}{list(array.shape)}".encode() + array.tobytes())
    assert first.digest == reference.hexdigest() == digest_of(first.train, first.test)
    Made.known_digest = changed.digest
    try:
        with pytest.raises(DataError, match="sha256"):
            Made().load()
    finally:
        Made.known_digest = None


# --- data that is not there
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SmallFashion, SVHN, CIFAR10, CINIC10], ids=lambda c: c.name)
def test_missing_data_fits_one_screen_and_says_how_to_get_it(
    kind: type[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for root, shown in (
        ("here", tmp_path / "here"),
        (None, tmp_path / "data"),
        (str(tmp_path / "abs"), tmp_path / "abs"),
    ):
        with pytest.raises(DataError) as error:
            kind(root).check()
        says(
            error,
            f"dataset={kind.name}",
            str(shown),
            f"python -m inco.data fetch {kind.name}",
            "dataset.root=PATH",
        )
        says(
            error,
            "python run.py experiment=quickstart",
            *(["apt-get install"] if kind is SmallFashion else []),
        )
        assert len(str(error.value).splitlines()) <= 24 and error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [SmallFashion, SVHN, CIFAR10], ids=lambda c: c.name)
def test_a_failed_download_says_why_and_leaves_nothing_behind(
    kind: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    source = kind(str(tmp_path / "new"), download=True)
    source.check()  # it can still be downloaded
    with pytest.raises(DataError) as error:
        source.load()
    says(error, "downloading failed", "Name or service not known", "dataset.root=PATH")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "digits"]) == 0
    assert "1,437 training and 360 test images" in capsys.readouterr().out
    assert main(["fetch", "cinic10", "--root", str(tmp_path)]) == 3
    assert "datashare.ed.ac.uk" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fetch", "imagenet"])


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inco.data", "--help"], capture_output=True, text=True, check=True
    )
    assert "fetch" in done.stdout


# --- writing
# ----------------------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, lambda f: f.write(b"old"))

    def half(file: Any) -> None:
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, half)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_writers_at_the_same_time_never_mix(tmp_path: Path) -> None:
    path, contents = tmp_path / "x", [bytes([i]) * 100_000 for i in range(4)]
    threads = [
        threading.Thread(target=write_atomic, args=(path, lambda f, c=c: f.write(c)))
        for c in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


# --- configuration
# ------------------------------------------------------------------------------------------------------


CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    "path",
    sorted([*CONF.glob("dataset/*.yaml"), *CONF.glob("partition/*.yaml")]),
    ids=lambda p: p.stem,
)
def test_every_yaml_names_a_class_and_all_its_arguments_with_their_defaults(path: Path) -> None:
    settings = pytest.importorskip("yaml").safe_load(path.read_text())
    module, name = settings.pop("_target_").rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    assert kind.name == path.stem
    defaults = {k: p.default for k, p in inspect.signature(kind).parameters.items()}
    assert set(settings) == set(defaults)
    free = {"root", "path"}  # the YAML says `data`, and an argument left out means it
    for key in set(settings) - free:
        default = defaults[key]
        assert settings[key] == (list(default) if isinstance(default, tuple) else default), key
    if "path" in settings:  # which has no default
        settings["path"] = str(path)
    kind(**settings)


# --- subsets
# -------------------------------------------------------------------------------------------------------


def test_a_limit_keeps_equally_many_of_each_class_in_their_order() -> None:
    whole = Digits().load()
    few = Digits(limit=105, test_limit=40).load()
    assert sorted(torch.bincount(few.train.labels).tolist()) == [10] * 5 + [11] * 5
    assert torch.bincount(few.test.labels).tolist() == [4] * 10
    assert len({whole.digest, few.digest, Digits(limit=106, test_limit=40).load().digest}) == 3
    assert few.digest == Digits(limit=105, test_limit=40).load().digest
    rows = [image.numpy().tobytes() for image in whole.train.images]
    places = [rows.index(image.numpy().tobytes()) for image in few.train.images]
    assert places == sorted(places)


def test_where_a_class_has_too_few_others_fill_the_limit() -> None:
    labels = np.array([0] * 2 + [1] * 20 + [2] * 20)
    kept = balanced_subset(labels, 12)
    assert np.bincount(labels[kept]).tolist() == [2, 5, 5]
    assert len(balanced_subset(labels, 100)) == len(balanced_subset(labels, None)) == 42


def test_a_greater_limit_keeps_what_a_smaller_one_does() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 400)
    assert set(balanced_subset(labels, 50)) <= set(balanced_subset(labels, 90))


@pytest.mark.parametrize("source", [Digits, Synthetic])
def test_a_limit_below_the_number_of_classes_is_a_mistake(source: Any) -> None:
    with pytest.raises(ConfigError) as error:
        source(limit=9, test_limit=3).check()
    says(error, "dataset.limit=9", "dataset.test_limit=3", "use 10 or more")


def test_every_dataset_takes_a_limit() -> None:
    """Of conf/dataset, by its constructor."""
    for path in sorted((ROOT / "conf" / "dataset").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        source = build("dataset", settings | {"limit": 100, "test_limit": 50})
        assert (source.limit, source.test_limit) == (100, 50), path.name

"""Bad input: one clear message that names the setting, its value, the rule and the fix, before
anything is trained.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import TINY, TINY_VIT, simulate

from inco.errors import ConfigError, DataError, InCoError

FIXED = (*TINY, "partition=fixed")


def says(kind: type[InCoError], *overrides: str) -> str:
    with pytest.raises(kind) as caught:
        simulate(*overrides)
    return str(caught.value)


def published(path: Path, clients: dict[int, list[int]]) -> Path:
    """Write a partition as the published ones are: a pickled dict in a 0-d object array."""
    np.save(path, np.array(clients, dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize("dataset", ["fashion_mnist", "svhn", "cifar10", "cinic10", "images"])
def test_unknown_root(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inco.data.sources import FashionMNIST

    # not the machine's own copy
    monkeypatch.setattr(FashionMNIST, "_places", lambda self: [tmp_path / "none"])
    text = says(
        DataError, f"dataset={dataset}", f"dataset.root={tmp_path}/none", "engine.workers=1"
    )
    assert f"{tmp_path}/none" in text and "dataset.root" in text


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "dog" / "7.png").write_bytes(b"\x89PNG not really")
    text = says(
        DataError,
        "dataset=images",
        f"dataset.root={tmp_path}",
        "dataset.size=8",
        "num_clients=5",
        "partition=iid",
    )
    assert str(Path("dog") / "7.png") in text


def test_partition_index_out_of_range(tmp_path: Path) -> None:
    path = published(
        tmp_path / "p.npy", {c: [3 * c, 3 * c + 1, 60 if c == 4 else 3 * c + 2] for c in range(5)}
    )
    text = says(DataError, *FIXED, f"partition.path={path}")
    assert "60" in text and "client 4" in text


def test_partition_index_twice(tmp_path: Path) -> None:
    path = published(tmp_path / "p.npy", {c: [3 * c, 3 * c + 1, 0] for c in range(5)})
    text = says(DataError, *FIXED, f"partition.path={path}")
    assert "twice" in text or "both" in text or "more than once" in text
    assert "0" in text


def test_partition_for_other_clients(tmp_path: Path) -> None:
    path = published(tmp_path / "p.npy", {c: [c, c + 10] for c in range(4)})
    text = says(DataError, *FIXED, f"partition.path={path}")
    assert "4" in text and "num_clients=5" in text


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_malicious_partition_runs_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "p.npy"
    np.save(path, np.array({0: Bomb(marker)}, dtype=object), allow_pickle=True)
    text = says(DataError, *FIXED, f"partition.path={path}")
    assert not marker.exists() and str(path) in text
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the file would have run something"


def test_more_clients_than_samples() -> None:
    text = says(ConfigError, *TINY, "num_clients=61")
    assert "num_clients=61" in text and "60" in text


def test_dirichlet_that_cannot_be() -> None:
    text = says(
        ConfigError,
        *TINY,
        "partition=dirichlet",
        "partition.alpha=0.01",
        "partition.min_size=12",
        "partition.max_tries=5",
    )
    assert all(word in text for word in ("alpha=0.01", "min_size=12", "num_clients=5"))


def test_capacity_table_without_clients_for_a_size(tmp_path: Path) -> None:
    path = tmp_path / "levels.json"
    path.write_text(json.dumps([0, 0, 1, 2, 4]))
    text = says(ConfigError, *TINY, "capacity=file", f"capacity.path={path}")
    assert "no client has level 3" in text and str(path) in text


def test_five_levels_of_four_clients() -> None:
    assert "num_clients=4" in says(ConfigError, *TINY, "split=isolated", "num_clients=4")


def test_vit_that_cannot_cut_the_image() -> None:
    text = says(ConfigError, *TINY_VIT, "model.image_size=20")
    assert "model.image_size=20" in text and "model.image_size=16" in text


def test_one_example_and_batch_norm(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(
        json.dumps({str(c): [59] if c == 2 else [10 * c + i for i in range(5)] for c in range(5)})
    )
    text = says(ConfigError, *FIXED, f"partition.path={path}")
    assert "client 2" in text and "BatchNorm" in text


def test_pairs_that_the_model_has_not() -> None:
    text = says(
        ConfigError, *TINY, "transform.pairs=[[layer1.1.conv1.weight,layer1.0.conv9.weight]]"
    )
    assert "layer1.0.conv9.weight" in text

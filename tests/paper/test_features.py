"""Looking into finished runs: closed forms of what is measured, and the two commands on a real
run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT, TINY, read_rows

from inco.diagnostics.features import filter_normalised, separation, surface
from inco.errors import ConfigError, DataError
from inco.paper.features.__main__ import main
from inco.paper.features.landscape import landscape, rings
from inco.paper.features.rebuild import Rebuilt, level_of, rebuild
from inco.records.arrays import read_npz
from inco.seeding import generator

pytestmark = pytest.mark.full

needs_sklearn = pytest.mark.skipif(
    find_spec("sklearn") is None, reason="scikit-learn is not installed (extra tsne)"
)


def run_tiny(folder: Path, *words: str) -> Path:
    command = [
        sys.executable,
        "run.py",
        *TINY,
        *words,
        "tracker=none",
        "engine.workers=1",
        f"hydra.run.dir={folder}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: ResNets split by stage, with InCo."""
    return run_tiny(
        tmp_path_factory.mktemp("run") / "stage",
        "transform=inco",
        "diagnostics=cka",
        "diagnostics.images=8",
        "diagnostics.batch=8",
    )


@pytest.fixture(scope="module")
def width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose BatchNorm is measured for scoring."""
    return run_tiny(
        tmp_path_factory.mktemp("run") / "width", "split=width", "model.widths=[16,16,16,16]"
    )


# --- closed forms ---


def test_separation_of_points_on_a_line() -> None:
    x, owner = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    each = [1 / 10.5, 1 / 9.5, 1 / 9.5, 1 / 10.5]
    assert separation(x, owner) == pytest.approx(sum(each) / 4)
    assert separation(7 * x + 3, owner) == pytest.approx(sum(each) / 4)
    assert np.isnan(separation(x, torch.zeros(4, dtype=torch.int64)))


def test_mixed_points_have_a_separation_of_about_one() -> None:
    x = torch.randn(400, 6, generator=generator(0, "test"))
    owner = torch.arange(400) % 2
    assert separation(x, owner) == pytest.approx(1.0, abs=0.02)
    assert separation(x + 100 * owner[:, None], owner) < 0.05


def test_directions_have_the_filters_own_lengths_and_leave_vectors() -> None:
    own = {
        "conv": torch.randn(3, 2, 5, 5),
        "fc": torch.randn(4, 6),
        "bias": torch.randn(4),
        "dead": torch.zeros(2, 3),
    }
    found = filter_normalised(own, generator(1, "test"))
    assert torch.allclose(found["conv"].flatten(1).norm(dim=1), own["conv"].flatten(1).norm(dim=1))
    assert torch.allclose(found["fc"].norm(dim=1), own["fc"].norm(dim=1))
    assert not found["bias"].any() and not found["dead"].any()
    again, other = (
        filter_normalised(own, generator(1, "test")),
        filter_normalised(own, generator(2, "test")),
    )
    assert torch.equal(found["conv"], again["conv"]) and not torch.equal(
        found["conv"], other["conv"]
    )


def test_surface_of_a_quadratic() -> None:
    centre, one, other = (
        torch.tensor([1.0, 2.0]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.0, 2.0]),
    )
    found = surface(lambda w: float((w * w).sum()), centre, one, other, [-1.0, 0.0, 0.5])
    assert found.tolist() == [
        [(1 + a) ** 2 + (2 + 2 * b) ** 2 for b in (-1.0, 0.0, 0.5)] for a in (-1.0, 0.0, 0.5)
    ]


def test_rings_are_squares_around_the_centre() -> None:
    at = np.linspace(-2, 2, 11)
    loss = np.maximum.outer(np.abs(at), np.abs(at))
    assert rings(loss, at) == [pytest.approx((d, d, d)) for d in (0.4, 1.2, 2.0)]
    loss[0, 3] = 50.0
    assert rings(loss, at)[-1][2] == 50.0 and rings(loss, at)[0][2] == pytest.approx(0.4)
    assert len(rings(np.ones((3, 3)), np.array([-1.0, 0.0, 1.0]))) == 1


# --- a real run ---


def centre_of(rebuilt: Rebuilt, name: str) -> float:
    arrays = landscape(rebuilt, 3, 0.01, 10**6, name)
    assert arrays["at"].tolist() == [-0.01, 0.0, 0.01] and int(arrays["images"]) == 40
    return float(arrays["loss"][1, 1])


def scores_of(rebuilt: Rebuilt) -> dict[str, float]:
    engine, state = rebuilt.run.simulator.engine, rebuilt.state
    found = engine.evaluate(
        rebuilt.run.simulator.population.submodels(state.round), state.w, state.b, state.round
    )
    return {rebuilt.name(level): score.loss for level, score in found.items()}


@pytest.mark.parametrize("kind", ["finished", "width"])
def test_the_middle_of_the_landscape_is_the_evaluators_loss(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    rebuilt = rebuild(folder)
    scores = scores_of(rebuilt)
    for name in (min(scores), max(scores)):
        assert centre_of(rebuilt, name) == pytest.approx(scores[name], rel=1e-6)
    assert np.mean(list(scores.values())) == pytest.approx(
        read_rows(folder)[-1]["test/loss"], rel=1e-9
    )
    assert scores_of(rebuilt) == scores  # nothing is left behind


def test_the_loss_moves_along_the_drawn_directions(finished: Path) -> None:
    rebuilt = rebuild(finished)
    found = landscape(rebuilt, 5, 0.5, 20, None)
    assert (
        int(found["images"]) == 20
        and str(found["capacity"]) == rebuilt.name(rebuilt.levels[-1])
        and str(found["title"]) == "FedAvg + InCo"
    )
    assert len(np.unique(found["loss"])) == 25
    again = landscape(rebuild(finished), 5, 0.5, 20, None)
    assert np.array_equal(found["loss"], again["loss"])


@needs_sklearn
def test_features_are_what_the_classifier_sees(finished: Path) -> None:
    from inco.paper.features.tsne import tsne

    rebuilt = rebuild(finished)
    found = tsne(rebuilt, "1", 5)
    num_levels = len(rebuilt.levels)
    assert found["features"].shape == (5 * num_levels, 8) and found["points"].shape == (
        5 * num_levels,
        2,
    )
    assert list(dict.fromkeys(found["name"].tolist())) == [
        rebuilt.name(level) for level in rebuilt.levels
    ]
    labels = rebuilt.evaluator.test.labels[torch.from_numpy(found["image"])]
    assert (
        labels.tolist() == [1] * len(labels)
        and found["image"][:5].tolist() == found["image"][5:10].tolist()
    )
    level = rebuilt.levels[-1]
    model = rebuilt.bound(level).model
    with torch.no_grad():
        (batch,) = rebuilt.batches(torch.from_numpy(found["image"][-5:]))
        output = model(batch[0])
    assert np.array_equal(found["features"][-5:], output.features.numpy())
    assert torch.allclose(model.fc(torch.from_numpy(found["features"][-5:])), output.logits)
    assert float(found["separation"]) == separation(
        torch.from_numpy(found["features"]), torch.from_numpy(found["level"])
    )
    assert np.array_equal(tsne(rebuild(finished), "1", 5)["points"], found["points"])


@needs_sklearn
def test_as_typed(finished: Path, tmp_path: Path) -> None:
    before = {p.name for p in finished.iterdir()}
    command = [sys.executable, "-m", "inco.paper.features"]
    words = ["tsne", str(finished), "--class", "1", "--images", "6"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[:2] == [
        str(finished / "features.png"),
        str(finished / "features.npz"),
    ], done.stderr
    assert lines[2].startswith("within / between capacities: 0.") or lines[2].startswith(
        "within / between capacities: 1."
    )
    # no lock is left
    assert {p.name for p in finished.iterdir()} == before | {
        "features.png",
        "features.npz",
    }
    first = [(finished / name).read_bytes() for name in ("features.png", "features.npz")]
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert [(tmp_path / name).read_bytes() for name in ("b.png", "b.npz")] == first


def test_landscape_as_typed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "landscape",
        str(finished),
        "--steps",
        "3",
        "--span",
        "0.5",
        "--images",
        "10",
        "--capacity",
        "resnet14",
    ]
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    arrays = read_npz(tmp_path / "a.npz")
    centre = float(arrays["loss"][1, 1])
    assert lines[:3] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "a.npz"),
        "| distance | mean loss | largest loss |",
    ]
    assert (
        lines[4] == f"| 0 | {centre:.4f} | {centre:.4f} |"
        and lines[5].startswith("| 0.5 | ")
        and len(lines) == 6
    )
    assert str(arrays["capacity"]) == "resnet14"
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert [
        (tmp_path / f"a{s}").read_bytes() == (tmp_path / f"b{s}").read_bytes()
        for s in (".png", ".npz")
    ] == [True, True]


# --- what is wrong is told ---


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (
            ["tsne", "RUN", "--class", "9"],
            2,
            "--class 9: there are 3 classes (0, 1, 2); use a name, or a number from 0",
        ),
        (["tsne", "RUN", "--images", "1"], 2, "--images 1: must be 2 or more"),
        (
            ["landscape", "RUN", "--steps", "4", "--span", "0"],
            2,
            "--steps 4: must be odd, 3 or more",
        ),
        (["landscape", "RUN", "--steps", "4", "--span", "0"], 2, "--span 0: must be above 0"),
        (
            ["landscape", "RUN", "--capacity", "vit9"],
            2,
            "--capacity vit9: this run has resnet10, resnet14",
        ),
        (["landscape", "RUN", "--out", "x.svg"], 2, "--out x.svg: a .png and a .npz are written"),
        (["landscape", "RUN/nowhere"], 3, "neither about.json nor summary.json has settings"),
    ],
)
def test_wrong_words(
    finished: Path, words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "tsne":
        pytest.importorskip("sklearn")
    assert main([word.replace("RUN", str(finished)) for word in words]) == code
    assert told in capsys.readouterr().err


def test_without_a_checkpoint_or_with_other_data(finished: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(finished / "about.json", bare)
    with pytest.raises(
        DataError, match=r"bare: no checkpoint there; give a run that has done a round"
    ):
        rebuild(bare)
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    text = (other / "about.json").read_text()
    assert '"num_train": 60' in text
    (other / "about.json").write_text(text.replace('"num_train": 60', '"num_train": 61'))
    with pytest.raises(ConfigError, match=r"not what this run began with"):
        rebuild(other)


def test_features_of_different_length_are_not_embedded_together(width: Path) -> None:
    pytest.importorskip("sklearn")
    from inco.paper.features.tsne import tsne

    with pytest.raises(
        ConfigError,
        match=(
            r"features of different length \(w1/16 1, .*w1 16\) cannot be embedded together; use"
            r" a run"
        ),
    ):
        tsne(rebuild(width), "1", 5)


def test_models_normalised_by_the_images_at_hand_have_no_features_of_one_class(
    tmp_path: Path,
) -> None:
    pytest.importorskip("sklearn")
    from inco.paper.features.tsne import tsne

    rebuilt = rebuild(run_tiny(tmp_path / "batch", "split.bn=batch"))
    with pytest.raises(
        ConfigError, match=r"split.bn=batch: these models are normalised by the images at hand"
    ):
        tsne(rebuilt, "1", 5)
    scores = scores_of(rebuilt)
    assert centre_of(rebuilt, "resnet26") == pytest.approx(scores["resnet26"], rel=1e-6)


def test_without_scikit_learn(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert main(["tsne", str(finished)]) == 2
    assert (
        capsys.readouterr().err
        == "t-SNE needs scikit-learn, which is not installed; use: pip install scikit-learn\n"
    )


def test_the_largest_capacity_is_the_default(finished: Path) -> None:
    rebuilt = rebuild(finished)
    assert level_of(rebuilt, None) == rebuilt.levels[-1] and level_of(rebuilt, "resnet10") == 0

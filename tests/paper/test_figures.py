"""Figures from hand-made run folders, whose numbers are known: what is drawn is what the folders
say.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT

from inco.diagnostics.histogram import count, edges
from inco.diagnostics.similarity import cka as cka_of_grams
from inco.diagnostics.similarity import gram
from inco.errors import ConfigError, DataError
from inco.paper.figures import cka, gradients, mixing, scores
from inco.paper.figures.__main__ import main
from inco.paper.figures.groups import grouped
from inco.paper.figures.measures import coarse, cosine, density, linear_cka, reach, spearman
from inco.paper.figures.options import Options
from inco.paper.figures.registry import ENTRIES, FIGURES
from inco.paper.figures.style import paper_style
from inco.records.arrays import write_npz
from inco.records.groups import Group
from inco.records.runs import find

NO = Options()
CHOICES = {
    "dataset": "cifar10",
    "partition": "dirichlet",
    "capacity": "five_levels",
    "model": "resnet26",
    "split": "stage",
    "algorithm": "fedavg",
    "transform": "inco",
    "local": "adam",
    "server": "average",
    "uplink": "clean",
}
SETTINGS = {
    "num_clients": 4,
    "partition": {"alpha": 0.5},
    "local": {"batch_size": 32, "lr": 0.001},
    "uplink": {},
}


def make_run(
    folder: Path,
    seed: int = 0,
    rows: Sequence[Mapping[str, float]] = (),
    arrays: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
    changes: Mapping[str, Any] | None = None,
    **choices: str,
) -> Path:
    """Write a run's folder. `changes`: settings by group, merged into SETTINGS."""
    settings = json.loads(json.dumps(SETTINGS))
    for key, value in (changes or {}).items():
        settings[key] = settings.get(key, {}) | value if isinstance(value, dict) else value
    chosen = CHOICES | choices
    folder.mkdir(parents=True)
    about = {
        "name": folder.name,
        "seed": seed,
        "digest": f"{zlib.crc32(json.dumps([chosen, settings], sort_keys=True).encode()):08x}",
        "choices": chosen,
        "settings": settings | {"seed": seed},
        "capacities": ["resnet10", "resnet26"],
        "rounds": len(rows),
        "command": f"python run.py seed={seed} diagnostics=none",
    }
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"round": k, **row}) + "\n" for k, row in enumerate(rows, 1))
    )
    (folder / "summary.json").write_text(json.dumps({"status": "finished"}))
    for (kind, number), named in (arrays or {}).items():
        write_npz(folder / kind / f"round_{number:05d}.npz", named)
    return folder


def groups_of(*folders: Path) -> list[Group]:
    return grouped([find([folder]) for folder in folders])


def cka_run(
    folder: Path, seed: int = 0, deep: Sequence[float] = (0.2, 0.4, 0.6), **more: Any
) -> Path:
    """A run with CKA in each round: `deep` at layer2, and 0.9 at layer1; accuracy 10, 20, ...
    percent plus the seed.
    """
    rows = [
        {
            "test/acc": 10.0 * k + seed,
            "test/acc/resnet10": 8.0 * k,
            "test/acc/resnet26": 12.0 * k,
            "cka/layer1": 0.9,
            "cka/layer2": value,
        }
        for k, value in enumerate(deep, 1)
    ]
    matrix = np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    named = {
        "cka/layer1": np.ones((3, 3)),
        "cka/layer2": matrix,
        "client": np.array([7, 8, 9]),
        "level": np.array([1, 0, 1]),
        "name": np.array(["resnet26", "resnet10", "resnet26"]),
    }
    return make_run(
        folder, seed, rows, {("cka", k): named for k in range(1, len(deep) + 1)}, **more
    )


def gradient_run(
    folder: Path,
    updates: Mapping[int, Mapping[str, np.ndarray]],
    seed: int = 0,
    prefix: str = "",
    **more: Any,
) -> Path:
    """A run with these updates in these rounds; the clients' deltas are twice them."""
    at = edges()
    arrays, rows = {}, [{"test/acc": 10.0 + k} for k in range(max(updates))]
    for number, layers in updates.items():
        named: dict[str, Any] = {"edges": at.double().numpy()}
        for layer, values in layers.items():
            tensor = torch.from_numpy(values).float()
            named |= {
                f"clients/{layer}": count(2 * tensor, at).numpy(),
                f"update/{prefix}{layer}": count(tensor, at).numpy(),
                f"values/{prefix}{layer}": values.astype(np.float32),
            }
            rows[number - 1] |= {
                f"gradients/theta/{prefix}{layer}": 0.5,
                f"gradients/beta_positive/{prefix}{layer}": 60.0,
            }
        arrays["gradients", number] = named
    return make_run(folder, seed, rows, arrays, **more)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# --- measures ---


def test_cka_of_a_rotation_is_one_and_agrees_with_the_diagnostics() -> None:
    x, y = random(12, 5), random(12, 7, seed=1)
    rotation, _ = np.linalg.qr(random(5, 5, seed=2))
    assert linear_cka(x, 3.0 * x @ rotation + 1.0) == pytest.approx(1.0)
    for a, b in ((x, y), (x[:4], y[:4])):  # by columns, and by rows
        grams = torch.stack([gram(torch.from_numpy(z))[None] for z in (a, b)])
        assert linear_cka(a, b) == pytest.approx(float(cka_of_grams(grams, "biased")[0, 1]))
        assert linear_cka(a, b) == pytest.approx(linear_cka(b, a))
    one, other = np.eye(4)[:, :1] - 0.25, np.array([[0.0], [1.0], [-1.0], [0.0]])
    assert linear_cka(one, other) == pytest.approx(0.0)
    assert np.isnan(linear_cka(x, np.ones((12, 3))))


def test_cosine() -> None:
    x = random(3, 4)
    assert cosine(x, 2 * x) == pytest.approx(1.0) and cosine(x, -x) == pytest.approx(-1.0)
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert np.isnan(cosine(x, 0 * x))


def test_rank_correlation() -> None:
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 11.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([5.0, 4.0, -1.0])) == pytest.approx(-1.0)
    assert spearman(
        np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    ) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert np.isnan(spearman(np.array([1.0, 2.0]), np.array([1.0, 2.0])))
    assert np.isnan(spearman(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])))


def test_density_of_a_histogram() -> None:
    at, counts = np.array([-2.0, -1.0, 1.0, 4.0]), np.array([2, 6, 2])
    assert density(at, counts, at).tolist() == pytest.approx([0.2, 0.3, 2 / 30])
    assert density(at, counts, np.array([-2.0, 0.0, 4.0])).tolist() == pytest.approx([0.25, 0.125])
    assert density(at, counts, np.array([-9.0, -2.0])).tolist() == [0.0]
    assert reach(at, counts) == 4.0
    assert reach(at, np.array([1, 998, 1])) == 1.0
    assert reach(at, np.array([0, 5, 0])) == 1.0


def test_coarse_bins_lie_on_the_edges_and_hold_the_mass() -> None:
    own = edges().double().numpy()
    at = coarse(own, 0.01)
    assert set(at) <= set(own) and at.tolist() == (-at[::-1]).tolist() and at[-1] >= 0.01 > at[-2]
    assert np.diff(at).min() >= 0.0005 and len(at) > 20
    counts = count(torch.from_numpy(random(5000) * 0.003), edges()).numpy()
    assert (density(own, counts, at) * np.diff(at)).sum() == pytest.approx(1.0, abs=0.01)


# --- groups and labels ---


def test_groups_are_settings_without_the_seed_and_labels_are_what_differs(tmp_path: Path) -> None:
    for seed in (2, 0):
        make_run(tmp_path / f"b{seed}", seed, transform="none")
        make_run(tmp_path / f"a{seed}", seed, split="none", partition="iid")
    groups = groups_of(tmp_path)
    assert [g.label for g in groups] == [
        "IID, homogeneous, FedAvg + InCo",
        "Dirichlet 0.5, stage, FedAvg",
    ]
    assert [[run.name for run in g.runs] for g in groups] == [["a0", "a2"], ["b0", "b2"]]
    assert [g.label for g in groups_of(tmp_path / "b0", tmp_path / "a0")] == [
        groups[1].label,
        groups[0].label,
    ]
    assert [g.label for g in grouped([find([tmp_path])], ["x", "y"])] == ["x", "y"]
    with pytest.raises(
        ConfigError, match=r"--labels x: 1 given, and the runs make 2 groups \(IID, .*; Dirichlet"
    ):
        grouped([find([tmp_path])], ["x"])


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    (group,) = groups_of(tmp_path, tmp_path / "a")
    assert len(group.runs) == 1


def test_settings_beside_the_choices_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", changes={"local": {"lr": 0.1}})
    make_run(tmp_path / "b", changes={"local": {"lr": 0.01}})
    assert sorted(g.label for g in groups_of(tmp_path)) == [
        "Dirichlet 0.5, stage, FedAvg + InCo, local.lr=0.01",
        "Dirichlet 0.5, stage, FedAvg + InCo, local.lr=0.1",
    ]


def test_folders_without_about_and_summary_are_known_by_their_names(tmp_path: Path) -> None:
    for word, seed in (("inco", 0), ("inco", 1), ("none", 0)):
        folder = (
            tmp_path
            / f"digits-resnet_tiny-stage-fedavg-{word}-s{seed}-{'1' if word == 'inco' else '2'}2345678"
        )
        cka_run(folder, seed)
        (folder / "about.json").unlink()
        (folder / "summary.json").unlink()
    groups = groups_of(tmp_path)
    assert [(g.label, len(g.runs)) for g in groups] == [("FedAvg", 1), ("FedAvg + InCo", 2)]
    with paper_style():
        assert len(cka.methods(groups, NO).axes) > 3


# --- figures of CKA ---


def lines_of(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): [round(float(y), 6) for y in line.get_ydata()] for line in axes.lines}


def test_figure_1(tmp_path: Path) -> None:
    for seed, deep in ((0, (0.2, 0.4, 0.6)), (1, (0.4, 0.8, 0.8))):
        cka_run(tmp_path / f"a{seed}", seed, deep)
    cka_run(tmp_path / "b", deep=(0.6, 0.4, 0.2), partition="iid", split="none")
    groups = groups_of(tmp_path / "b", tmp_path)
    with paper_style():
        figure = cka.similarity_and_accuracy(groups, Options(last=2))
    similar, related = figure.axes
    # (0.5 + 0.8) / 2
    assert lines_of(similar) == {
        "IID, homogeneous": [0.9, 0.3],
        "Dirichlet 0.5, stage": [0.9, 0.65],
    }
    (band,) = similar.collections  # one seed has none
    assert sorted(
        {round(y, 6) for x, y in band.get_paths()[0].vertices if x == 1}
    ) == pytest.approx([0.65 - 0.15 * 2**0.5, 0.65 + 0.15 * 2**0.5], abs=1e-6)
    assert [t.get_text() for t in similar.get_xticklabels()] == [
        "1",
        "2",
    ] and similar.get_xlabel() == "stage"
    one, other = related.lines
    assert one.get_xdata().tolist() == [0.6, 0.4, 0.2] and one.get_ydata().tolist() == [10, 20, 30]
    assert other.get_xdata().tolist() == pytest.approx(
        [0.3, 0.6, 0.7]
    ) and other.get_ydata().tolist() == [10.5, 20.5, 30.5]
    assert [t.get_text() for t in related.get_legend().get_texts()] == [
        "$\\rho$ = \N{MINUS SIGN}1.00 (3 rounds)",
        "$\\rho$ = 1.00 (3 rounds)",
    ]


def test_figure_1_has_a_row_a_family(tmp_path: Path) -> None:
    cka_run(tmp_path / "a")
    rows = [{"test/acc": 1.0, "cka/blocks.10": 0.3, "cka/blocks.2": 0.7}]
    make_run(tmp_path / "b", rows=rows, model="vit_tiny")
    with paper_style():
        figure = cka.similarity_and_accuracy(groups_of(tmp_path), NO)
    assert [axes.get_title("left").split(":")[0] for axes in figure.axes] == [
        "(a) ResNet",
        "(b) ResNet",
        "(c) ViT",
        "(d) ViT",
    ]
    assert list(lines_of(figure.axes[2]).values()) == [[0.7, 0.3]]
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()] == ["2", "10"]


def test_figure_10(tmp_path: Path) -> None:
    for seed in (0, 1):
        cka_run(tmp_path / f"a{seed}", seed)
    cka_run(tmp_path / "b", transform="none")
    with paper_style():
        figure = cka.methods(groups_of(tmp_path), NO)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:2] == ["(a) similarity of clients", "(b) accuracy by capacity (last)"]
    assert {"(c) FedAvg\nlayer1", "(d) FedAvg + InCo\nlayer1", "layer2"} <= set(titles)
    assert sorted(bar.get_height() for bar in figure.axes[1].patches) == [24.0, 24.0, 36.0, 36.0]
    drawn = (
        next(axes for axes in figure.axes if axes.get_title("left") == "layer2")
        .images[0]
        .get_array()
    )
    # the smallest model first
    assert drawn.tolist() == [
        [1, 0.1, 0.3],
        [0.1, 1, 0.2],
        [0.3, 0.2, 1],
    ]
    ticks = next(
        axes for axes in figure.axes if axes.get_title("left") == "layer2"
    ).get_yticklabels()
    assert [(t.get_text(), t.get_position()[1]) for t in ticks] == [
        ("resnet10", 0.0),
        ("resnet26", 1.5),
    ]


def test_figure_17(tmp_path: Path) -> None:
    cka_run(tmp_path / "a")
    cka_run(tmp_path / "b", partition="iid")
    with paper_style():
        figure = cka.environments(groups_of(tmp_path), Options(layers=("layer2",)))
    maps = [axes for axes in figure.axes if axes.images]
    assert (
        len(maps) == 2
        and maps[0].get_title() == "layer2"
        and [m.get_ylabel() for m in maps] == ["IID", "Dirichlet 0.5"]
    )
    with pytest.raises(
        ConfigError, match=r"--layers layer9: no such tap in all groups; use some of layer1, layer2"
    ):
        cka.environments(groups_of(tmp_path), Options(layers=("layer9",)))


def test_many_taps_are_thinned_out(tmp_path: Path) -> None:
    taps = {f"cka/blocks.{k}": np.eye(2) for k in range(12)}
    arrays = taps | {
        "client": np.arange(2),
        "level": np.arange(2),
        "name": np.array(["vit8", "vit9"]),
    }
    make_run(tmp_path / "a", rows=[{key: 0.5 for key in taps}], arrays={("cka", 1): arrays})
    with paper_style():
        figure = cka.environments(groups_of(tmp_path), NO)
    shown = [axes.get_title() for axes in figure.axes if axes.images]
    assert len(shown) == 6 and (shown[0], shown[-1]) == ("blocks.0", "blocks.11")


def test_no_cka_is_told_with_a_command(tmp_path: Path) -> None:
    make_run(tmp_path / "a", rows=[{"test/acc": 1.0}])
    with pytest.raises(
        ConfigError,
        match=(
            r"figure 1: no CKA in .*a; such a run is made by\n  python run.py seed=0"
            r" diagnostics=cka$"
        ),
    ):
        cka.similarity_and_accuracy(groups_of(tmp_path), NO)


def test_groups_without_a_common_tap_are_told(tmp_path: Path) -> None:
    cka_run(tmp_path / "a")
    arrays = {
        "cka/hidden": np.eye(1),
        "client": np.zeros(1),
        "level": np.zeros(1),
        "name": np.array(["cnn"]),
    }
    make_run(tmp_path / "b", rows=[{"cka/hidden": 0.5}], arrays={("cka", 1): arrays}, model="cnn")
    with pytest.raises(
        ConfigError,
        match=(
            r"figure 17: the groups have no tap in common \(.*hidden.*\); give one model per figure"
        ),
    ):
        cka.environments(groups_of(tmp_path), NO)


# --- figures of gradients ---


def two_environments(tmp_path: Path, **more: Any) -> list[Group]:
    """Layer a of both is equal, b opposite, c not sent by the second in round 2."""
    a, b, c = (random(6, 8, seed=k) * 0.01 for k in range(3))
    own = {"layer1.0.conv1": a, "layer1.0.conv2": b, "layer2.0.conv1": c}
    gradient_run(tmp_path / "a", {1: own, 2: own}, partition="iid")
    gradient_run(
        tmp_path / "b", {1: own | {"layer1.0.conv2": -b}, 2: {"layer1.0.conv1": a}}, **more
    )
    return groups_of(tmp_path / "a", tmp_path / "b")


def test_figure_2(tmp_path: Path) -> None:
    groups = two_environments(tmp_path)
    with paper_style():
        figure = gradients.across_environments(groups, NO)
        opposite = gradients.across_environments(
            groups, Options(measure="cosine", layers=("layer1.0.conv2",), of="update")
        )
    first, second, third, fourth = figure.axes
    found = lines_of(first)
    assert found["0.conv1"] == [1.0, 1.0] and found["0.conv2"] == [1.0]  # round 2: not sent
    assert first.lines[1].get_xdata().tolist() == [1] and 0 < found["rows shuffled"][0] < 1
    assert lines_of(second)["0.conv1"] == [1.0]
    assert [axes.get_title("left") for axes in (third, fourth)] == [
        "(c) IID, round 2",
        "(d) Dirichlet 0.5, round 2",
    ]
    line = third.lines[0]
    assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(0.95, abs=0.06)
    assert max(abs(line.get_xdata())) > 0.015  # deltas of clients: twice the update
    assert (
        lines_of(opposite.axes[0])["0.conv2"] == [-1.0]
        and opposite.axes[1].get_xlabel() == "entries of the update"
    )


def test_figure_2_pairs_by_seed_and_reads_the_largest_of_separate_models(tmp_path: Path) -> None:
    x = {seed: random(6, 8, seed=seed) for seed in (0, 1)}
    for seed in (0, 1):
        gradient_run(tmp_path / f"a{seed}", {1: {"layer1.0.conv1": x[seed]}}, seed, partition="iid")
        gradient_run(
            tmp_path / f"b{seed}",
            {1: {"layer1.0.conv1": x[seed]}},
            seed,
            prefix="1-resnet26/",
            split="isolated",
        )
        path = tmp_path / f"b{seed}" / "gradients" / "round_00001.npz"
        with np.load(path) as kept:
            named = dict(kept)
        write_npz(
            path,
            named | {"values/0-resnet10/layer1.0.conv1": random(6, 8, seed=9).astype(np.float32)},
        )
    groups = groups_of(tmp_path)
    found = gradients.similarity("figure 2", groups[0], groups[1], ["layer1.0.conv1"], linear_cka)[
        "layer1.0.conv1"
    ]
    assert found.mean.tolist() == pytest.approx([1.0]) and found.n == 2
    assert found.sd is not None and found.sd.tolist() == pytest.approx([0.0])


def test_figure_2_says_what_it_lacks(tmp_path: Path) -> None:
    x = {"layer1.0.conv1": random(4, 4)}
    gradient_run(tmp_path / "a", {1: x})
    with pytest.raises(
        ConfigError,
        match=(
            r"figure 2 compares two settings, and these runs make 1 \(.*\n  python run.py -m part"
        ),
    ):
        gradients.across_environments(groups_of(tmp_path), NO)
    gradient_run(tmp_path / "b", {1: x}, seed=1, partition="iid")
    with pytest.raises(
        ConfigError,
        match=r"equal seed, and there are none: IID has 1, Dirichlet 0.5 0; run both with seed=0",
    ):
        gradients.across_environments(groups_of(tmp_path), NO)
    gradient_run(tmp_path / "c", {2: x}, partition="iid")
    with pytest.raises(ConfigError, match=r"figure 2: no round was measured in both"):
        gradients.across_environments(groups_of(tmp_path / "a", tmp_path / "c"), NO)
    gradient_run(tmp_path / "d", {1: {"layer1.0.conv1": random(4, 5)}}, transform="none")
    with pytest.raises(
        ConfigError, match=r"layer1.0.conv1 has shape \(4, 4\) in one run and \(4, 5\) in the other"
    ):
        gradients.across_environments(groups_of(tmp_path / "a", tmp_path / "d"), NO)
    gradient_run(tmp_path / "e", {1: {"fc": random(4, 5)}}, transform="none")
    with pytest.raises(
        ConfigError,
        match=(
            r"figure 2: the groups have no layer in common \(first of each: layer1.0.conv1 and fc\)"
        ),
    ):
        gradients.across_environments(groups_of(tmp_path / "a", tmp_path / "e"), NO)
    with pytest.raises(
        ConfigError, match=r"--layers fc: no such layer in all groups; use some of layer1.0.conv1"
    ):
        gradients.distributions(groups_of(tmp_path / "a"), Options(layers=("fc",)))
    make_run(tmp_path / "f", partition="shards")
    with pytest.raises(
        ConfigError,
        match=r"figure 2: no gradients in .*f; .*\n  python run.py seed=0 diagnostics=gradients",
    ):
        gradients.across_environments(groups_of(tmp_path / "a", tmp_path / "f"), NO)


def test_figure_3(tmp_path: Path) -> None:
    layers = {
        f"layer{s}.{b}.conv1": random(6, 6, seed=s + b) * 0.01 for s in (1, 2) for b in range(3)
    }
    gradient_run(tmp_path / "a", {1: layers, 3: layers, 4: layers})
    gradient_run(tmp_path / "b", {1: layers, 3: layers}, partition="iid")
    with paper_style():
        figure = gradients.distributions(groups_of(tmp_path), NO)
    panels = np.array(figure.axes[:8]).reshape(2, 4)
    assert [axes.get_title() for axes in panels[0]] == [
        "layer1.0.conv1",
        "layer1.2.conv1",
        "layer2.0.conv1",
        "layer2.2.conv1",
    ]
    assert [len(axes.lines) for axes in panels[:, 0]] == [2, 3]
    for row in range(2):  # nothing is cut off
        assert panels[row, 0].get_ylim()[1] >= max(
            line.get_ydata().max() for line in panels[row, 0].lines
        )


def test_vit_layers_belong_together_across_blocks(tmp_path: Path) -> None:
    layers = {
        f"blocks.{b}.{part}": random(4, 1, seed=b) for b in (2, 10) for part in ("norm1", "norm2")
    } | {"head": random(4, 4)}
    gradient_run(tmp_path / "a", {1: layers}, partition="iid")
    gradient_run(tmp_path / "b", {1: layers})
    with paper_style():
        figure = gradients.across_environments(groups_of(tmp_path), NO)
    titles = [axes.get_title("left").split(", ")[-1] for axes in figure.axes[:2]]
    assert titles == ["blocks.*.norm1", "blocks.*.norm2"] and list(lines_of(figure.axes[0]))[
        :2
    ] == ["2", "10"]


def test_figure_16(tmp_path: Path) -> None:
    x = random(5, 6)
    layers = {"layer1.0.conv1": x, "layer1.0.conv2": 2 * x, "layer2.0.conv1": x}
    gradient_run(tmp_path / "a", {1: layers}, partition="iid")
    gradient_run(tmp_path / "b", {1: {name: 3 * values for name, values in layers.items()}})
    groups = groups_of(tmp_path)
    table = gradients.statistics(groups[0], groups[1], list(layers))
    assert table["layer1.0.conv1"] == pytest.approx(
        {
            "cka": 1.0,
            "mean": 2 * abs(x.mean()),
            "variance": 5 * x.var(),
            "covariance": 3 * x.var(),
            "difference": 2 * np.abs(x).mean(),
        },
        rel=1e-5,
    )
    relative = gradients.relative(table)
    assert [
        round(relative["layer1.0.conv2"][key], 4)
        for key in ("cka", "mean", "variance", "covariance", "difference")
    ] == [1, 2, 4, 4, 2]
    assert relative["layer2.0.conv1"]["variance"] == 1.0
    with paper_style():
        figure = gradients.relations(groups, NO)
    assert [axes.get_title("left")[:7] for axes in figure.axes] == [
        "(a) mea",
        "(b) var",
        "(c) cov",
        "(d) dif",
    ]
    assert sorted(figure.axes[1].lines[0].get_ydata().tolist()) == pytest.approx(
        [1.0, 4.0], rel=1e-5
    )


# --- figures of accuracy ---


def scored(folder: Path, accuracy: float, seed: int = 0, **more: Any) -> Path:
    return make_run(
        folder,
        seed,
        [
            {"test/acc": accuracy + 2, "update/norm": 1.0},
            {"test/acc": accuracy, "update/norm": 0.5},
        ],
        **more,
    )


def test_figure_7_finds_what_varies(tmp_path: Path) -> None:
    for word, extra in (("inco", 3.0), ("none", 0.0)):
        for size in (32, 64, 128):
            for seed in (0, 1):
                changes = {"local": {"batch_size": size}}
                scored(
                    tmp_path / f"{word}-{size}-{seed}",
                    100 - size / 2 + extra + 2 * seed,
                    seed,
                    transform=word,
                    changes=changes,
                )
        for scale in (1.0, 2.0):
            changes = {"uplink": {"scale": scale}}
            scored(
                tmp_path / f"{word}-n{scale}",
                60 - scale + extra,
                transform=word,
                changes=changes,
                uplink="noise",
            )
    groups = groups_of(tmp_path)
    with paper_style():
        figure = scores.robustness(groups, NO)
        best = scores.robustness(groups, Options(score="best", x="local.batch_size"))
    sizes, noise = figure.axes
    assert sizes.get_xlabel() == "batch size" and sizes.containers[0].lines[
        0
    ].get_ydata().tolist() == [85.0, 69.0, 37.0]
    assert [c.get_label() for c in sizes.containers] == ["FedAvg", "FedAvg + InCo"]
    # scale 0 is the clean uplink
    assert noise.containers[1].lines[0].get_ydata().tolist() == [
        88.0,
        62.0,
        61.0,
    ]
    assert noise.containers[1].lines[0].get_xdata().tolist() == [0, 1, 2]
    assert len(best.axes) == 1 and best.axes[0].containers[0].lines[0].get_ydata().tolist() == [
        87.0,
        71.0,
        39.0,
    ]
    with pytest.raises(
        ConfigError, match=r"--x num_clients: the same number, or none, in all groups"
    ):
        scores.robustness(groups, Options(x="num_clients"))


def test_figure_7_without_anything_that_varies(tmp_path: Path) -> None:
    scored(tmp_path / "a", 1.0)
    scored(tmp_path / "b", 2.0, transform="none")
    with pytest.raises(
        ConfigError,
        match=(
            r"figure 7: no number among the settings varies.*\n  python run.py -m"
            r" local.batch_size=32"
        ),
    ):
        scores.robustness(groups_of(tmp_path), NO)


def test_figure_8(tmp_path: Path) -> None:
    for k, word in enumerate(("inco", "no_normalization", "none")):
        for alpha in (0.5, 1.0):
            for seed in (0, 1):
                changes = {"partition": {"alpha": alpha}}
                scored(
                    tmp_path / f"{word}-{alpha}-{seed}",
                    70 - k + 10 * alpha + 2 * seed,
                    seed,
                    transform=word,
                    changes=changes,
                )
    groups = groups_of(tmp_path)
    with paper_style():
        plain, marked = scores.ablation(groups, NO), scores.ablation(groups, Options(paper=True))
    bars = sorted(
        bar.get_height() for bar in plain.axes[0].patches if np.isfinite(bar.get_height())
    )
    assert bars == [74.0, 75.0, 76.0, 79.0, 80.0, 81.0]
    assert [t.get_text() for t in plain.axes[0].get_xticklabels()] == [
        "Dirichlet 0.5",
        "Dirichlet 1",
    ]
    assert (
        plain.axes[0].get_title("left") == "CIFAR-10, FedAvg" and plain.axes[0].get_ylim()[0] == 0
    )
    lines = [
        line
        for line in marked.axes[0].lines
        if line.get_markersize() == 9 and np.isfinite(line.get_ydata()[0])
    ]
    told = sorted(float(line.get_ydata()[0]) for line in lines)
    assert told == [60.0, 64.0, 67.0, 68.0, 68.0, 71.0]
    assert not [line for line in plain.axes[0].lines if line.get_markersize() == 9]


def test_the_papers_values_need_its_data_alpha_and_method(tmp_path: Path) -> None:
    for number, more in enumerate(
        (
            {"dataset": "digits"},
            {"algorithm": "fedprox"},
            {"split": "width"},
            {"transform": "add_noise"},
        )
    ):
        scored(tmp_path / f"{number}", 50.0, **more)
    scored(tmp_path / "alpha", 50.0, changes={"partition": {"alpha": 0.1}})
    scored(tmp_path / "own", 50.0, dataset="svhn", transform="neither")
    told = {group.runs[0].name: scores.paper_value(group) for group in groups_of(tmp_path)}
    assert told == {"0": None, "1": None, "2": None, "3": None, "alpha": None, "own": 85.0}


def test_two_groups_in_one_bar_are_told(tmp_path: Path) -> None:
    scored(tmp_path / "a", 1.0, changes={"local": {"lr": 0.1}})
    scored(tmp_path / "b", 2.0)
    with pytest.raises(
        ConfigError,
        match=(
            r"two groups would be one bar \(Dirichlet 0.5, inco\); they differ in local.lr;"
            r" give one"
        ),
    ):
        scores.ablation(groups_of(tmp_path), NO)


def test_figure_20(tmp_path: Path) -> None:
    for seed in (0, 1):
        scored(tmp_path / f"a{seed}", 50.0 + 2 * seed, seed)
    scored(tmp_path / "b", 40.0, transform="none")
    rows = [{"test/acc": 45.0, "update/norm": 2.0, "noise/std/a": 0.1, "noise/std/b": 0.3}]
    make_run(tmp_path / "c", rows=rows, transform="add_noise")
    groups = groups_of(tmp_path)
    with paper_style():
        figure = scores.convergence(groups, NO)
    accuracy, norm, noise, table = figure.axes
    assert lines_of(accuracy) == {
        "FedAvg": [42.0, 40.0],
        "FedAvg + InCo": [53.0, 51.0],
        "FedAvg + noise": [45.0],
    }
    assert lines_of(norm)["FedAvg"] == [1.0, 0.5] and lines_of(noise) == {"FedAvg + noise": [0.2]}
    assert len(table.tables) == 1
    assert (
        scores.convergence_table(groups, NO)
        == "| method | last | best | seeds |\n| --- | ---: | ---: | ---: |\n| FedAvg | 40.00 |"
        " 42.00 | 1 |\n| FedAvg + InCo | 51.00 ± 1.41 | 53.00 ± 1.41 | 2 |\n| FedAvg + noise |"
        " 45.00 | 45.00 | 1 |"
    )


# --- figure 9 ---


def mixed(
    folder: Path,
    theta: Sequence[float],
    positive: Sequence[float],
    source: str = "inco",
    seed: int = 0,
    **more: Any,
) -> Path:
    rows = [
        {
            f"{source}/{what}/layer{k}.1.conv1": value + k
            for k in (1, 2)
            for what, value in (("theta", t), ("beta_positive", b))
        }
        for t, b in zip(theta, positive, strict=True)
    ]
    return make_run(folder, seed, rows, **more)


def test_figure_9(tmp_path: Path) -> None:
    mixed(tmp_path / "a0", [0.0, 1.0], [50.0, 60.0])
    mixed(tmp_path / "a1", [1.0, 2.0], [70.0, 80.0], seed=1)
    mixed(tmp_path / "b", [3.0], [10.0], transform="no_optimization")
    groups = groups_of(tmp_path)
    with paper_style():
        figure = mixing.theta_and_beta(groups, NO)
    theta, first, second = figure.axes
    assert lines_of(theta)["FedAvg + InCo"] == [2.0, 3.0] and lines_of(theta)[
        "FedAvg + InCo w/o O"
    ] == [4.0, 5.0]
    spread = np.array([0.0, 1.0, 1.0, 2.0]).std(ddof=1)
    assert {round(y - 2, 6) for x, y in theta.collections[0].get_paths()[0].vertices if x == 0} == {
        round(-spread, 6),
        round(spread, 6),
    }
    assert any(
        list(line.get_ydata()) == [1.0, 1.0] and line.get_linestyle() == "--"
        for line in theta.lines
    )
    assert (first.get_title("left"), second.get_title("left")) == (
        "(b) layer1.1.conv1",
        "(c) layer2.1.conv1",
    )
    assert lines_of(first)["FedAvg + InCo"] == [61.0, 71.0]
    assert mixing.beta_table(groups, NO).splitlines()[2:] == [
        "| layer | FedAvg + InCo | FedAvg + InCo w/o O |",
        "| --- | ---: | ---: |",
        "| layer1.1.conv1 | 66.0 | 11.0 |",
        "| layer2.1.conv1 | 67.0 | 12.0 |",
    ]


def test_figure_9_reads_what_all_groups_have(tmp_path: Path) -> None:
    mixed(tmp_path / "a", [1.0], [50.0])
    mixed(tmp_path / "b", [2.0], [50.0], source="gradients", transform="none")
    with pytest.raises(
        ConfigError,
        match=(
            r"figure 9: no theta in .*; such a run is made by\n  python run.py seed=0"
            r" diagnostics=gradients"
        ),
    ):
        mixing.theta_and_beta(groups_of(tmp_path), NO)
    mixed(tmp_path / "c", [2.0], [50.0], source="gradients")
    assert mixing.mixed_layers(groups_of(tmp_path / "b", tmp_path / "c"))[0] == "gradients"


def test_figure_9_draws_features(tmp_path: Path) -> None:
    mixed(tmp_path / "a", [1.0], [50.0])
    cloud = {
        "points": random(4, 2),
        "name": np.array(["s", "s", "t", "t"]),
        "title": np.array("X"),
        "separation": np.array(0.25),
    }
    write_npz(tmp_path / "x.npz", cloud)
    with paper_style():
        figure = mixing.theta_and_beta(
            groups_of(tmp_path / "a"), Options(tsne=(tmp_path / "x.npz",))
        )
    panel = figure.axes[-1]
    assert (
        panel.get_title("left") == "(d) X"
        and panel.get_xlabel() == "within / between capacities: 0.25"
    )
    assert [c.get_label() for c in panel.collections] == ["s", "t"]
    assert panel.collections[1].get_offsets().tolist() == cloud["points"][2:].tolist()
    write_npz(tmp_path / "y.npz", {"points": random(4, 2)})
    with pytest.raises(
        DataError,
        match=(
            r"--tsne .*y.npz: no name in it; make it with: python -m inco.paper.features tsne RUN"
        ),
    ):
        mixing.theta_and_beta(groups_of(tmp_path / "a"), Options(tsne=(tmp_path / "y.npz",)))
    with pytest.raises(DataError, match=r"--tsne .*z.npz: cannot read it"):
        mixing.theta_and_beta(groups_of(tmp_path / "a"), Options(tsne=(tmp_path / "z.npz",)))


# --- the command line ---


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """Two groups with all that figures ask for."""
    x = {f"layer{s}.{b}.conv1": random(4, 6, seed=s + 3 * b) * 0.01 for s in (1, 2) for b in (0, 1)}
    for word, alpha in (("inco", 0.5), ("none", 1.0)):
        folder = gradient_run(
            tmp_path / "runs" / word,
            {1: x, 2: x},
            transform=word,
            changes={"partition": {"alpha": alpha}},
        )
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        more = {
            "cka/layer1": 0.9,
            "cka/layer2": 0.8,
            "update/norm": 1.0,
            "test/acc/resnet10": 50.0,
            "test/acc/resnet26": 60.0,
        }
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(row | more) + "\n" for row in rows)
        )
        about = {
            "client": np.arange(2),
            "level": np.arange(2),
            "name": np.array(["resnet10", "resnet26"]),
        }
        write_npz(
            folder / "cka" / "round_00002.npz",
            about | {"cka/layer1": np.eye(2), "cka/layer2": np.eye(2)},
        )
    return tmp_path


@pytest.mark.full
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.numbers[0]))
def test_every_figure_is_drawn_twice_with_the_same_bytes(
    everything: Path,
    entry: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(everything)
    number = entry.numbers[-1]
    extra = ["--x", "partition.alpha"] if "x" in entry.options else []
    assert main([str(number), "runs", *extra]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"figure{number}.png",
        f"figure{number}.pdf",
    ]
    with Image.open(f"figure{number}.png") as picture:
        # 3.35 and 6.9 in at 300 dpi
        assert picture.format == "PNG" and picture.width in (
            1005,
            2070,
        )
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    before = [Path(f"figure{number}{suffix}").read_bytes() for suffix in (".png", ".pdf")]
    assert before[1].startswith(b"%PDF") and b"/Type3" not in before[1]  # TrueType outlines
    assert main([str(number), "runs", *extra, "--out", "again"]) == 0
    assert [Path(f"again{suffix}").read_bytes() for suffix in (".png", ".pdf")] == before


def test_out_with_a_suffix_writes_that_alone(
    everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["1", str(everything / "runs"), "--out", str(everything / "one.pdf")]) == 0
    assert [p.name for p in everything.iterdir() if p.name.startswith("one")] == ["one.pdf"]
    assert main(["1", str(everything / "runs"), "--out", "one.svg"]) == 2
    assert "--out one.svg: figures are written as .png and .pdf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["4", "RUNS"], 2, "figure 4: a drawing of the method, not data; there are 1, 2, 3, 7"),
        (["26", "RUNS"], 2, "figure 26: the paper has figures 1 to 25"),
        (["1"], 2, "figure 1 of which runs?"),
        ([], 2, "which figure? give a number and run folders, or --list"),
        (["1", "RUNS/nowhere"], 3, "no such folder"),
        (
            ["1", "RUNS", "--measure", "cosine"],
            2,
            "--measure with figure 1: it is for 2, 12; this one has --labels, --last, --layers",
        ),
        (["1", "RUNS", "--last", "0"], 2, "0: must be a whole number, 1 or more"),
        (["16", "RUNS/inco"], 2, "figure 16 compares two settings, and these runs make 1"),
        (
            ["10", "RUNS", "--labels", "a,b,c"],
            2,
            "--labels a,b,c: 3 given, and the runs make 2 groups",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    everything: Path, words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUNS", str(everything / "runs")) for word in words]
    try:
        assert main(words) == code
    except SystemExit as ended:  # argparse
        assert ended.code == code
    assert told in capsys.readouterr().err


def test_unfinished_runs_are_drawn_with_a_note(
    everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (everything / "runs" / "inco" / "summary.json").unlink()
    assert main(["1", str(everything / "runs"), "--out", str(everything / "f")]) == 0
    told = capsys.readouterr().err
    assert (
        "inco is running, after round 2 of 2; it is drawn as far as it is" in told
        and "none" not in told
    )


@pytest.mark.full
def test_as_typed_and_without_matplotlib_until_something_is_drawn(everything: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inco.paper.figures", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    numbers = {
        int(word)
        for line in done.stdout.splitlines()
        for word in line[:16].replace(",", " ").split()
    }
    assert numbers == set(range(1, 26))
    code = (
        "import sys, inco.paper.figures.__main__ as m; m.main(['--list']); print(*{'torch',"
        " 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    light = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert light.stderr.strip() == ""
    words = [
        "17",
        str(everything / "runs"),
        "--out",
        str(everything / "typed.png"),
        "--labels",
        "one,two",
    ]
    typed = subprocess.run(
        [sys.executable, "-m", "inco.paper.figures", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (typed.returncode, typed.stdout.strip(), typed.stderr) == (
        0,
        str(everything / "typed.png"),
        "",
    )


def test_the_listing_and_the_numbers() -> None:
    assert set(FIGURES) == set(range(1, 26)) - {4, 5, 6, 11}

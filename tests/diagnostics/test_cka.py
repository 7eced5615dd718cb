"""CKA: closed forms, a case by hand, an independent implementation; and as `diagnostics=cka`: what
is seen, kept, and left alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, TINY, TINY_VIT, named, settings_of, simulate, thinned, timeless

import inco.assembly as wiring
from inco.diagnostics import Subject
from inco.diagnostics.cka import CKA
from inco.diagnostics.similarity import Estimator, cka, gram, hsic
from inco.engine.ranks import Ranks
from inco.errors import ConfigError
from inco.flat import Layout
from inco.parts import problems as problems_of
from inco.records.arrays import ArrayStore
from inco.run.drawings import draw_cka

BOTH: tuple[Estimator, ...] = ("biased", "unbiased")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(x: torch.Tensor, y: torch.Tensor, estimator: Estimator) -> float:
    return float(cka(torch.stack([gram(x)[None], gram(y)[None]]), estimator)[0, 1])


def reference(x: np.ndarray, y: np.ndarray, estimator: Estimator) -> float:
    """By sums over indices: Gretton's biased statistic, and the U-statistic over all distinct i, j,
    q, r (Song et al., Eq. 4).
    """
    k, l, m = x @ x.T, y @ y.T, len(x)  # noqa: E741

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        if estimator == "biased":
            h = np.eye(m) - np.ones((m, m)) / m
            return float(np.trace(a @ h @ b @ h)) / (m - 1) ** 2
        total = 0.0
        for i in range(m):
            for j in range(m):
                for q in range(m):
                    for r in range(m):
                        if len({i, j, q, r}) == 4:
                            total += a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q])
        return total / (m * (m - 1) * (m - 2) * (m - 3))

    return statistic(k, l) / np.sqrt(statistic(k, k) * statistic(l, l))


@pytest.mark.parametrize("estimator", BOTH)
def test_orthogonal_scaled_and_shifted_copies_are_the_same(estimator: Estimator) -> None:
    x = drawn(0, 12, 7)
    turned, _ = torch.linalg.qr(drawn(1, 7, 7))
    assert pair(x, x, estimator) == pytest.approx(1, abs=1e-12)
    assert pair(x, -3.5 * x @ turned, estimator) == pytest.approx(1, abs=1e-12)
    assert pair(x, torch.cat([x, x], 1) + 2.0, estimator) == pytest.approx(1, abs=1e-9)
    assert pair(x, x.view(12, 7, 1, 1), estimator) == pytest.approx(1, abs=1e-12)


def test_by_hand() -> None:
    """x = (0,0,1,1), y = (0,1,0,1): centred Grams are orthogonal; z = (0,0,0,1) has 1/4 with x, x 1
    with itself, z 9/16, all over 9.
    """
    x, y, z = (
        torch.tensor(v).double()[:, None] for v in ([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1])
    )
    assert pair(x, y, "biased") == pytest.approx(0, abs=1e-12)
    grams = torch.stack([gram(x), gram(z)])
    assert hsic(grams, grams, "biased").flatten().tolist() == pytest.approx(
        [1 / 9, 1 / 36, 1 / 36, 1 / 16]
    )
    assert pair(x, z, "biased") == pytest.approx((1 / 4) / (1 * 3 / 4))


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_an_independent_implementation(estimator: Estimator, seed: int) -> None:
    x = drawn(seed, 9, 5)
    y = x[:, :3] + drawn(seed + 10, 9, 3)
    assert pair(x, y, estimator) == pytest.approx(
        reference(x.numpy(), y.numpy(), estimator), abs=1e-10
    )


def test_mini_batches_estimate_what_all_images_do() -> None:
    """Over many draws of mini-batches the unbiased HSIC has the mean of the whole set's, which the
    biased one has not.
    """
    x, m = drawn(3, 40, 6), 5
    y = x[:, :2] + drawn(4, 40, 2)
    whole = {e: float(hsic(gram(x)[None], gram(y)[None], e)) for e in BOTH}
    chosen = [
        torch.randperm(40, generator=torch.Generator().manual_seed(k))[:m] for k in range(20_000)
    ]
    means = {
        e: torch.stack(
            [hsic(gram(x[c])[None], gram(y[c])[None], e).squeeze() for c in chosen[:4000]]
        )
        for e in BOTH
    }
    error = means["unbiased"].std() / 4000**0.5
    assert abs(means["unbiased"].mean() - whole["unbiased"]) < 4 * error
    assert abs(means["biased"].mean() - whole["unbiased"]) > 20 * error


def test_every_subset_once_is_the_whole_exactly() -> None:
    """The U-statistic over a set is the mean of those of all its subsets of one size."""
    x, y = drawn(5, 7, 3), drawn(6, 7, 2) + drawn(5, 7, 3)[:, :2]
    parts = [
        hsic(gram(x[list(c)])[None], gram(y[list(c)])[None], "unbiased").item()
        for c in combinations(range(7), 4)
    ]
    assert np.mean(parts) == pytest.approx(
        hsic(gram(x)[None], gram(y)[None], "unbiased").item(), rel=1e-9
    )


def test_batches_are_averaged_before_the_ratio() -> None:
    x, y = drawn(7, 3, 8, 5), drawn(8, 3, 8, 5) + drawn(7, 3, 8, 5)
    grams = torch.stack([torch.stack([gram(v) for v in z]) for z in (x, y)])
    means = [
        [
            np.mean([hsic(a[None], b[None], "unbiased").item() for a, b in zip(p, q, strict=True)])
            for q in grams
        ]
        for p in grams
    ]
    assert float(cka(grams)[0, 1]) == pytest.approx(
        means[0][1] / np.sqrt(means[0][0] * means[1][1]), rel=1e-9
    )


def test_a_constant_layer_is_like_nothing() -> None:
    found = cka(torch.stack([gram(drawn(0, 8, 3))[None], gram(torch.zeros(8, 3))[None]]), "biased")
    assert found[0, 0] == pytest.approx(1) and found[1].isnan().all() and found[:, 1].isnan().all()


SEE = ("diagnostics=cka", "diagnostics.images=16", "diagnostics.batch=8", "diagnostics.every=1")


@pytest.mark.parametrize(
    ("base", "models"), thinned((TINY, TINY_VIT), ("clients", "capacities")), ids=named
)
def test_a_run_is_the_same_and_says_how_alike_its_models_are(
    base: tuple[str, ...], models: str
) -> None:
    plain, rows, _ = simulate(*base)
    state, seen, run = simulate(*base, *SEE, f"diagnostics.models={models}")
    assert torch.equal(plain.w, state.w) and torch.equal(plain.b, state.b)
    taps = {key for key in seen[0] if key.startswith("cka/")}
    assert timeless(
        [{k: v for k, v in row.items() if not k.startswith("cka/")} for row in seen]
    ) == timeless(rows)
    levels = [set(run.split.taps(level)) for level in range(5)]
    assert taps == {f"cka/{tap}" for tap in levels[-1] & levels[-2]}, (
        "where there are two models to compare"
    )
    assert all(row["time/cka_s"] > 0 for row in seen)
    arrays = run.simulator.diagnostics.arrays["cka"]
    assert arrays["level"].tolist() == [0, 1, 2, 3, 4] and (arrays["client"] >= 0).all() == (
        models == "clients"
    )
    for tap in taps:
        matrix = arrays[tap]
        have = [level for level in range(5) if tap.removeprefix("cka/") in run.split.taps(level)]
        own = matrix.diagonal()[np.isfinite(matrix.diagonal())]
        assert len(own) >= 2 and np.allclose(own, 1), (
            "each is like itself; a layer of dead ReLUs, which a ViT has not, is like nothing"
        )
        assert base is TINY or np.isfinite(matrix[np.ix_(have, have)]).all()
        assert (
            np.allclose(matrix, matrix.T, equal_nan=True)
            and np.isnan(np.delete(matrix, have, 0)).all()
        )
        off = matrix[np.triu_indices(5, 1)]
        assert seen[-1][tap] == pytest.approx(np.nanmean(off))


def test_the_capacities_are_those_of_a_direct_computation() -> None:
    """On the server's models, by hooks of our own and the definition."""
    state, _, run = simulate(
        *TINY_VIT,
        *SEE,
        "diagnostics.models=capacities",
        "diagnostics.estimator=biased",
        "diagnostics.batch=16",
    )
    probe, found = run.simulator.diagnostics._images, {}
    for level, sub in run.simulator.population.submodels(2).items():
        model = sub.build().eval()
        views = sub.params.layout.views(state.w[sub.params.index])
        model.load_state_dict({name: views[name] for name in model.state_dict()})
        model.get_submodule("blocks.0").register_forward_hook(
            lambda m, i, out, level=level: found.update({level: out.detach()})
        )
        with torch.no_grad():
            model(probe)
    acts = {level: out.flatten(1).double().numpy() for level, out in found.items()}
    expected = [[reference(acts[a], acts[b], "biased") for b in range(5)] for a in range(5)]
    assert np.allclose(run.simulator.diagnostics.arrays["cka"]["cka/blocks.0"], expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(
    ("split", "base", "models"),
    thinned(
        ("none", "isolated", "width", "rolling", "scalefl", "inclusive"),
        (TINY, TINY_VIT),
        ("clients", "capacities"),
    ),
    ids=named,
)
def test_any_split_can_be_looked_at(base: tuple[str, ...], split: str, models: str) -> None:
    words = [word for word in base if not word.startswith("split=")] + [
        f"split={split}",
        "transform=none",
        f"diagnostics.models={models}",
    ]
    _, rows, run = simulate(*words, *SEE, rounds=1)
    keys = {key for key in rows[0] if key.startswith("cka/")}
    assert len(run.simulator.diagnostics.arrays["cka"]["level"]) == (
        5 if models == "clients" else len(run.split.names)
    )
    assert bool(keys) == (split != "none" or models == "clients")


def test_a_model_without_taps_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no taps"):
        CKA(1, 8, 8).bind(
            Subject(
                torch.zeros(8, 1, 4, 4), [{}, {}], ["small", "large"], Layout(()), lambda style: ()
            )
        )


def test_only_some_rounds_and_some_clients() -> None:
    _, rows, run = simulate(*TINY, *SEE[:-1], "diagnostics.every=2", "diagnostics.most=3", rounds=3)
    assert [any(key.startswith("cka/") for key in row) for row in rows] == [True, True, False]
    _, _, run = simulate(*TINY, *SEE[:-1], "diagnostics.every=2", "diagnostics.most=3", rounds=2)
    assert len(run.simulator.diagnostics.arrays["cka"]["client"]) == 3


def test_arrays_of_rounds_that_are_dropped_are_dropped(tmp_path: Path) -> None:
    store = ArrayStore(tmp_path)
    for number in (1, 2, 3):
        store.keep(number, {"cka": {"cka/a": np.eye(number)}, "gradients": {"b": np.zeros(number)}})
    store.keep(4, {})
    store.rewind(2)
    assert (
        store.rounds("cka") == store.rounds("gradients") == [1, 2] and store.rounds("other") == []
    )
    assert store.read("gradients", 2)["b"].tolist() == [0, 0]
    assert sorted(p.name for p in (tmp_path / "cka").iterdir()) == [
        "round_00001.npz",
        "round_00002.npz",
    ]
    with np.load(tmp_path / "cka" / "round_00002.npz", allow_pickle=False) as kept:
        assert np.array_equal(kept["cka/a"], np.eye(2))


def test_wrong_settings_are_told() -> None:
    assert (
        "diagnostics.models"
        in problems_of(settings_of("diagnostics=cka", "diagnostics.models=all"))[0]
    )
    (told,) = problems_of(settings_of("diagnostics=cka", "diagnostics.batch=100"))
    assert told.startswith("diagnostics.batch=100 with diagnostics.images=256: ") and told.endswith(
        "use diagnostics.batch=256"
    )
    with pytest.raises(
        ConfigError,
        match=r"diagnostics.batch=5 with diagnostics.images=16: .* use diagnostics.batch=16",
    ):
        CKA(1, 16, 5)
    with pytest.raises(ConfigError, match=r"diagnostics.batch=2 "):
        CKA(1, 16, 2)
    with pytest.raises(ConfigError, match=r"diagnostics.images=64: the test set has 40"):
        wiring.assemble(
            settings_of(*TINY, "diagnostics=cka", "diagnostics.images=64"),
            Ranks(0, 1, torch.device("cpu")),
        )


@pytest.mark.full
def test_any_number_of_workers_and_a_second_sitting_see_the_same(tmp_path: Path) -> None:
    words = [*TINY, *SEE, "rounds=3"]
    for name, more in (
        ("one", ["engine.workers=1"]),
        ("two", ["engine.workers=2"]),
        ("again", ["engine.workers=2", "rounds=1"]),
    ):
        run_py(tmp_path / name, *words, *more)
    run_py(tmp_path / "again", *words, "engine.workers=1")
    rows = {
        name: (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("one", "two", "again")
    }
    seen = {name: timeless([json.loads(line) for line in lines]) for name, lines in rows.items()}
    assert seen["one"] == seen["two"] == seen["again"] and any(
        key.startswith("cka/") for key in seen["one"][-1]
    )
    kept = {
        name: [(p.name, p.read_bytes()) for p in sorted((tmp_path / name / "cka").iterdir())]
        for name in rows
    }
    assert (tmp_path / "one" / "cka.png").read_bytes() == (
        tmp_path / "two" / "cka.png"
    ).read_bytes()
    assert kept["one"] == kept["two"] == kept["again"] and len(kept["one"]) == 3


@pytest.mark.full
@pytest.mark.parametrize(("models", "layers"), thinned((30, 10, 2), (1, 4, 12)))
def test_the_picture_is_a_png_of_bounded_size(tmp_path: Path, models: int, layers: int) -> None:
    some = np.random.default_rng(0).random((models, models))
    some[0] = np.nan
    arrays = {f"cka/layer{k}": some for k in range(layers)}
    about = {
        "client": np.arange(models) - 1,
        "level": np.arange(models)[::-1],
        "name": np.array(["resnet10"] * models),
    }
    draw_cka(arrays | about, "title", tmp_path / "cka.png")
    with Image.open(tmp_path / "cka.png") as picture:
        assert (
            picture.format == "PNG" and 200 < picture.width < 3200 and 200 < picture.height < 2600
        )
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
        assert len(colours) > 20


def run_py(folder: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "run.py", *words, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""`diagnostics=gradients` and `all`: histograms by hand, theta and beta against InCo's own, and
runs left as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import TINY, TINY_VIT, read_rows, settings_of, simulate, timeless

from inco.diagnostics.gradients import Gradients, kernel_products, sample
from inco.diagnostics.histogram import count, edges
from inco.errors import ConfigError
from inco.parts import problems as problems_of
from inco.records.arrays import ArrayStore
from inco.run.drawings import draw_gradients
from inco.server.cross_layer import mix, mixing

SEE = ("diagnostics=gradients", "diagnostics.every=1")


def arrays_of(run) -> dict[str, np.ndarray]:
    return run.simulator.diagnostics.arrays["gradients"]


def test_bins_are_symmetric_and_equally_wide_in_the_logarithm() -> None:
    at = edges().double()
    assert torch.equal(at, -at.flip(0)) and (at.diff() > 0).all() and len(at) == 2 * (11 * 20 + 1)
    positive = at[at > 0]
    assert positive[0].item() == pytest.approx(1e-9) and positive[-1].item() == pytest.approx(1e2)
    assert np.allclose(np.diff(np.log10(positive.numpy())), 1 / 20, atol=1e-6)


def test_counts_by_hand() -> None:
    at = torch.tensor([-10.0, -1.0, -0.1, 0.1, 1.0, 10.0])
    values = torch.tensor([[0.0, 0.05, -0.05], [0.1, -0.1, 0.5], [-5.0, 5000.0, -5000.0]])
    assert count(values, at).tolist() == [
        2,
        0,
        4,
        2,
        1,
    ], "an edge counts above it; what is beyond counts in the outermost bin"
    assert count(torch.empty(0), at).tolist() == [0] * 5


def test_counts_add_up_like_numpy() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 1e-3
    whole, at = count(values, edges()), edges().numpy()
    assert torch.equal(sum(count(part, edges()) for part in values.split(700)), whole)
    assert np.array_equal(whole.numpy(), np.histogram(values.numpy(), at)[0])


def test_alpha_and_beta_of_kernels_by_hand() -> None:
    g_0, g_k = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    g_0[0, 0, 0], g_k[0, 0, 0] = torch.tensor([3.0, 4.0]), torch.tensor([1.0, -2.0])
    g_0[1, 0, 0], g_k[1, 0, 0] = torch.tensor([0.0, 1.0]), torch.tensor([7.0, 0.5])
    alpha, beta = kernel_products(g_k, g_0)
    assert alpha.tolist() == [25, 1] and beta.tolist() == [-5, 0.5]
    assert [
        x.tolist() for x in kernel_products(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0]))
    ] == [[10], [1]], "a vector is one"
    assert kernel_products(torch.ones(2, 3), torch.ones(2, 3))[1].tolist() == [6], "and a matrix"


def test_samples_are_the_same_columns_for_all_updates_of_a_shape() -> None:
    x, y = torch.arange(60.0).view(3, 5, 2, 2), torch.arange(60.0).view(3, 5, 2, 2) + 1000
    assert torch.equal(sample(x, 60), x.reshape(3, 20)) and torch.equal(
        sample(x, 10**6), x.reshape(3, 20)
    )
    assert sample(x, 15).shape == (3, 5) and torch.equal(
        sample(y, 15) - sample(x, 15), torch.full((3, 5), 1000.0)
    )
    assert sample(x, 1).shape == (3, 1) and sample(torch.arange(4.0), 100).shape == (4, 1)


@pytest.mark.full
@pytest.mark.parametrize("base", [TINY, TINY_VIT])
@pytest.mark.parametrize("kind", ["gradients", "all"])
def test_a_run_is_the_same_and_its_numbers_are_of_its_updates(
    base: tuple[str, ...], kind: str
) -> None:
    plain, rows, _ = simulate(*base)
    probe = () if kind == "gradients" else ("diagnostics.images=16", "diagnostics.batch=8")
    state, seen, run = simulate(*base, f"diagnostics={kind}", "diagnostics.every=1", *probe)
    assert torch.equal(plain.w, state.w) and torch.equal(plain.b, state.b)
    extra = ("gradients/", "cka/") if kind == "all" else ("gradients/",)
    assert timeless(
        [{k: v for k, v in row.items() if not k.startswith(extra)} for row in seen]
    ) == timeless(rows)
    assert any(key.startswith("cka/") for key in seen[0]) == (kind == "all")
    assert set(run.simulator.diagnostics.arrays) == {"gradients"} | (
        {"cka"} if kind == "all" else set()
    )
    found, entries = arrays_of(run), run.split.params.entries
    layers = [key.removeprefix("update/") for key in found if key.startswith("update/")]
    assert layers == [
        name.removesuffix(".weight")
        for name in entries
        if f"update/{name.removesuffix('.weight')}" in found
    ]
    for layer in layers:
        assert found[f"update/{layer}"].sum() == entries[f"{layer}.weight"].numel
        values = found[f"values/{layer}"]
        assert np.linalg.norm(values) == pytest.approx(
            seen[-1][f"gradients/norm/{layer}"], rel=1e-5
        ), "small layers are kept whole"
        assert np.array_equal(found[f"update/{layer}"], np.histogram(values, found["edges"])[0])
    assert all(row["time/gradients_s"] > 0 for row in seen)


def test_theta_and_beta_are_those_of_the_theorem_and_of_inco() -> None:
    """Against InCo's own metrics (share of beta > 0, official pairs), and against `mix`, of the
    update that the transform was given.
    """
    _, seen, run = simulate(*TINY, *SEE)
    own = {key for key in seen[0] if key.startswith("inco/beta_positive/")}
    assert own and {key.replace("inco/", "gradients/") for key in own} == {
        k for k in seen[0] if k.startswith("gradients/beta_positive/")
    }
    for row in seen:
        for key in own & row.keys():
            assert row[key.replace("inco/", "gradients/")] == pytest.approx(row[key], abs=1e-4)
    found = arrays_of(run)
    g_k, g_0 = (
        torch.from_numpy(found[f"values/{name}"]) for name in ("layer3.1.conv2", "layer3.0.conv2")
    )
    mixed = mix(
        g_k.view(4, 4, 3, 3), g_0.view(4, 4, 3, 3), mixing("algorithm1", granularity="kernel")
    )
    assert seen[-1]["gradients/theta/layer3.1.conv2"] == pytest.approx(float(mixed.theta), rel=1e-5)
    assert found["beta/layer3.1.conv2"].sum() == found["theta/layer3.1.conv2"].sum() == 16
    positive = found["beta/layer3.1.conv2"][len(found["edges"]) // 2 :].sum()
    assert positive == round(seen[-1]["gradients/beta_positive/layer3.1.conv2"] * 16 / 100)


def test_without_inco_there_are_the_same_numbers_in_the_first_round() -> None:
    """They are of the update before the transform, so the first round's do not depend on it."""
    _, with_inco, _ = simulate(*TINY, *SEE, "transform=inco", rounds=1)
    _, without, _ = simulate(*TINY, *SEE, "transform=none", rounds=1)
    first, second = (
        {k: v for k, v in rows[0].items() if k.startswith("gradients/")}
        for rows in (with_inco, without)
    )
    assert len(first) > 20 and first == second


def test_clients_deltas_are_local_minus_received() -> None:
    """One client of one capacity: what the server averages is its delta, so that both histograms
    are one.
    """
    words = (*TINY, *SEE, "split=none", "transform=none", "sample_ratio=0.2")
    _, _, run = simulate(*words, rounds=2)
    found = arrays_of(run)
    layers = [key.removeprefix("clients/") for key in found if key.startswith("clients/")]
    assert layers
    for layer in layers:
        moved = np.abs(found[f"clients/{layer}"] - found[f"update/{layer}"]).sum()
        assert moved <= 0.02 * found[f"update/{layer}"].sum(), "but for the rounding of the sum"


@pytest.mark.full
@pytest.mark.parametrize("split", ["none", "isolated", "width", "rolling", "scalefl", "inclusive"])
@pytest.mark.parametrize("base", [TINY, TINY_VIT])
def test_any_split_and_its_clients_can_be_looked_at(base: tuple[str, ...], split: str) -> None:
    words = [word for word in base if not word.startswith("split=")] + [
        f"split={split}",
        "transform=none",
    ]
    _, rows, run = simulate(*words, *SEE, rounds=1)
    found = arrays_of(run)
    clients = {key.removeprefix("clients/") for key in found if key.startswith("clients/")}
    updates = {key.removeprefix("update/") for key in found if key.startswith("update/")}
    assert clients == {layer.rpartition("/")[2] for layer in updates} and len(clients) > 3
    assert {f"gradients/norm/{layer}" for layer in updates} <= rows[0].keys()
    assert any("/" in layer for layer in updates) == (split in ("isolated", "inclusive")), (
        "one tensor for each size"
    )


@pytest.mark.full
def test_layers_by_name_values_and_rounds() -> None:
    _, rows, run = simulate(
        *TINY,
        "diagnostics=gradients",
        "diagnostics.every=2",
        "diagnostics.layers=[layer1.0.conv1,fc]",
        rounds=4,
    )
    assert ["gradients/norm/fc" in row for row in rows] == [True, True, False, True]
    found = arrays_of(run)
    assert [key for key in found if key.startswith("update/")] == [
        "update/layer1.0.conv1",
        "update/fc",
    ]
    assert not any(key.startswith("beta/") for key in found), "neither is a target of a pair"
    _, _, run = simulate(*TINY, *SEE, "diagnostics.values=0", rounds=1)
    assert not any(key.startswith("values/") for key in arrays_of(run))
    _, _, run = simulate(*TINY, *SEE, "diagnostics.pairs=paper", rounds=1)
    assert "beta/layer1.0.conv2" in arrays_of(run), (
        "the paper's reference is the first layer of a stage"
    )


def test_wrong_settings_are_told() -> None:
    (told,) = problems_of(settings_of("diagnostics=gradients", "diagnostics.layers=all"))
    assert (
        told == "diagnostics.layers=all: must be auto or a list of layers as"
        " [layer3.0.conv1,layer3.1.conv1]"
    )
    assert (
        "diagnostics.batch=100"
        in problems_of(settings_of("diagnostics=all", "diagnostics.batch=100"))[0]
    )
    with pytest.raises(
        ConfigError,
        match=r"diagnostics.layers: the model has no layer layer9; it has conv1, .*layer1.0.conv1",
    ):
        simulate(*TINY, *SEE, "diagnostics.layers=[layer9]")
    with pytest.raises(ConfigError, match=r"diagnostics\.layers=layer1: must be auto or a list"):
        Gradients(1, "layer1")


@pytest.mark.nightly
def test_worker_counts_and_sittings_leave_the_same_bytes(type_command, tmp_path: Path) -> None:
    words = (
        *TINY,
        "diagnostics=all",
        "diagnostics.every=1",
        "diagnostics.images=16",
        "diagnostics.batch=8",
        "tracker=none",
    )
    for name, more in (
        ("one", ["engine.workers=1"]),
        ("two", ["engine.workers=2"]),
        ("later", ["engine.workers=2", "rounds=1"]),
    ):
        assert type_command(*words, *more, f"name={name}").returncode == 0
    assert type_command(*words, "engine.workers=1", "name=later").returncode == 0
    outputs = tmp_path / "outputs"
    keys = [
        {k: v for k, v in row.items() if k.startswith(("gradients/", "cka/"))}
        for row in read_rows(outputs / "one")
    ]
    for name in ("two", "later"):
        assert [
            {k: v for k, v in row.items() if k.startswith(("gradients/", "cka/"))}
            for row in read_rows(outputs / name)
        ] == keys
        for kind in ("gradients", "cka"):
            assert ArrayStore(outputs / name).rounds(kind) == [1, 2]
            for path in sorted((outputs / "one" / kind).iterdir()):
                assert (outputs / name / kind / path.name).read_bytes() == path.read_bytes()
    assert (outputs / "one" / "gradients.png").stat().st_size > 5000


def test_a_picture_has_a_panel_a_layer_up_to_twelve(tmp_path: Path) -> None:
    counts = np.histogram(np.random.default_rng(0).normal(0, 1e-3, 4000), edges().numpy())[0]
    for layers, path in ((2, tmp_path / "few.png"), (20, tmp_path / "many.png")):
        named = {
            f"{part}/layer1.{k}.conv1": counts
            for k in range(layers)
            for part in ("clients", "update")
        }
        draw_gradients({"edges": edges().numpy()} | named, "Round 1", path)
    assert (tmp_path / "many.png").stat().st_size > (tmp_path / "few.png").stat().st_size > 5000

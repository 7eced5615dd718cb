"""The transforms on a flat update, as the server calls them, and their YAML files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import inco
from inco.errors import ConfigError
from inco.flat import Layout
from inco.server.transforms import Identity, InCo
from inco.types import Pair

CONF = Path(__file__).parents[2] / "conf"
NAMES = ["inco_resnet_stage_seed7", "inco_vit_layer_seed7"]
ABLATIONS = {
    "no_normalization": (False, True),
    "no_optimization": (True, False),
    "neither": (False, False),
}


def golden(name: str, part: str) -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as arrays:
        return {
            k.removeprefix(part + "/"): torch.from_numpy(arrays[k])
            for k in arrays.files
            if k.startswith(part + "/")
        }


def problem(name: str = NAMES[0]) -> tuple[Layout, torch.Tensor]:
    tensors = golden(name, "mean")
    layout = Layout.of(tensors)
    return layout, layout.pack(tensors)


def bound(transform: InCo, layout: Layout) -> InCo:
    return transform.bind(layout, lambda style: inco.cross_layer_pairs(layout.entries, style))


@pytest.mark.parametrize("name", NAMES)
def test_published_code(name: str) -> None:
    layout, update = problem(name)
    kept = update.clone()
    new, metrics = bound(InCo(), layout)(update)
    for key, expected in golden(name, "inco").items():
        torch.testing.assert_close(layout.view(new, key), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(update, kept) and new.data_ptr() != update.data_ptr()
    targets = [p.target.removesuffix(".weight") for p in inco.cross_layer_pairs(layout.entries)]
    assert list(metrics) == [
        f"inco/{what}/{t}" for t in targets for what in ("theta", "beta_positive")
    ]
    assert all(type(v) is float for v in metrics.values())
    assert all(0 <= v <= (5 if k.startswith("inco/theta") else 100) for k, v in metrics.items())


def test_metrics_are_means_over_kernels() -> None:
    layout, update = problem()
    g_k, g_0 = (
        layout.view(update, f"layer2.{name}.weight").double() for name in ("1.conv1", "0.conv2")
    )
    beta = (g_k * g_0).sum((2, 3))
    theta = (beta.abs() / ((g_0 * g_0).sum((2, 3)) + 1e-7)).clamp(0, 5)
    _, metrics = bound(InCo(), layout)(update)
    assert metrics["inco/theta/layer2.1.conv1"] == pytest.approx(theta.mean().item(), rel=1e-5)
    assert metrics["inco/beta_positive/layer2.1.conv1"] == pytest.approx(
        100 * (beta > 0).double().mean().item(), rel=1e-6
    )


@pytest.mark.parametrize(
    "transform", [Identity(), InCo(pairs=[]), InCo(pairs="paper"), InCo(rule="theorem")]
)
def test_identity_without_pairs_bitwise(transform: Identity | InCo) -> None:
    layout, update = problem()
    kept = update.clone()
    new, metrics = transform.bind(layout, lambda style: ())(update)
    assert torch.equal(new.view(torch.int32), kept.view(torch.int32)) and metrics == {}


@pytest.mark.parametrize("rule", ["official", "algorithm1", "theorem"])
@pytest.mark.parametrize("pairs", ["auto", "official", "paper"])
def test_pairs_follow_the_rule(rule: str, pairs: str) -> None:
    layout, update = problem()
    asked: list[str] = []

    def model_pairs(style: str) -> Sequence[Pair]:
        asked.append(style)
        return inco.cross_layer_pairs(layout.entries, style)

    new, _ = InCo(rule=rule, pairs=pairs).bind(layout, model_pairs)(update)
    style = pairs if pairs != "auto" else "official" if rule == "official" else "paper"
    assert asked == [style]
    expected = inco.cross_layer_gradients(layout.views(update), style, rule=rule)
    assert all(torch.equal(layout.view(new, key), value) for key, value in expected.items())


def test_own_pairs() -> None:
    layout, update = problem()
    own = [["layer1.1.bn1.weight", "layer1.0.bn1.weight"]]
    new, metrics = bound(InCo(pairs=own, clip=float("inf")), layout)(update)
    assert list(metrics) == ["inco/theta/layer1.1.bn1", "inco/beta_positive/layer1.1.bn1"]
    entry = layout.entries["layer1.1.bn1.weight"]
    moved = (new != update).nonzero().flatten()
    assert moved.min() >= entry.offset and moved.max() < entry.offset + entry.numel


@pytest.mark.parametrize("rule", ["official", "algorithm1"])
@pytest.mark.parametrize(("normalize", "optimize"), [(True, True), *ABLATIONS.values()])
def test_a_layer_that_nobody_sent_stays(rule: str, normalize: bool, optimize: bool) -> None:
    layout, update = problem()
    layout.view(update, "layer1.2.conv1.weight").zero_()
    new, metrics = bound(InCo(rule, "official", normalize, optimize), layout)(update)
    assert not layout.view(new, "layer1.2.conv1.weight").any()
    assert "inco/theta/layer1.2.conv1" not in metrics and "inco/theta/layer1.2.conv2" in metrics
    assert not torch.equal(
        layout.view(new, "layer1.2.conv2.weight"), layout.view(update, "layer1.2.conv2.weight")
    )


def test_prefixed_layouts() -> None:
    layout, update = problem()
    both = Layout.concat({"resnet26": layout, "copy": layout})
    new, metrics = bound(InCo(), both)(torch.cat([update, update]))
    alone, _ = bound(InCo(), layout)(update)
    assert (
        torch.equal(new, torch.cat([alone, alone]))
        and "inco/theta/resnet26/layer1.1.conv1" in metrics
    )


def test_errors() -> None:
    layout, update = problem()
    with pytest.raises(RuntimeError, match="not bound"):
        InCo()(update)
    with pytest.raises(
        ConfigError, match=r"^transform.pairs=papers: must be auto, official, paper"
    ):
        InCo(pairs="papers")
    with pytest.raises(ValueError, match=r"did you mean .*layer1\.1\.conv1\.weight"):
        bound(InCo(pairs=[["layer1.1.conv.weight", "layer1.0.conv2.weight"]]), layout)
    with pytest.raises(ValueError, match="differ"):
        bound(InCo(pairs=[["layer2.1.conv1.weight", "layer1.0.conv2.weight"]]), layout)


@pytest.mark.parametrize("name", ["none", "inco", *ABLATIONS])
def test_yaml(name: str) -> None:
    hydra = pytest.importorskip("hydra")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(overrides=[f"+transform={name}"]).transform
    made = hydra.utils.instantiate(cfg, _convert_="all")
    if name == "none":
        assert isinstance(made, Identity)
        return
    assert (made.options.normalize, made.options.optimize) == ABLATIONS.get(name, (True, True))
    layout, update = problem()
    expected, _ = bound(
        InCo(normalize=made.options.normalize, optimize=made.options.optimize), layout
    )(update)
    assert torch.equal(bound(made, layout)(update)[0], expected)

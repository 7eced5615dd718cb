"""InCo's control: noise of each target's own size, on the targets alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inco
from inco.config.targets import build
from inco.errors import ConfigError
from inco.flat import Layout
from inco.server.noise import AddNoise

CONF = Path(__file__).parents[2] / "conf" / "transform"
SHAPES = {
    "conv1.weight": (8, 3, 3, 3),
    **{f"layer1.{b}.conv{i}.weight": (8, 8, 3, 3) for b in range(3) for i in (1, 2)},
    **{f"layer1.{b}.bn1.weight": (8,) for b in range(3)},
    "layer2.0.conv1.weight": (16, 8, 3, 3),
    "layer2.0.conv2.weight": (16, 16, 3, 3),
    "layer2.1.conv1.weight": (16, 16, 3, 3),
    "fc.weight": (10, 16),
}
LAYOUT = Layout.of({name: torch.zeros(shape) for name, shape in SHAPES.items()})
TARGETS = [f"layer1.{b}.conv{i}.weight" for b in (1, 2) for i in (1, 2)] + ["layer2.1.conv1.weight"]
UNSENT = "layer1.2.conv2.weight"


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem() -> Tensor:
    update = torch.randn(LAYOUT.numel, generator=stream(1))
    for k, view in enumerate(LAYOUT.views(update).values()):
        view.mul_(10.0 ** (k % 4 - 3))
    LAYOUT.view(update, UNSENT).zero_()
    return update


def bound(**settings: Any) -> AddNoise:
    return AddNoise(**settings).bind(
        LAYOUT, lambda style: inco.cross_layer_pairs(LAYOUT.entries, style)
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_targets_alone_get_noise_of_their_own_size(scale: float) -> None:
    update = problem()
    kept = update.clone()
    new, metrics = bound(scale=scale)(update, stream())
    assert torch.equal(update, kept) and new.data_ptr() != update.data_ptr()
    for name in SHAPES:
        before, after = LAYOUT.view(update, name), LAYOUT.view(new, name)
        if name not in TARGETS or name == UNSENT:
            assert torch.equal(before, after), name
            continue
        noise, own = (
            after.double() - before.double(),
            scale * before.double().std(correction=0).item(),
        )
        assert noise.std().item() / own == pytest.approx(1, abs=4 / math.sqrt(2 * noise.numel()))
        assert metrics[f"noise/std/{name.removesuffix('.weight')}"] == pytest.approx(own, rel=1e-5)
    assert len(metrics) == len(TARGETS) - 1 and all(type(v) is float for v in metrics.values())


def test_reproducible_by_the_generator_alone() -> None:
    update, transform = problem(), bound()
    torch.manual_seed(1)
    first, _ = transform(update, stream(7))
    torch.manual_seed(2)
    assert torch.equal(first, transform(update, stream(7))[0])
    assert not torch.equal(first, transform(update, stream(8))[0])


def test_targets_have_draws_of_their_own() -> None:
    update = problem()
    noise = bound()(update, stream())[0] - update
    parts = torch.stack(
        [
            LAYOUT.view(noise, name).flatten()
            for name in TARGETS
            if name != UNSENT and name.startswith("layer1")
        ]
    )
    assert (torch.corrcoef(parts).triu(1).abs() < 4 / math.sqrt(parts.shape[1])).all()


def test_degenerate_cases_are_the_identity() -> None:
    update = problem()
    for transform in (bound(scale=0.0), bound(pairs=[])):
        assert torch.equal(transform(update, stream())[0], update)
    nothing = torch.zeros(LAYOUT.numel)
    new, metrics = bound()(nothing, stream())
    assert not new.any() and metrics == {}


def test_pairs() -> None:
    update = problem()
    paper, _ = bound(pairs="paper")(update, stream())
    assert not torch.equal(
        LAYOUT.view(paper, "layer1.0.conv2.weight"), LAYOUT.view(update, "layer1.0.conv2.weight")
    )
    own, metrics = bound(pairs=[["layer2.1.conv1.weight", "layer2.0.conv2.weight"]])(
        update, stream()
    )
    moved = [
        name
        for name in SHAPES
        if not torch.equal(LAYOUT.view(own, name), LAYOUT.view(update, name))
    ]
    assert moved == ["layer2.1.conv1.weight"] and list(metrics) == ["noise/std/layer2.1.conv1"]


def test_a_constant_target_has_no_spread() -> None:
    update = problem()
    LAYOUT.view(update, TARGETS[0]).fill_(0.25)
    new, metrics = bound()(update, stream())
    assert torch.equal(LAYOUT.view(new, TARGETS[0]), LAYOUT.view(update, TARGETS[0]))
    assert metrics[f"noise/std/{TARGETS[0].removesuffix('.weight')}"] == 0.0


@pytest.mark.parametrize("scale", [-1, math.nan, math.inf, True, "1"])
def test_wrong_scale(scale: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^transform.scale={scale}: must be at least 0$"):
        AddNoise(scale=scale)


def test_wrong_pairs() -> None:
    with pytest.raises(
        ConfigError, match=r"^transform.pairs=auto: must be official, paper or a list of \["
    ):
        AddNoise(pairs="auto")
    with pytest.raises(ValueError, match="did you mean"):
        bound(pairs=[["layer1.1.conv.weight", "layer1.0.conv2.weight"]])
    with pytest.raises(RuntimeError, match="bind"):
        AddNoise()(problem(), stream())


def test_yaml_holds_the_defaults() -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(CONF / "add_noise.yaml"))
    made = build("transform", node)
    assert type(made) is AddNoise and vars(made) == vars(AddNoise())
    assert {"scale": made.scale, "pairs": made.chosen} == {
        k: v for k, v in node.items() if k != "_target_"
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_gpu(where: str) -> None:
    update = problem().cuda()
    new, metrics = bound()(update, torch.Generator(where).manual_seed(7))
    assert new.is_cuda and len(metrics) == len(TARGETS) - 1
    if where == "cpu":
        torch.testing.assert_close(new.cpu(), bound()(update.cpu(), stream(7))[0])

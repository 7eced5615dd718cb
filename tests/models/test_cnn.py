"""The plain CNN: its published size, what it says of itself, and which splits it fits."""

from __future__ import annotations

import pytest
import torch
from support import settings_of, simulate
from torch import Tensor, nn

from inco.errors import ConfigError
from inco.fast.pooling import MaxPool2x2
from inco.flat import layouts_of
from inco.models.base import Variant, fresh
from inco.models.cnn import CNNFamily
from inco.parts import problems as problems_of
from inco.splits.base import Whole
from inco.splits.depth import Depth
from inco.splits.inclusive import Inclusive
from inco.splits.isolated import Isolated
from inco.splits.scalefl import ScaleFL
from inco.splits.width import Rolling, Width, narrowed

TINY = (
    "debug=tiny",
    "dataset=synthetic",
    "model=cnn",
    "model.conv_channels=[4,6]",
    "model.hidden=8",
    "model.kernel=3",
    "model.image_size=null",
    "transform=none",
    "dataset.shape=[1,10,10]",
    "dataset.num_train=60",
    "dataset.num_test=40",
    "dataset.num_classes=3",
    "local=sgd",
    "local.lr=0.1",
    "local.batch_size=8",
)
RATES = (0.25, 0.5, 1.0)


def small(classes: int = 5) -> CNNFamily:
    return CNNFamily([4, 6], 8, 3, shape=(1, 10, 10), num_classes=classes)


def width(kind: type = Width, **more: object) -> Width:
    return kind(RATES, masked_loss="off", scaler=False, bn="batch", family=small(), **more)


def test_size() -> None:
    """Without padding the maps are 24, 12, 8 and 4 wide: 32 x 4 x 4 inputs to the hidden layer."""
    family = CNNFamily([16, 32], 360, shape=(1, 28, 28), num_classes=10)
    shapes = {name: tuple(p.shape) for name, p in family.build().named_parameters()}
    assert shapes["hidden.weight"] == (360, 512) and shapes["convs.1.weight"] == (32, 16, 5, 5)
    assert sum(p.numel() for p in family.build().parameters()) == 201_538
    assert not list(family.build().buffers()), "no BatchNorm"
    padded = CNNFamily([16, 32], 360, padding=2, shape=(1, 28, 28), num_classes=10).build()
    assert sum(p.numel() for p in padded.parameters()) == 581_698, (
        "the other usual padding is another network"
    )


def test_the_yaml_is_that_network() -> None:
    _, _, run = simulate(
        *TINY[:3], "dataset.shape=[1,28,28]", "split=none", "transform=none", rounds=1
    )
    assert run.costs[0].params == 201_538


def test_forward_is_the_plain_network() -> None:
    """The same numbers as convolution, ReLU, pooling, and a flattening by position."""
    net, x = (
        fresh(small(), 0),
        torch.randn(3, 1, 10, 10, generator=torch.Generator().manual_seed(0)),
    )
    y = x
    for conv in net.convs:
        y = nn.functional.max_pool2d(conv(y).relu(), 2)
    features = net.hidden(y.movedim(1, 3).reshape(3, -1)).relu()
    got = net(x)
    assert torch.allclose(got.features, features, atol=1e-6) and torch.allclose(
        got.logits, net.fc(features), atol=1e-6
    )


def test_axes_name_every_dimension_consistently() -> None:
    family, size = small(), {}
    params, buffers = layouts_of(family.build(), family.axes())
    assert set(params.entries) == set(family.axes()) and not buffers.entries
    for e in params.entries.values():
        for axis, length in zip(e.axes, e.shape, strict=True):
            assert axis is None or size.setdefault(axis, length) == length, e.name
    assert {name: g.size for name, g in family.groups().items()} == {
        n: s for n, s in size.items() if n not in ("image", "classes")
    }


def test_taps_are_modules() -> None:
    net, seen = small().build(), []
    for module in small().taps().values():
        net.get_submodule(module).register_forward_hook(lambda _m, _i, out: seen.append(len(out)))
    net(torch.randn(4, 1, 10, 10))
    assert seen == [4, 4, 4]


def zeroed(family: CNNFamily, net: nn.Module, rate: float) -> nn.Module:
    """The whole network with every channel beyond the first ceil(rate C) silenced, at its own
    output.
    """
    sizes, groups = narrowed(family.groups(), rate), family.groups()
    with torch.no_grad():
        for name, axes in family.axes().items():
            held = net.get_parameter(name)
            if axes[0] in groups:
                held[sizes[axes[0]] :] = 0
    return net


@pytest.mark.parametrize("rate", RATES)
def test_a_narrow_relative_is_the_whole_with_channels_silenced(rate: float) -> None:
    """So what the hidden layer reads is cut by channel at every position: its ties are true
    ones.
    """
    split, level = width(), RATES.index(rate)
    w, b = split.initial(0)
    sub = split.submodel(level, 0)
    small_net = sub.build()
    own: Tensor = sub.params.gather(w, torch.empty(sub.params.layout.numel))
    small_net.load_state_dict(sub.params.layout.views(own))
    whole = small().build()
    whole.load_state_dict(split.params.views(w))
    x = torch.randn(5, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(small_net(x).logits, zeroed(small(), whole, rate)(x).logits, atol=1e-6)
    assert small_net(x).logits.shape == (5, 5) and not b.numel()


def test_a_window_takes_whole_channels() -> None:
    split = width(Rolling, window="forward", overlap=None, weighting="clients")
    sub = split.submodel(0, 2)
    rows = torch.zeros(split.params.numel)
    sub.params.add(rows, 1.0)
    held = split.params.views(rows)
    channels = held["convs.1.weight"].amax((1, 2, 3)).bool()
    read = held["hidden.weight"].amax(0).view(-1, 6).bool()  # positions, channels
    assert torch.equal(read, channels.expand_as(read)) and channels.tolist() == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("split", ["none", "width", "rolling"])
def test_splits_that_fit(split: str) -> None:
    state, rows, run = simulate(*TINY, f"split={split}", rounds=2)
    first = run.simulator.start(0).w
    assert rows[-1]["train/loss"] > 0 and not torch.equal(state.w, first)
    assert len([key for key in rows[-1] if key.startswith("test/acc/")]) == (
        1 if split == "none" else 5
    )


@pytest.mark.parametrize("split", ["stage", "layer", "isolated", "inclusive", "scalefl"])
def test_splits_that_cut_blocks_are_refused_at_the_door(split: str) -> None:
    problems = problems_of(settings_of(*TINY, f"split={split}"))
    assert any("no blocks" in p and "use split=none, width or rolling" in p for p in problems)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Depth([[1], [2]], family=small()),
        lambda: Isolated(family=small()),
        lambda: Isolated([[1]], family=small()),
        lambda: Inclusive(family=small()),
        lambda: Inclusive([1, 2], family=small()),
        lambda: small().build([1]),
        lambda: small().groups(Variant(exits=(1,))),
    ],
)
def test_blocks_are_refused(make) -> None:
    with pytest.raises(
        ConfigError,
        match="no blocks that smaller clients could leave out; use split=none, width or rolling",
    ):
        make()


def test_exits_are_refused() -> None:
    with pytest.raises(ConfigError, match="no blocks"):
        ScaleFL(family=small())


def test_the_whole_is_one_level() -> None:
    split = Whole(family=small())
    assert (
        split.names == ("cnn",) and split.submodel(0, 1).params.layout.numel == split.params.numel
    )


def test_images_too_small() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"model\.kernel=5 and model\.padding=0 with images of 12x12: nothing is"
            r" left.*model\.padding=2"
        ),
    ):
        CNNFamily([16, 32, 64], 10, shape=(1, 12, 12), num_classes=3)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (24, 24)])
@pytest.mark.parametrize("last", [True, False])
def test_pooling_is_the_librarys(size: tuple[int, int], last: bool) -> None:
    """With and without a gradient, in either layout, odd sides included; a NaN stays one."""
    x = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = float("nan")
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    expected, pool = nn.functional.max_pool2d(x, 2), MaxPool2x2()
    with torch.no_grad():
        assert torch.equal(pool(x).nan_to_num(9.0), expected.nan_to_num(9.0))
    x.requires_grad_(True)
    y = pool(x)
    assert torch.equal(y.nan_to_num(9.0), expected.nan_to_num(9.0)) and y.grad_fn is not None

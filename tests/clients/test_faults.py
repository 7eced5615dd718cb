"""What libraries compute wrongly on some machines: built-in models never reach it, others are
refused before they are trained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import settings_of, thinned
from torch import Tensor, nn

from inco.assembly import assemble
from inco.clients import faults
from inco.engine.ranks import Ranks
from inco.errors import ConfigError
from inco.models.pointwise import Conv1x1

MINE = """
import torch
from torch import nn
from inco.models.base import Family
from inco.types import Output

class Narrow(nn.Module):
    def __init__(self, into, stride, classes):
        super().__init__()
        self.stem = nn.Conv2d(1, into, 3, padding=1)
        self.shortcut = nn.Conv2d(into, 6, 1, stride, bias=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        features = self.drop(torch.relu(self.shortcut(torch.relu(self.stem(x)))).mean((2, 3)))
        return Output(self.fc(features), features)

class NarrowFamily(Family):
    name, recipe, blocks, after, image_size, min_batch = "narrow", "resnet", {}, ("fc",), None, 1

    def __init__(self, into=4, stride=2, *, shape, num_classes):
        self.settings = into, stride, num_classes

    def build(self, keep=None):
        return Narrow(*self.settings)

    def axes(self, keep=None):
        return {}

    def level_name(self, keep):
        return "narrow"

    def taps(self, keep=None):
        return {}

    def pairs(self, style):
        return ()
"""
SMALL = (
    "debug=tiny",
    "dataset=synthetic",
    "dataset.num_train=60",
    "dataset.num_test=40",
    "dataset.num_classes=3",
)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model of the user's own, computed without oneDNN: where this machine has the fault, the
    test must not meet it.
    """
    monkeypatch.setattr(faults, "_onednn_enabled", lambda: True)
    (tmp_path / "mine_narrow.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("INCO_ALLOW_TARGETS", "mine_narrow")
    monkeypatch.delitem(sys.modules, "mine_narrow", raising=False)
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def start(isa: str, monkeypatch: pytest.MonkeyPatch, *overrides: str, side: int = 8) -> Any:
    """Get a run of the user's model ready, on a processor with an instruction set."""
    monkeypatch.setattr(faults, "instruction_set", lambda: isa)
    settings = settings_of(
        *SMALL, f"dataset.shape=[1,{side},{side}]", "split=none", "transform=none"
    )
    chosen = {key: int(value) for key, value in (o.split("=") for o in overrides)}
    settings["model"] = {"_target_": "mine_narrow.NarrowFamily", **chosen}
    return assemble(settings, Ranks(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    ("isa", "into", "side"),
    [("AVX2", 1, 8), ("AVX2", 4, 8), ("AVX2", 7, 32), ("AVX512", 4, 64), ("AVX512", 15, 64)],
)
def test_a_users_model_that_meets_the_fault_is_refused(
    mine: ModuleType, monkeypatch: pytest.MonkeyPatch, isa: str, into: int, side: int
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"shortcut\.weight of narrow .*1x1 convolution with stride 2.*stride 1 is the same",
    ) as told:
        start(isa, monkeypatch, f"into={into}", side=side)
    assert isa in str(told.value) and f"Conv1x1({into}, 6, 2)" in str(told.value)


@pytest.mark.parametrize(
    ("isa", "into", "stride", "side"),
    [
        ("AVX2", 8, 2, 8),
        ("AVX2", 4, 1, 8),
        ("AVX2", 4, 2, 9),
        ("AVX512", 4, 2, 32),
        ("AVX512", 16, 2, 64),
        ("AVX", 4, 2, 8),
    ],
)
def test_a_users_model_that_does_not_is_not(
    mine: ModuleType, monkeypatch: pytest.MonkeyPatch, isa: str, into: int, stride: int, side: int
) -> None:
    run = start(isa, monkeypatch, f"into={into}", f"stride={stride}", side=side)
    state = torch.get_rng_state()
    faults.refuse_faulty(run.split.submodel(0, 1), (1, side, side), 3, "fp32")
    assert torch.equal(torch.get_rng_state(), state), "the look leaves random numbers as they were"


def test_the_users_way_out_is_taken(
    mine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the message says to write instead is not refused, and gives the same numbers."""
    file = tmp_path / "mine_narrow.py"
    ours = "from inco.models.pointwise import Conv1x1\n" + MINE.replace(
        "nn.Conv2d(into, 6, 1, stride, bias=False)", "Conv1x1(into, 6, stride)"
    )
    file.write_text(ours)
    start("AVX2", monkeypatch)
    x = torch.randn(3, 5, 8, 8).contiguous(memory_format=torch.channels_last)
    conv = Conv1x1(5, 7, 2)
    sliced = F.conv2d(x[:, :, ::2, ::2], conv.weight)
    assert torch.equal(conv(x), sliced)


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("side", [6, 7, 12])
def test_chosen_pixels_are_the_strided_convolution(stride: int, side: int) -> None:
    """Output and both gradients, against the convolution as it is defined, in float64."""
    conv = Conv1x1(4, 6, stride).double()
    x = torch.randn(3, 4, side, side, dtype=torch.float64, requires_grad=True)
    ours = conv(x)
    theirs = F.conv2d(x, conv.weight, None, stride)
    torch.testing.assert_close(ours, theirs)
    dy = torch.randn(theirs.shape, dtype=torch.float64)
    wanted = x, conv.weight
    for mine, own in zip(
        torch.autograd.grad(ours, wanted, dy), torch.autograd.grad(theirs, wanted, dy), strict=True
    ):
        torch.testing.assert_close(mine, own)


ONE_STEP = MINE.replace(
    "nn.Conv2d(into, 6, 1, stride, bias=False)", "nn.Conv2d(into, 6, 8, stride)"
)


@pytest.mark.parametrize(("isa", "into", "stride", "precision"), [
    ("AVX512", 8, 8, "bf16"), ("AVX512", 8, 8, "fp32"), ("AVX512", 8, 1, "bf16"), ("AVX2", 8, 8, "bf16"), ("AVX512", 4, 8, "bf16"),
])  # fmt: skip
def test_one_step_over_the_whole_map_in_bfloat16(
    mine: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    isa: str,
    into: int,
    stride: int,
    precision: str,
) -> None:
    (tmp_path / "mine_narrow.py").write_text(ONE_STEP)
    monkeypatch.setattr(faults, "instruction_set", lambda: "AVX")
    sub = start("AVX", monkeypatch, f"into={into}", f"stride={stride}").split.submodel(0, 1)
    monkeypatch.setattr(faults, "instruction_set", lambda: isa)
    if (isa, into, stride, precision) == ("AVX512", 8, 8, "bf16"):
        with pytest.raises(
            ConfigError,
            match=r"shortcut\.weight of narrow is a 8x8 convolution .*stride 1 is the same",
        ):
            faults.refuse_faulty(sub, (1, 8, 8), 3, precision)
    else:
        faults.refuse_faulty(sub, (1, 8, 8), 3, precision)


def test_a_vit_of_one_patch_is_right_in_bfloat16() -> None:
    """On 16 channels, where oneDNN's own strided form is wrong by more than the output itself."""
    from inco.models.vit import ViTFamily

    torch.manual_seed(0)
    embed = ViTFamily(2, 12, 4, 4, 4, shape=(16, 4, 4), num_classes=4).build().patch_embed
    embed.proj.to(memory_format=torch.channels_last)
    x = torch.randn(3, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        ours = embed(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(
        ours.float(), embed.double()(x.double()).float(), rtol=0.05, atol=0.05
    )


class Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the arguments of every convolution's backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(args)
        return func(*args, **(kwargs or {}))


def gradients(model: nn.Module, x: Tensor) -> list[tuple[Any, ...]]:
    with Watched() as watched:
        model(x).logits.sum().backward()
    return watched.seen


@pytest.mark.parametrize(
    ("split", "stem"),
    thinned(
        ("none", "stage", "width", "rolling", "scalefl", "inclusive", "isolated"),
        ("small", "imagenet"),
    ),
)
def test_built_in_models_never_reach_it(
    split: str, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On images large enough for every instruction set, at widths narrower than any register."""
    from inco.config.targets import build
    from inco.fast.bound import BoundModel

    settings = settings_of(
        *SMALL, f"split={split}", "model.widths=[4,8,12,16]", f"model.stem={stem}"
    )
    family = build("model", settings["model"], shape=(1, 64, 64), num_classes=3)
    made = build("split", settings["split"], family=family)
    x = torch.randn(2, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    for level in range(len(made.names)):
        sub = made.submodel(level, 1)
        model = BoundModel(sub.build(), sub.params.layout, sub.buffers.layout).model
        seen = gradients(model, x)
        assert len(seen) >= 3, "convolutions were seen"
        for isa in ("AVX2", "AVX512"):
            monkeypatch.setattr(faults, "instruction_set", lambda isa=isa: isa)
            assert not any(faults.gathers_too_far(*args) for args in seen)

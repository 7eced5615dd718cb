"""ScaleFL: which tensors and channels a level holds, where it ends, what its heads say, and the
loss by which the last head teaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from support import TINY, TINY_VIT, simulate
from torch import Tensor, nn

from inco.algorithms.fedavg import FedAvg
from inco.clients.costs import level_cost
from inco.errors import ConfigError
from inco.fast.bound import BoundModel
from inco.flat import layouts_of
from inco.models.base import Scaler
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.splits.objectives import SelfDistillation
from inco.splits.scalefl import ScaleFL
from inco.types import ClientTask, Output, SubModel

RESNET = ResNetFamily([3, 3, 3, 3], [3, 5, 6, 10], "small", shape=(3, 8, 8), num_classes=4)
VIT = ViTFamily(12, 20, 10, 4, 8, 1.0, shape=(3, 8, 8), num_classes=4)
FAMILIES: dict[str, ResNetFamily | ViTFamily] = {"resnet": RESNET, "vit": VIT}
EXITS = {"resnet": [7, 8, 10], "vit": [4, 6, 9]}
RATES = {"resnet": [0.7, 0.7, 0.75, 1.0], "vit": [0.4, 0.55, 0.75, 1.0]}
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def blocks_of(family: str) -> list[str]:
    """Names of the whole model's blocks, in order."""
    if family == "vit":
        return [f"blocks.{b}" for b in range(12)]
    return [f"layer{s}.{b}" for s in range(1, 5) for b in range(3)]


@cache
def published(family: str) -> ScaleFL:
    return ScaleFL(family=FAMILIES[family])


def level_model(split: ScaleFL, level: int, w: Tensor) -> nn.Module:
    sub = split.submodel(level, 1)
    bound = BoundModel(sub.build(), sub.params.layout, sub.buffers.layout)
    bound.load(w, torch.empty(0), sub.params, sub.buffers)
    return bound.model


def drawn(split: ScaleFL) -> Tensor:
    return torch.randn(split.params.numel, generator=torch.Generator().manual_seed(0)) * 0.3


def global_model(split: ScaleFL, w: Tensor) -> nn.Module:
    model = split.family.build(None, split.whole)
    model.load_state_dict({n: split.params.view(w, n).clone() for n in split.params.entries})
    return model


# --- what a level holds


@pytest.mark.parametrize("family", FAMILIES)
def test_published_levels(family: str) -> None:
    """Four levels with one to four exits, the exits of 54 (12) blocks in proportion, the last one
    the model's own.
    """
    split = published(family)
    assert (
        split.names
        == {
            "resnet": ("x1w0.7", "x2w0.7", "x3w0.75", "x4"),
            "vit": ("x1w0.4", "x2w0.55", "x3w0.75", "x4"),
        }[family]
    )
    assert list(split.whole.exits) == EXITS[family]
    assert EXITS["resnet"] == [round(12 * k / 54) for k in (30, 38, 46)]
    for level, end in enumerate([*EXITS[family], 12]):
        names = list(split.submodel(level, 1).params.layout.entries)
        there = [b for b in blocks_of(family) if any(n.startswith(f"{b}.") for n in names)]
        assert there == blocks_of(family)[:end], "all blocks up to its last exit"
        heads = sorted({int(n.split(".")[1]) for n in names if n.startswith("exits.")})
        assert heads == list(range(min(level + 1, 3))), "the exits on the way"
        own = {
            "resnet": {"fc.weight", "fc.bias"},
            "vit": {"norm.weight", "norm.bias", "head.weight", "head.bias"},
        }[family]
        assert {n for n in names if n.startswith(("fc.", "norm.", "head."))} == (
            own if level == 3 else set()
        )
        before = {
            "resnet": {"conv1.weight", "bn1.weight"},
            "vit": {"cls_token", "pos_embed", "patch_embed.proj.weight"},
        }[family]
        assert before <= set(names)
        rest = [
            n
            for n in names
            if not n.startswith(tuple(f"{b}." for b in there))
            and not n.startswith(("exits.", *own))
        ]
        assert all(n.startswith(("conv1", "bn1", "cls", "pos", "patch")) for n in rest)


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_are_nested_and_the_last_is_all(family: str) -> None:
    split = published(family)
    held = [set(split.submodel(level, 1).params.index.tolist()) for level in range(4)]
    assert all(a < b for a, b in pairwise(held)) and held[3] == set(range(split.params.numel))
    assert split.submodel(0, 1) is split.submodel(0, 7), "the same in every round"


@pytest.mark.parametrize("family", FAMILIES)
def test_leading_channels_are_cut_with_int(family: str) -> None:
    """int(s C), where the width splits take the ceiling; heads of attention stay whole."""
    split = published(family)
    for level, rate in enumerate(RATES[family]):
        layout = split.submodel(level, 1).params.layout
        places = layout.views(split.submodel(level, 1).params.index)
        for name, e in layout.entries.items():
            whole = split.params.entries[name]
            at = []
            for dim, size in enumerate(whole.shape):
                kept, cut = e.shape[dim], size
                if family == "resnet" and not (name.startswith("conv1") and dim == 1) and dim < 2:
                    head = name.startswith(("fc.", "exits.")) and "fc." in name
                    cut = size if head and dim == 0 else int(rate * size + 1e-9)
                elif (
                    family == "vit"
                    and ("qkv" in name or "fc1" in name)
                    and "exits" not in name
                    and dim == 0
                ):
                    cut = int(rate * 10) * 2 * (size // 20) if "qkv" in name else int(rate * size)
                elif (
                    family == "vit"
                    and name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
                    and dim == 1
                ):
                    cut = int(rate * 10) * 2 if "proj" in name else int(rate * size)
                assert kept == max(cut, 1), (name, level)
                thirds = "qkv" in name and dim == 0
                at.append(
                    [part * 20 + c for part in range(3) for c in range(kept // 3)]
                    if thirds
                    else list(range(kept))
                )
            full = split.params.view(torch.arange(split.params.numel), name).numpy()
            np.testing.assert_array_equal(
                places[name].numpy(), full[np.ix_(*at)], err_msg=f"{name}, {level}"
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_are_those_of_the_models_built(family: str) -> None:
    split = ScaleFL(family=FAMILIES[family], bn="aggregated")
    for level in range(4):
        sub = split.submodel(level, 1)
        for part, real in zip((sub.params, sub.buffers), layouts_of(sub.build()), strict=True):
            assert [(e.name, e.shape, e.offset) for e in part.layout.entries.values()] == [
                (e.name, e.shape, e.offset) for e in real.entries.values()
            ]


# --- what a level says


@pytest.mark.parametrize("family", FAMILIES)
def test_exits_speak_in_training_alone(family: str) -> None:
    split = published(family)
    w = drawn(split)
    for level in range(4):
        model = level_model(split, level, w)
        training, scoring = model.train()(IMAGES), model.eval()(IMAGES)
        assert len(training.exits) == level and scoring.exits == ()
        assert all(z.shape == (6, 4) for z in training.exits) and scoring.logits.shape == (6, 4)
        assert (
            len({tuple(z.flatten().tolist()) for z in (*training.exits, training.logits)})
            == level + 1
        )
        torch.testing.assert_close(training.logits, scoring.logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rates", ["full", "published"])
def test_a_level_ends_at_the_head_of_its_exit(family: str, rates: str) -> None:
    """What it says is what the whole model's heads say, with the channels that it lacks silent;
    scaling off.
    """
    levels = [[1.0, h] for h in (1, 2, 3, 4)] if rates == "full" else None
    split = ScaleFL(levels, scaler=False, family=FAMILIES[family])
    w = drawn(split)
    for level, rate in enumerate([1.0] * 4 if rates == "full" else RATES[family]):
        whole = global_model(split, w).train()
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data[int(rate * module.num_features + 1e-9) :] = 0.0
                module.bias.data[int(rate * module.num_features + 1e-9) :] = 0.0
        for block in whole.blocks if family == "vit" else ():
            block.attn.proj.weight.data[:, int(rate * 10) * 2 :] = 0.0
            block.mlp.fc2.weight.data[:, int(rate * 20) :] = 0.0
        with torch.no_grad():
            full, mine = whole(IMAGES), level_model(split, level, w).train()(IMAGES)
        heads = (*full.exits, full.logits)
        for ours, theirs in zip((*mine.exits, mine.logits), heads[: level + 1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        assert level == 3 or not torch.allclose(mine.logits, full.logits, rtol=1e-2, atol=1e-2)


def test_a_head_of_a_resnet_is_three_convolutions_and_a_linear_layer() -> None:
    split = published("resnet")
    layout = split.params.entries
    for j, (stage, width) in enumerate(((3, 6), (3, 6), (4, 10))):
        assert [layout[f"exits.{j}.convs.{k}.weight"].shape for k in range(3)] == [
            (width, width, 3, 3)
        ] * 3
        assert layout[f"exits.{j}.fc.weight"].shape == (4, width) == (4, RESNET.widths[stage - 1])
    model = global_model(split, drawn(split))
    x = torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    head, z = model.exits[1], x
    for conv, norm in zip(head.convs, head.norms, strict=True):
        z = norm(conv(z)).relu()
    torch.testing.assert_close(head(x).logits, head.fc(z.mean((2, 3))))


@pytest.mark.parametrize("family", FAMILIES)
def test_scaler_divides_in_training_and_in_scoring(family: str) -> None:
    def scalers(split: ScaleFL, level: int) -> list[Scaler]:
        sub = split.submodel(level, 1)
        with torch.device("meta"):
            return [m for m in sub.build().modules() if isinstance(m, Scaler)]

    split, silent = published(family), ScaleFL(scaler=False, family=FAMILIES[family])
    for level, (rate, blocks) in enumerate(zip(RATES[family], [*EXITS[family], 12], strict=True)):
        found = scalers(split, level)
        # stem, blocks, heads; attention and MLP
        places = 1 + blocks + level + 1 if family == "resnet" else 2 * blocks
        assert len(found) == (places if rate < 1 else 0)
        for scaler in found:
            for training in (True, False):
                assert torch.equal(scaler.train(training)(IMAGES), IMAGES / rate)
    assert not scalers(silent, 0)


def test_a_narrow_norm_sees_what_is_divided_also_in_scoring() -> None:
    model = published("resnet").submodel(0, 1).build()
    seen: dict[str, Tensor] = {}
    pairs = [
        ("conv1", "bn1"),
        ("layer2.1.conv2", "layer2.1.bn2"),
        ("exits.0.convs.1", "exits.0.norms.1"),
    ]
    for conv, norm in pairs:
        model.get_submodule(conv).register_forward_hook(
            lambda m, i, o, name=conv: seen.__setitem__(name, o.clone())
        )
        model.get_submodule(norm).register_forward_pre_hook(
            lambda m, i, name=norm: seen.__setitem__(name, i[0].clone())
        )
    for training in (True, False):
        model.train(training)(IMAGES)
        for conv, norm in pairs:
            assert torch.equal(seen[norm], seen[conv] / 0.7), (norm, training)


def test_exits_cost_in_training_alone() -> None:
    split = published("resnet")
    for level in range(4):
        cost = level_cost(split.submodel(level, 1), (3, 8, 8), FedAvg())
        assert (cost.train_flops > cost.flops) == (level > 0)


def test_own_exits_and_levels() -> None:
    """Levels may share an exit; an exit may be a stage's last block; a level may be narrow and
    whole in depth.
    """
    split = ScaleFL([[0.5, 1], [1.0, 1], [0.5, 3], [1, 3]], exits=[3, 11], family=RESNET)
    assert split.names == ("x1w0.5", "x1w1", "x3w0.5", "x3")
    names = [set(split.submodel(level, 1).params.layout.entries) for level in range(4)]
    assert names[0] == names[1] and names[2] == names[3] == set(split.params.entries)
    assert {n.split(".")[0] for n in names[0]} == {"conv1", "bn1", "layer1", "exits"}
    assert split.params.entries["exits.0.fc.weight"].shape == (4, 3) and split.params.entries[
        "exits.1.fc.weight"
    ].shape == (4, 10)
    outputs = [split.submodel(level, 1).build().train()(IMAGES) for level in range(4)]
    assert [len(o.exits) for o in outputs] == [0, 0, 2, 2]


# --- the loss


def told(*logits: Sequence[float] | Tensor) -> Output:
    *early, last = [
        torch.as_tensor(z, dtype=torch.float32).view(-1, torch.as_tensor(z).shape[-1])
        for z in logits
    ]
    return Output(last, torch.empty(len(last), 0), tuple(early))


def in_round(number: int = 1) -> ClientTask:
    return ClientTask(0, number, 0, torch.arange(1))


def test_published_loss() -> None:
    """Vector T12; its second number reads .12412371 there, which its first and third rule out (see
    below).
    """
    output, labels = told([1, 0], [2, 0], [3, 0]), torch.tensor([0])
    assert pytest.approx(0.12411371, abs=2e-8) == 0.11881330 + 2 * (0.12146350 - 0.11881330), (
        "two classes: twice the divergence"
    )
    for objective, expected in (
        (SelfDistillation(), 0.12146350),
        (SelfDistillation(reduction="batchmean"), 0.12411371),
        (SelfDistillation(gamma=0.0), 0.11881330),
    ):
        assert objective(output, labels, in_round()).item() == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
def test_loss_is_the_formula(heads: int, reduction: str) -> None:
    """sum_j j l_j / (m (m + 1) / 2), written out with plain numbers."""
    gamma, temperature, batch, classes = 0.3, 2.0, 5, 3
    z = torch.randn(heads, batch, classes, generator=torch.Generator().manual_seed(heads)) * 2
    labels = torch.tensor([0, 2, 1, 1, 0])

    def softmax(row: Sequence[float], t: float = 1.0) -> list[float]:
        powers = [math.exp(v / t) for v in row]
        return [p / sum(powers) for p in powers]

    def cross_entropy(logits: Tensor) -> float:
        return (
            sum(
                -math.log(softmax(row)[y])
                for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
            )
            / batch
        )

    def divergence(teacher: Tensor, student: Tensor) -> float:
        total = 0.0
        for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
            p, q = softmax(t, temperature), softmax(s, temperature)
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        return total / (batch * classes if reduction == "mean" else batch)

    losses = [
        cross_entropy(z[j]) + gamma * temperature**2 * divergence(z[-1], z[j])
        for j in range(heads - 1)
    ] + [cross_entropy(z[-1])]
    expected = sum(j * loss for j, loss in enumerate(losses, start=1)) / (heads * (heads + 1) / 2)
    objective = SelfDistillation(gamma, temperature, reduction)  # type: ignore[arg-type]
    assert objective(told(*z), labels, in_round()).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_starts_in_its_round() -> None:
    output, labels = told([1, 0], [2, 0], [3, 0]), torch.tensor([0])
    late, never, always = SelfDistillation(start=4), SelfDistillation(gamma=0.0), SelfDistillation()
    for number in (1, 3):
        assert torch.equal(
            late(output, labels, in_round(number)), never(output, labels, in_round(number))
        )
    for number in (4, 9):
        assert torch.equal(
            late(output, labels, in_round(number)), always(output, labels, in_round(number))
        )
    assert not torch.equal(never(output, labels, in_round(4)), always(output, labels, in_round(4)))


def gradients(objective: SelfDistillation, number: int = 1) -> tuple[Tensor, Tensor]:
    """Of an early head's logits and of the last one's."""
    stream = torch.Generator().manual_seed(0)
    early, last = (torch.randn(4, 3, generator=stream).requires_grad_() for _ in range(2))
    objective(Output(last, last, (early,)), torch.tensor([0, 1, 2, 0]), in_round(number)).backward()
    assert early.grad is not None and last.grad is not None
    return early.grad, last.grad


def test_the_teacher_learns_from_its_pupils_unless_detached() -> None:
    """The published code lets the gradient in; detached, the last head's is that of its own
    cross-entropy.
    """
    inside, detached, off = (
        gradients(o)
        for o in (SelfDistillation(0.5), SelfDistillation(0.5, detach=True), SelfDistillation(0.0))
    )
    assert torch.equal(inside[0], detached[0]) and not torch.allclose(inside[0], off[0])
    assert torch.equal(detached[1], off[1]) and not torch.allclose(inside[1], off[1])
    assert torch.equal(gradients(SelfDistillation(0.5, start=2))[1], off[1])


def test_the_split_hands_its_settings_to_the_loss() -> None:
    split = ScaleFL(
        gamma=0.2, temperature=5.0, reduction="batchmean", detach=True, start=7, family=VIT
    )
    for level in range(4):
        sub: SubModel = split.submodel(level, 1)
        assert vars(sub.objective) == {
            "gamma": 0.2,
            "temperature": 5.0,
            "reduction": "batchmean",
            "detach": True,
            "start": 7,
        }


# --- runs


@pytest.mark.parametrize("family", [TINY, TINY_VIT], ids=["resnet", "vit"])
def test_what_lies_beyond_an_exit_does_not_move(family: tuple[str, ...]) -> None:
    """A round of the smallest level alone: its narrow blocks and its head move, nothing deeper and
    no other head.
    """
    vit = family is TINY_VIT
    more = (
        ("model.depth=12", "model.dim=16", "model.heads=4") if vit else ("model.blocks=[3,3,3,3]",)
    )
    state, rows, run = simulate(*family, "split=scalefl", *more, "capacity=all_small", rounds=1)
    moved, held = (
        state.w != run.simulator.start(0).w,
        torch.zeros(run.split.params.numel, dtype=torch.bool),
    )
    held[run.split.submodel(0, 1).params.index] = True
    assert not (moved & ~held).any()
    names = {n for n in run.split.params.entries if run.split.params.view(moved, n).any()}
    assert {n for n in names if n.startswith("exits.")} == {
        n for n in run.split.params.entries if n.startswith("exits.0.")
    }
    last = "blocks.3." if vit else "layer3.0."
    beyond = (
        ("blocks.4.", "blocks.11.", "norm.", "head.") if vit else ("layer3.1.", "layer4.", "fc.")
    )
    assert any(n.startswith(last) for n in names) and not [n for n in names if n.startswith(beyond)]
    assert rows[0]["train/loss"] > 0


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"exits": [4, 4]},
            (
                r"split\.exits=\[4, 4\]: list them in order, each after 1 to 11 of the model's 12"
                r" blocks"
            ),
        ),
        ({"exits": [6, 4]}, r"split\.exits=\[6, 4\]: list them in order"),
        ({"exits": []}, r"split\.exits=\[\]: must be null, or a list, each a whole number"),
        ({"exits": [0, 4]}, r"split\.exits=\[0, 4\]: must be null, or a list, each a whole number"),
        ({"exits": [4, 12]}, r"split\.exits=\[4, 12\]: .*each after 1 to 11"),
        ({"exits": [4, 40]}, r"split\.exits=\[4, 40\]: .*each after 1 to 11"),
        (
            {"levels": []},
            r"split\.levels=\[\]: must be null, or a list of \[rate, exits\], rates above 0",
        ),
        (
            {"levels": [[0.5, 0]]},
            r"split\.levels=\[\[0\.5, 0\]\]: .*exits a whole number of at least 1",
        ),
        ({"levels": [[0.5, 5]]}, r"split\.levels=\[\(0\.5, 5\)\]: give .*exits 1 to 4"),
        (
            {"levels": [[1.5, 1]]},
            r"split\.levels=\[\[1\.5, 1\]\]: .*rates above 0 and at most 1",
        ),
        ({"levels": [[0, 1]]}, r"split\.levels=\[\[0, 1\]\]: .*rates above 0"),
        (
            {"levels": [[0.5, 2], [0.7, 1]]},
            r"split\.levels=.*: list the levels smallest first, by exits and then by rate",
        ),
        ({"levels": [[0.5, 2], [0.5, 2]]}, r"split\.levels=.*: list the levels smallest first"),
        ({"gamma": -1.0}, r"split\.gamma=-1\.0: must be at least 0"),
        ({"gamma": math.nan}, r"split\.gamma=nan: must be at least 0"),
        ({"temperature": 0.0}, r"split\.temperature=0\.0: must be above 0"),
        ({"reduction": "sum"}, r"split\.reduction=sum: must be one of mean, batchmean"),
        ({"bn": "frozen"}, r"split\.bn=frozen: must be one of aggregated, static, batch"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    for family in FAMILIES.values():
        with pytest.raises(ConfigError, match=message):
            ScaleFL(**settings, family=family)  # type: ignore[arg-type]


def test_models_that_cannot_have_exits_are_explained() -> None:
    small = ResNetFamily([1, 1], [4, 4], "small", shape=(3, 8, 8), num_classes=4)
    with pytest.raises(
        ConfigError,
        match=(
            r"split\.exits=\[1, 1, 2\]: list them in order, each after 1 to 1 of the model's 2"
            r" blocks"
        ),
    ):
        ScaleFL(family=small)

    class Bare:
        name, recipe, blocks = "bare", "resnet", {"layer": 12}

    with pytest.raises(
        ConfigError,
        match=(
            r"split=scalefl with model=bare: .*use split=stage or isolated, or give its family"
            r" `groups`"
        ),
    ):
        ScaleFL(family=Bare())  # type: ignore[arg-type]

"""Models: published sizes and costs, equality with torchvision and timm on the same weights, and
what each family states about itself (axes, taps, pairs, pretrained weights, settings that cannot
work).
"""

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inco.clients.costs import forward_flops
from inco.errors import ConfigError, DataError
from inco.flat import Layout, Slice, layouts_of
from inco.models.base import fresh
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.server.pairs import cross_layer_pairs
from inco.types import Output, SubModel

RESNET26 = dict(blocks=[3, 3, 3, 3], widths=[64, 128, 256, 512])


def resnet(
    blocks: Sequence[int] = (3, 2, 3),
    widths: Sequence[int] = (4, 6, 8),
    channels: int = 3,
    stem: str = "small",
    pretrained: bool | str = False,
) -> ResNetFamily:
    return ResNetFamily(
        blocks, widths, stem, None, pretrained, shape=(channels, 16, 16), num_classes=5
    )


def vit(
    depth: int = 3, pretrained: bool | str = False, channels: int = 3, num_classes: int = 5
) -> ViTFamily:
    return ViTFamily(
        depth, 12, 3, 4, 8, 2.0, pretrained, shape=(channels, 8, 8), num_classes=num_classes
    )


FAMILIES: dict[str, Callable[[], ResNetFamily | ViTFamily]] = {
    "resnet": resnet,
    "resnet, imagenet stem": lambda: resnet((1, 2), (4, 6), stem="imagenet"),
    "resnet, equal widths": lambda: resnet((2, 3), (4, 4), channels=1),
    "vit": vit,
    "vit, grey": lambda: vit(2, channels=1),
}


def sizes(name: str) -> list[tuple[str, tuple[int, ...] | None]]:
    blocks = list(FAMILIES[name]().blocks.values())
    return [(name, None), (name, (1,) * len(blocks)), (name, (*blocks[:-1], blocks[-1] - 1))]


CASES = [case for name in FAMILIES for case in sizes(name)]


def count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize(
    ("keep", "params", "macs", "name"),
    [
        ([1, 1, 1, 1], 4_910_922, 18.142, "resnet10"),
        ([1, 1, 2, 2], 10_812_234, 27.579, "resnet14"),
        ([2, 2, 2, 2], 11_181_642, 37.017, "resnet18"),
        ([2, 2, 3, 3], 17_082_954, 46.454, "resnet22"),
        ([3, 3, 3, 3], 17_452_362, 55.891, "resnet26"),
    ],
)
def test_published_resnets(keep: list[int], params: int, macs: float, name: str) -> None:
    """Chan et al., Appendix H.4: parameters; multiply-adds at 3x32x32, of which a forward pass
    counts two operations each.
    """
    family = ResNetFamily(**RESNET26, shape=(3, 32, 32), num_classes=10)
    grey = ResNetFamily(**RESNET26, shape=(1, 32, 32), num_classes=10)
    assert (
        count(lambda: family.build(keep)) == params
        and count(lambda: grey.build(keep)) == params - 6_272
    )
    assert family.level_name(keep) == name and keep in family.depth_levels()
    nothing = Slice(Layout([]), torch.empty(0, dtype=torch.int64))
    sub = SubModel(0, name, lambda: family.build(keep), nothing, nothing)
    assert round(forward_flops(sub, (3, 32, 32)) / 2e6, 3) == macs


class Odd(nn.Module):
    """What the families do not have: groups, a transposed convolution, a plain product, attention
    of unequal lengths.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = (
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
            nn.ConvTranspose2d(6, 5, 3, stride=2),
        )

    def forward(self, x: torch.Tensor) -> Output:
        x = self.up(self.conv(x)).flatten(2)
        seen = nn.functional.scaled_dot_product_attention(
            x[:, None], x[:, None, :3], x[:, None, :3, :7]
        )
        return Output((seen @ seen.mT).sum((1, 2)), x)


def odd_or(family: str) -> tuple[nn.Module, tuple[int, int, int]]:
    if family == "odd":
        return Odd(), (4, 9, 9)
    made = FAMILIES[family]()
    size = getattr(made, "image_size", None) or 32
    return made.build(), (getattr(made, "channels", 3), size, size)


@pytest.mark.parametrize("family", [*FAMILIES, "odd"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    model, shape = odd_or(family)
    with FlopCounterMode(display=False) as reference, torch.device("meta"), torch.no_grad():
        copy.deepcopy(model).to("meta").eval()(torch.empty(1, *shape))
    nothing = Slice(Layout([]), torch.empty(0, dtype=torch.int64))
    assert (
        forward_flops(SubModel(0, family, lambda: model, nothing, nothing), shape)
        == reference.get_total_flops()
        > 0
    )


VITS = {8: 14_571_658, 9: 16_346_122, 10: 18_120_586, 11: 19_895_050, 12: 21_669_514}


@pytest.mark.parametrize(("depth", "params"), VITS.items())
def test_published_vits(depth: int, params: int) -> None:
    family = ViTFamily(12, 384, 6, 16, 224, shape=(3, 224, 224), num_classes=10)
    assert count(lambda: family.build([depth])) == params
    assert (
        family.depth_levels() == [[8], [9], [10], [11], [12]]
        and family.level_name([depth]) == f"vit{depth}"
    )


def test_sizes_of_unpublished_models_are_asked_for() -> None:
    for family in (resnet(), vit()):
        with pytest.raises(ConfigError, match=r"split\.levels=null: the paper gives .*list"):
            family.depth_levels()


@pytest.mark.parametrize("training", [False, True])
def test_resnet18_is_torchvisions(training: bool) -> None:
    theirs = torchvision.models.resnet18(num_classes=7)
    ours = ResNetFamily([2, 2, 2, 2], [64, 128, 256, 512], shape=(3, 64, 64), num_classes=7).build()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    got, expected = ours.train(training)(x), theirs.train(training)(x)
    assert torch.allclose(got.logits, expected, atol=1e-5) and got.features.shape == (3, 512)
    assert torch.equal(ours.fc(got.features), got.logits), "features are what the classifier sees"
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-6), name


def test_resnet_first_weights_are_kaimings() -> None:
    """Normal with variance 2 / fan_out in convolutions; BatchNorm starts at one and zero, the last
    of a block too.
    """
    net = fresh(ResNetFamily([1, 1], [64, 128], shape=(3, 32, 32), num_classes=10), 0)
    for name, p in net.named_parameters():
        if p.ndim == 4:
            fan_out = p.shape[0] * p.shape[2] * p.shape[3]
            assert p.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
        elif name != "fc.bias" and p.ndim == 1:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name


@pytest.mark.parametrize("training", [False, True])
def test_vit_is_timms(training: bool) -> None:
    theirs = VisionTransformer(
        img_size=8, patch_size=4, num_classes=5, embed_dim=12, depth=3, num_heads=3, mlp_ratio=2.0
    )
    ours = vit().build()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    got = ours.train(training)(x)
    assert torch.equal(got.logits, theirs.train(training)(x)) and got.features.shape == (4, 12)
    assert torch.equal(ours.head(got.features), got.logits)


@pytest.mark.parametrize(("name", "keep"), CASES)
def test_axes_name_every_dimension_consistently(name: str, keep: tuple[int, ...] | None) -> None:
    family = FAMILIES[name]()
    net, axes = family.build(keep), family.axes(keep)
    params, buffers = layouts_of(net, axes)
    entries = [*params.entries.values(), *(e for e in buffers.entries.values() if not e.integer)]
    assert {e.name for e in entries} == set(axes), (
        "every parameter and floating-point buffer is named, and nothing else"
    )
    size: dict[str, int] = {}
    for entry in entries:
        assert len(entry.axes) == len(entry.shape)
        for axis, length in zip(entry.axes, entry.shape, strict=True):
            if axis is not None:
                assert size.setdefault(axis, length) == length, f"{entry.name}: {axis}"
    assert size["classes"] == 5 and size["image"] == x_of(family).shape[1]
    whole = family.axes()
    assert all(whole[n] == a for n, a in axes.items()), (
        "a smaller relative names its tensors as the global model does"
    )


def test_axes_are_what_can_be_cut() -> None:
    """Halving every channel group of the inside of a block leaves a network that computes: the ties
    are true ones.
    """
    family = resnet((2, 2), (4, 8))
    net, axes = family.build().eval(), family.axes()
    inside = {a for names in axes.values() for a in names if a and "." in a}
    assert inside == {"layer1.0", "layer1.1", "layer2.0", "layer2.1"}
    half = {}
    for name, tensor in net.state_dict().items():
        for dim, axis in enumerate(axes.get(name, ())):
            tensor = tensor.narrow(dim, 0, tensor.shape[dim] // 2) if axis in inside else tensor
        half[name] = tensor.clone()
    zeroed = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, tensor in zeroed.items():
        if name.endswith("conv2.weight"):
            tensor[:, tensor.shape[1] // 2 :] = (
                0  # what the cut channels would have fed is silenced
            )
    for block in sorted(inside):
        cut = net.get_submodule(block)
        width = half[f"{block}.conv1.weight"].shape
        cut.conv1 = nn.Conv2d(width[1], width[0], 3, cut.conv1.stride, 1, bias=False)
        cut.bn1, cut.conv2 = (
            nn.BatchNorm2d(width[0]),
            nn.Conv2d(width[0], 2 * width[0], 3, 1, 1, bias=False),
        )
    net.load_state_dict(half)
    silenced = family.build().eval()
    silenced.load_state_dict(zeroed)
    x = x_of(family)
    assert torch.allclose(net.eval()(x).logits, silenced(x).logits, atol=1e-6)


def x_of(family: ResNetFamily | ViTFamily) -> Tensor:
    return torch.randn(4, family.channels, 8, 8)


@pytest.mark.parametrize(("name", "keep"), CASES)
def test_taps_are_modules_whose_output_can_be_seen(name: str, keep: tuple[int, ...] | None) -> None:
    family = FAMILIES[name]()
    net, seen = family.build(keep), {}
    for tap, module in family.taps(keep).items():
        net.get_submodule(module).register_forward_hook(
            lambda _m, _i, out, tap=tap: seen.update({tap: out})
        )
    net(x_of(family))
    assert list(seen) == list(family.taps(keep)) and all(
        isinstance(t, Tensor) and len(t) == 4 for t in seen.values()
    )


@pytest.mark.parametrize("style", ["official", "paper"])
@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_are_those_found_by_name(name: str, style: str) -> None:
    family = FAMILIES[name]()
    layout, _ = layouts_of(family.build())
    stated, found = family.pairs(style), cross_layer_pairs(layout.entries, style)
    assert len(stated) == len(set(stated)) and set(stated) == set(found)
    assert all(layout.entries[p.target].shape == layout.entries[p.reference].shape for p in stated)


@pytest.mark.parametrize(("name", "keep"), CASES)
def test_every_parameter_receives_a_gradient(name: str, keep: tuple[int, ...] | None) -> None:
    family = FAMILIES[name]()
    net = fresh(family, 0, keep)
    net(x_of(family)).logits.logsumexp(1).sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters()
    )


def test_first_weights_depend_on_the_seed_alone() -> None:
    def draw(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in fresh(vit(), seed).parameters()])

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = draw(0)
    assert torch.equal(torch.random.get_rng_state(), before), (
        "the global generator is left as it was"
    )
    torch.rand(3)
    assert torch.equal(draw(0), first) and not torch.equal(draw(1), first)


def write(tensors: dict[str, Tensor], path: Path, kind: str) -> str:
    file = path.with_suffix(".safetensors" if kind == "safetensors" else ".pt")
    if kind == "safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if kind == "nested" else tensors, file)
    return str(file)


@pytest.mark.parametrize("kind", ["safetensors", "plain", "nested"])
@pytest.mark.parametrize("classes", [5, 9])
def test_pretrained_weights_are_loaded(tmp_path: Path, kind: str, classes: int) -> None:
    """All of them; a classifier of another size stays fresh."""
    for make, head in (
        (lambda p: vit(pretrained=p), "head."),
        (lambda p: resnet(pretrained=p), "fc."),
    ):
        donor = fresh(vit(num_classes=classes) if head == "head." else resnet(), 1).state_dict()
        if head == "fc.":
            donor |= {"fc.weight": torch.randn(classes, 8), "fc.bias": torch.randn(classes)}
        path = write(donor, tmp_path / head, kind)
        net, untouched = fresh(make(path), 0), fresh(make(False), 0).state_dict()
        make(path).load_pretrained(net)
        for name, tensor in net.state_dict().items():
            source = untouched if name.startswith(head) and classes != 5 else donor
            assert torch.equal(tensor, source[name]), name


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    wrong = fresh(vit(), 1).state_dict() | {"blocks.0.norm1.weight": torch.zeros(3)}
    del wrong["cls_token"]
    path = write(wrong, tmp_path / "w", "plain")
    net = fresh(vit(), 0)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(
        DataError,
        match=(
            r"pretrained=.*: 2 of \d+ tensors are missing or of another shape .*cls_token.*give"
            r" weights"
        ),
    ):
        vit(pretrained=path).load_pretrained(net)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("form", ["torch", "pickle", "renamed", "text", "no tensors"])
def test_files_that_are_not_tensors_run_nothing(tmp_path: Path, form: str) -> None:
    target, path = tmp_path / "ran", tmp_path / ("w.safetensors" if form == "renamed" else "w.pt")
    if form == "torch":
        torch.save({"cls_token": Bomb(target)}, path)
    elif form == "text":
        path.write_text("not weights")
    elif form == "no tensors":
        torch.save({"lr": 0.1}, path)
    else:
        path.write_bytes(pickle.dumps({"cls_token": Bomb(target)}, protocol=2))
    with pytest.raises(
        DataError,
        match=(
            r"(?s)model\.pretrained=.*cannot read it .*give a \.safetensors or \.pt file of named"
            r" tensors"
        ),
    ):
        vit(pretrained=str(path)).load_pretrained(fresh(vit(), 0))
    assert not target.exists()


def test_missing_weights_and_impossible_settings() -> None:
    with pytest.raises(ConfigError, match=r"model\.pretrained=/nowhere\.pt: no such file; use"):
        vit(pretrained="/nowhere.pt")
    with pytest.raises(
        ConfigError, match=r"image_size=30 with model\.patch=4.*use model\.image_size=28"
    ):
        ViTFamily(2, 12, 3, 4, 30, shape=(3, 30, 30), num_classes=5)
    with pytest.raises(
        ConfigError, match=r"image_size=8 with model\.patch=16.*use model\.image_size=16"
    ):
        ViTFamily(2, 12, 3, 16, 8, shape=(3, 8, 8), num_classes=5)
    with pytest.raises(ConfigError, match=r"dim=12 with model\.heads=5.*divisor of dim"):
        ViTFamily(2, 12, 5, 4, 8, shape=(3, 8, 8), num_classes=5)
    with pytest.raises(
        ConfigError, match=r"blocks=\[1, 1\] and model\.widths=\[4\]: give one of each a stage"
    ):
        resnet([1, 1], [4])
    for make in (lambda: vit(pretrained=True), lambda: resnet(pretrained=True)):
        with pytest.raises(ConfigError, match=r"pretrained=true: no weights are published"):
            make()

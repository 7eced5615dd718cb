"""ResNets of basic blocks with any depth and width in each stage.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016. Parameter names are
torchvision's, so that weights can be exchanged; the stage-split family is that of Chan et al., ICLR
2024, Appendix H.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from torch import Tensor, nn

from inco.errors import ConfigError
from inco.fast.small_maps import Conv3x3
from inco.flat import Axes
from inco.models import base
from inco.models.base import PLAIN, Exits, Group, Variant, head_axes, scaler
from inco.models.pointwise import Conv1x1
from inco.settings import COUNT, WEIGHTS, ImageSize, ProjectionHead, checked, many
from inco.types import Output, Pair


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, `inner` channels between them, and a shortcut."""

    def __init__(self, into: int, inner: int, out: int, stride: int, variant: Variant) -> None:
        super().__init__()
        self.conv1 = Conv3x3(into, inner, stride)
        self.bn1 = _batch_norm(inner, variant)
        self.conv2 = Conv3x3(inner, out)
        self.bn2 = _batch_norm(out, variant)
        self.relu = nn.ReLU(inplace=True)
        self.scaler = scaler(variant)
        self.downsample = None
        # the first block of a stage but the first; the stem has the width of the first stage
        if stride != 1:
            self.downsample = nn.Sequential(Conv1x1(into, out, stride), _batch_norm(out, variant))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.scaler(self.conv1(x))))
        return self.relu(self.bn2(self.scaler(self.conv2(out))) + shortcut)


class ExitHead(nn.Module):
    """An early classifier: three 3x3 convolutions, the mean over the map, a linear layer (Ilhan et
    al., CVPR 2023, published code).
    """

    def __init__(self, into: int, inner: Sequence[int], num_classes: int, variant: Variant) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1, 1, bias=False) for a, b in pairwise([into, *inner])
        )
        self.norms = nn.ModuleList(_batch_norm(c, variant) for c in inner)
        self.relu = nn.ReLU(inplace=True)
        self.scaler = scaler(variant)
        self.fc = nn.Linear(inner[-1], num_classes)

    def forward(self, x: Tensor) -> Output:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(self.scaler(conv(x))))
        features = x.mean((2, 3))
        return Output(self.fc(features), features)


class ResNet(nn.Module):
    """A stem, stages `layer1`, ... of `keep` blocks, and a linear classifier."""

    def __init__(self, family: ResNetFamily, keep: Sequence[int], variant: Variant) -> None:
        super().__init__()
        sizes = variant.sizes_of(family.groups(variant))
        width = sizes["layer1"]
        if family.stem == "imagenet":
            self.conv1 = nn.Conv2d(family.channels, width, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(family.channels, width, 3, 1, 1, bias=False)
        self.bn1 = _batch_norm(width, variant)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if family.stem == "imagenet" else nn.Identity()
        self.scaler = scaler(variant)
        self.stages = list(family.blocks)
        into = width
        for stage, depth in zip(self.stages, keep, strict=True):
            blocks = []
            for b in range(depth):
                stride = 2 if stage != "layer1" and b == 0 else 1
                blocks.append(
                    BasicBlock(into, sizes[f"{stage}.{b}"], sizes[stage], stride, variant)
                )
                into = sizes[stage]
            self.add_module(stage, nn.Sequential(*blocks))
        exits, ends = family.exits(keep, variant)
        if not ends:
            head = family.projection_head
            self.projection, seen = base.projection(into, head, family.widths[-1])
            self.fc = nn.Linear(seen, family.num_classes)
        heads = []
        for j, block in enumerate(exits):
            inner = [sizes[f"exits.{j}.{k}"] for k in range(3)]
            heads.append(ExitHead(sizes[_stage(block)], inner, family.num_classes, variant))
        self.exits = Exits(heads, exits, ends)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def steps(self) -> dict[str, Callable[[Tensor], Tensor | Output]]:
        """The forward pass as named steps, which relatives share; none with early heads."""
        if self.exits:
            return {}
        return {"stem": self._stem, **self._blocks(), "head": self._head}

    def _stem(self, x: Tensor) -> Tensor:
        # the maximum first: fewer pixels, the same values
        return self.relu(self.maxpool(self.bn1(self.scaler(self.conv1(x)))))

    def _blocks(self) -> dict[str, nn.Module]:
        return {
            f"{stage}.{b}": block
            for stage in self.stages
            for b, block in enumerate(self.get_submodule(stage).children())
        }

    def _head(self, x: Tensor) -> Output:
        features = self.projection(x.mean((2, 3)))
        return Output(self.fc(features), features)

    def forward(self, x: Tensor) -> Output:
        return self.exits.run(self._stem(x), self._blocks(), self._head)


class ResNetFamily:
    """A global ResNet and its relatives with fewer blocks per stage.

    `shape`: [C, H, W] of an image, any size; `num_classes`. Raises ConfigError where `blocks` and
    `widths` differ in length, and where published weights are asked for.
    """

    recipe = "resnet"
    after = ("projection", "fc")
    min_batch = 2  # BatchNorm over one 1x1 feature map of one image has no variance

    @checked("model")
    def __init__(
        self,
        blocks: Annotated[list[int], many(COUNT), "basic blocks of each stage"],
        widths: Annotated[list[int], many(COUNT), "channels of each stage"],
        stem: Annotated[
            Literal["imagenet", "small"],
            "first layers: imagenet, 7x7 stride 2 and max-pooling (the paper's); small, 3x3"
            " stride 1",
        ] = "imagenet",
        image_size: ImageSize = None,
        pretrained: Annotated[
            bool | str,
            WEIGHTS,
            "false: fresh weights; or the path of a .safetensors or .pt file of named tensors",
        ] = False,
        projection_head: ProjectionHead = "none",
        *,
        shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        if len(blocks) != len(widths):
            raise ConfigError(
                f"model.blocks={list(blocks)} and model.widths={list(widths)}: give one of each a"
                " stage"
            )
        instead = "false, the path of a file, or model=vit_small"
        base.check_weights(pretrained, False, "ResNet", instead)
        self.blocks = {f"layer{s}": depth for s, depth in enumerate(blocks, start=1)}
        self.widths = list(widths)
        self.stem = stem
        self.image_size = image_size
        self.pretrained = pretrained
        self.channels = shape[0]
        self.num_classes = num_classes
        self.projection_head = projection_head
        self.name = self.level_name(list(blocks))

    def build(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> nn.Module:
        return ResNet(self, self._kept(keep, variant), variant)

    def _kept(self, keep: Sequence[int] | None, variant: Variant) -> list[int]:
        return base.check_keep(self.name, self.blocks, keep, least=0 if variant.exits else 1)

    def exits(self, kept: Sequence[int], variant: Variant) -> tuple[list[str], bool]:
        """Return the blocks before a relative's heads, and whether the last head classifies."""
        within, ends = variant.heads(sum(kept), sum(self.blocks.values()))
        return [self._block(number) for number in within], ends

    def _block(self, number: int) -> str:
        """Return the name of the block `number` of the global model, counted from 1."""
        names = [f"{stage}.{b}" for stage, depth in self.blocks.items() for b in range(depth)]
        if number > len(names):
            raise ConfigError(
                f"split.exits has a head after more blocks than the {len(names)} of {self.name};"
                " list fewer"
            )
        return names[number - 1]

    def groups(self, variant: Variant = PLAIN) -> dict[str, Group]:
        """`layerS` is a stage's residual stream (the stem's is layer1), `layerS.B` the inside of a
        block, `exits.J.K` that of a head.
        """
        out: dict[str, Group] = {}
        for (stage, depth), width in zip(self.blocks.items(), self.widths, strict=True):
            out |= {stage: Group(width)} | {f"{stage}.{b}": Group(width) for b in range(depth)}
        for j, number in enumerate(variant.exits):
            group = out[_stage(self._block(number))]
            out |= {f"exits.{j}.{k}": group for k in range(3)}
        return out

    def level_name(self, keep: Sequence[int]) -> str:
        return f"resnet{2 + 2 * sum(keep)}"

    def depth_levels(self) -> list[list[int]]:
        """Resnet10, 14, 18, 22 and 26 for three blocks per stage (Appendix H.4)."""
        if list(self.blocks.values()) != [3, 3, 3, 3]:
            raise ConfigError(
                f"split.levels=null: the paper gives no sizes for {self.name}; list blocks per"
                " stage yourself"
            )
        return [[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2], [2, 2, 3, 3], [3, 3, 3, 3]]

    def axes(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> dict[str, Axes]:
        """Name channel groups, as `groups` does; "image" and "classes" are never cut."""
        kept = self._kept(keep, variant)
        out = _conv_axes("conv1", "bn1", "layer1", "image")
        into = "layer1"
        for stage, depth in zip(self.blocks, kept, strict=True):
            for b in range(depth):
                name = f"{stage}.{b}"
                out |= _conv_axes(f"{name}.conv1", f"{name}.bn1", name, into)
                out |= _conv_axes(f"{name}.conv2", f"{name}.bn2", stage, name)
                if into != stage:
                    down = f"{name}.downsample"
                    out |= _conv_axes(f"{down}.0", f"{down}.1", stage, into)
                into = stage
        exits, ends = self.exits(kept, variant)
        for j, block in enumerate(exits):
            takes = _stage(block)
            for k in range(3):
                inner = f"exits.{j}.{k}"
                out |= _conv_axes(f"exits.{j}.convs.{k}", f"exits.{j}.norms.{k}", inner, takes)
                takes = inner
            out |= head_axes(f"exits.{j}.fc", takes, "none")
        return out if ends else out | head_axes("fc", into, self.projection_head)

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """One tap per stage: its last block's output."""
        kept = base.check_keep(self.name, self.blocks, keep, least=0)
        depths = zip(self.blocks, kept, strict=True)
        return {stage: f"{stage}.{depth - 1}" for stage, depth in depths if depth}

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Official: every later block's convolutions from the first block's second.

        Paper: from the first of equal shape.
        """
        found = []
        for s, (stage, depth) in enumerate(self.blocks.items()):
            widened = s > 0 and self.widths[s] != self.widths[s - 1]
            first = "conv2" if style == "official" or widened else "conv1"
            if style == "paper" and not widened:
                found.append(Pair(f"{stage}.0.conv2.weight", f"{stage}.0.conv1.weight"))
            for b in range(1, depth):
                for conv in ("conv1", "conv2"):
                    found.append(Pair(f"{stage}.{b}.{conv}.weight", f"{stage}.0.{first}.weight"))
        return tuple(found)

    def load_pretrained(self, model: nn.Module) -> None:
        if self.pretrained:
            path = str(self.pretrained)
            base.copy_matching(model, base.read_weights(path), path, head="fc.")


def _batch_norm(channels: int, variant: Variant) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=not variant.batch_stats)


def _stage(block: str) -> str:
    return block.partition(".")[0]


def _conv_axes(conv: str, norm: str, produces: str, takes: str) -> dict[str, Axes]:
    """Name the channel groups of a convolution and of the norm behind it."""
    tensors = ("weight", "bias", "running_mean", "running_var")
    return {f"{conv}.weight": (produces, takes, None, None)} | {
        f"{norm}.{tensor}": (produces,) for tensor in tensors
    }

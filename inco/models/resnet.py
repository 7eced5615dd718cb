"""ResNets of basic blocks with any depth and width in each stage.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016. Parameter names are torchvision's, so that weights can be
exchanged; the stage-split family is that of Chan et al., ICLR 2024, Appendix H.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from inco.errors import ConfigError
from inco.flat import Axes
from inco.models.base import check_keep, copy_matching, head_axes, projection, read_weights
from inco.types import Output, Pair


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [m, into, h, w] -> [m, out, h/stride, w/stride]."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2`, ... and a linear classifier: [m, channels, h, w] -> Output."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], stem: str, channels: int, num_classes: int, projection_head: str = "none"
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(channels, widths[0], 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        into, self.stages = widths[0], []
        for s, (depth, out) in enumerate(zip(blocks, widths, strict=True), start=1):
            stride = 1 if s == 1 else 2
            stage = nn.Sequential(*(BasicBlock(out if b else into, out, 1 if b else stride) for b in range(depth)))
            self.add_module(f"layer{s}", stage)
            self.stages.append(f"layer{s}")
            into = out
        self.projection, seen = projection(into, projection_head)
        self.fc = nn.Linear(seen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Output:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        features = self.projection(x.mean((2, 3)))
        return Output(self.fc(features), features)


class ResNetFamily:
    """A global ResNet and its relatives with fewer blocks a stage.

    `blocks`, `widths`: blocks and channels of each stage of the global model; `stem`: "imagenet" (7x7 stride 2 and max-pooling, the
    paper's, kept even at 32x32) or "small" (3x3 stride 1); `image_size`: side in pixels that images are resized to (None: the dataset's
    usual one; any size fits the model); `pretrained`: false or a file of weights; `projection_head`: none or mlp (MOON's);
    `shape`: [C, H, W] of an image; `num_classes`.
    """

    recipe = "resnet"
    min_batch = 2  # BatchNorm over one 1x1 feature map of one image has no variance

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        stem: str = "imagenet",
        image_size: int | None = None,
        pretrained: bool | str = False,
        projection_head: str = "none",
        *,
        shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        if len(blocks) != len(widths):
            raise ConfigError(f"model.blocks={list(blocks)} and model.widths={list(widths)}: give one of each a stage")
        if stem not in ("imagenet", "small"):
            raise ConfigError(f"model.stem={stem}: must be imagenet or small")
        if pretrained is True:
            raise ConfigError("model.pretrained=true: no weights are published for this ResNet; use false or a path to a file")
        self.blocks = {f"layer{s}": depth for s, depth in enumerate(blocks, start=1)}
        self.widths, self.stem, self.image_size, self.pretrained = list(widths), stem, image_size, pretrained
        self.channels, self.num_classes, self.projection_head = shape[0], num_classes, projection_head
        self.name = self.level_name(list(blocks))

    def build(self, keep: Sequence[int] | None = None) -> nn.Module:
        kept = check_keep(self.name, self.blocks, keep)
        return ResNet(kept, self.widths, self.stem, self.channels, self.num_classes, self.projection_head)

    def level_name(self, keep: Sequence[int]) -> str:
        return f"resnet{2 + 2 * sum(keep)}"

    def depth_levels(self) -> list[list[int]]:
        """Resnet10, 14, 18, 22 and 26 for three blocks a stage (Appendix H.4); the same growth, capped, for other depths."""
        table = ((1, 1, 1, 1), (1, 1, 2, 2), (2, 2, 2, 2), (2, 2, 3, 3), (3, 3, 3, 3))
        if list(self.blocks.values()) != [3, 3, 3, 3]:
            raise ConfigError(f"split.levels=null: the paper gives no sizes for {self.name}; list blocks per stage yourself")
        return [list(level) for level in table]

    def axes(self, keep: Sequence[int] | None = None) -> dict[str, Axes]:
        """Name channel groups: `layerS` is a stage's residual stream, `layerS.B` the inside of a block; the stem's is layer1."""
        out: dict[str, Axes] = {}
        _conv(out, "conv1", "layer1", "image")
        _norm(out, "bn1", "layer1")
        into = "layer1"
        for s, (stream, depth) in enumerate(zip(self.blocks, check_keep(self.name, self.blocks, keep), strict=True)):
            for b in range(depth):
                block = f"{stream}.{b}"
                _conv(out, f"{block}.conv1", block, into if b == 0 else stream)
                _norm(out, f"{block}.bn1", block)
                _conv(out, f"{block}.conv2", stream, block)
                _norm(out, f"{block}.bn2", stream)
                if b == 0 and s > 0:
                    _conv(out, f"{block}.downsample.0", stream, into)
                    _norm(out, f"{block}.downsample.1", stream)
            into = stream
        return out | head_axes("fc", into, self.projection_head)

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """One tap a stage: its last block's output."""
        return {stage: stage for stage in self.blocks}

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """Official: every later block's convolutions from the first block's second. Paper: from the first of equal shape."""
        found = []
        for s, (stage, depth) in enumerate(self.blocks.items()):
            widened = s > 0 and self.widths[s] != self.widths[s - 1]
            first = "conv2" if style == "official" or widened else "conv1"
            if style == "paper" and not widened:
                found.append(Pair(f"{stage}.0.conv2.weight", f"{stage}.0.conv1.weight"))
            for b in range(1, depth):
                found += [Pair(f"{stage}.{b}.{conv}.weight", f"{stage}.0.{first}.weight") for conv in ("conv1", "conv2")]
        return tuple(found)

    def load_pretrained(self, model: nn.Module) -> None:
        if self.pretrained:
            copy_matching(model, read_weights(str(self.pretrained)), str(self.pretrained), head="fc.")


def _conv(out: dict[str, Axes], name: str, produces: str, takes: str) -> None:
    out[f"{name}.weight"] = (produces, takes, None, None)


def _norm(out: dict[str, Axes], name: str, channels: str) -> None:
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        out[f"{name}.{tensor}"] = (channels,)

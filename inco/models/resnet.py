"""ResNets of basic blocks with any depth and width in each stage.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016. Parameter names are
torchvision's, so that weights can be exchanged; the stage-split family is that of Chan et al., ICLR
2024, Appendix H.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

from torch import Tensor, nn

from inco.errors import ConfigError
from inco.fast.small_maps import Conv3x3
from inco.flat import Axes
from inco.models.base import (
    PLAIN,
    Form,
    Group,
    check_keep,
    check_weights,
    copy_matching,
    head_axes,
    heads_within,
    projection,
    read_weights,
    scaler,
)
from inco.models.pointwise import Conv1x1
from inco.settings import COUNT, WEIGHTS, ImageSize, ProjectionHead, checked, many
from inco.types import Output, Pair


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [m, into, h, w] -> [m, out, h/stride, w/stride]; `inner`
    channels between them.
    """

    def __init__(self, into: int, inner: int, out: int, stride: int, form: Form) -> None:
        super().__init__()
        self.conv1 = Conv3x3(into, inner, stride)
        self.bn1 = _batch_norm(inner, form)
        self.conv2 = Conv3x3(inner, out)
        self.bn2 = _batch_norm(out, form)
        self.relu = nn.ReLU(inplace=True)
        self.scaler = scaler(form)
        self.downsample = None
        # the first block of a stage but the first; the stem has the width of the first stage
        if stride != 1:
            self.downsample = nn.Sequential(Conv1x1(into, out, stride), _batch_norm(out, form))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.scaler(self.conv1(x))))
        return self.relu(self.bn2(self.scaler(self.conv2(out))) + shortcut)


class ExitHead(nn.Module):
    """An early classifier: three 3x3 convolutions, the mean over the map, a linear layer (Ilhan et
    al., CVPR 2023, published code).
    """

    def __init__(self, into: int, inner: Sequence[int], num_classes: int, form: Form) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, 1, 1, bias=False) for a, b in pairwise([into, *inner])
        )
        self.norms = nn.ModuleList(_batch_norm(c, form) for c in inner)
        self.relu = nn.ReLU(inplace=True)
        self.scaler = scaler(form)
        self.fc = nn.Linear(inner[-1], num_classes)

    def forward(self, x: Tensor) -> Output:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.relu(norm(self.scaler(conv(x))))
        features = x.mean((2, 3))
        return Output(self.fc(features), features)


class ResNet(nn.Module):
    """A stem, stages `layer1`, `layer2`, ... and a linear classifier: [m, channels, h, w] ->
    Output.

    `keep`: blocks of each stage; `sizes`: channels of each group; `exits`: stage and number of its
    blocks after which each early head stands; `ends`: the last of them is the classifier; `hidden`:
    features within a projection head (0: as many as it is given).
    """

    def __init__(
        self,
        keep: Sequence[int],
        sizes: Mapping[str, int],
        stem: str,
        channels: int,
        num_classes: int,
        projection_head: str = "none",
        form: Form = PLAIN,
        exits: Sequence[tuple[int, int]] = (),
        ends: bool = False,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        width = sizes["layer1"]
        self.conv1 = nn.Conv2d(
            channels, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False
        )
        self.bn1 = _batch_norm(width, form)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.scaler = scaler(form)
        self.stages = []
        self.ends = ends
        into = width
        for s, depth in enumerate(keep, start=1):
            name = f"layer{s}"
            blocks = []
            for b in range(depth):
                stride = 2 if s > 1 and b == 0 else 1
                blocks.append(BasicBlock(into, sizes[f"{name}.{b}"], sizes[name], stride, form))
                into = sizes[name]
            self.add_module(name, nn.Sequential(*blocks))
            self.stages.append(name)
        if not ends:
            self.projection, seen = projection(into, projection_head, hidden or into)
            self.fc = nn.Linear(seen, num_classes)
        self._heads = {place: j for j, place in enumerate(exits)}
        self.exits = nn.ModuleList(
            ExitHead(
                sizes[f"layer{s}"], [sizes[f"exits.{j}.{k}"] for k in range(3)], num_classes, form
            )
            for j, (s, _) in enumerate(exits)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def steps(self) -> dict[str, Callable[[Tensor], Tensor | Output]]:
        """The forward pass as named steps, of which relatives share the first; none with early
        heads.
        """
        blocks = {
            f"{stage}.{b}": block
            for stage in self.stages
            for b, block in enumerate(self.get_submodule(stage).children())
        }
        return {} if self._heads else {"stem": self._stem, **blocks, "head": self._head}

    def _stem(self, x: Tensor) -> Tensor:
        # the maximum first: fewer pixels, the same values
        return self.relu(self.maxpool(self.bn1(self.scaler(self.conv1(x)))))

    def _head(self, x: Tensor) -> Output:
        features = self.projection(x.mean((2, 3)))
        return Output(self.fc(features), features)

    def forward(self, x: Tensor) -> Output:
        x = self._stem(x)
        early: list[Tensor] = []
        for s, stage in enumerate(self.stages, start=1):
            for b, block in enumerate(self.get_submodule(stage).children(), start=1):
                x = block(x)
                head = self._heads.get((s, b))
                if head is not None and (self.training or self.ends):
                    last = self.ends and head == len(self.exits) - 1
                    if last:
                        logits, features, _ = self.exits[head](x)
                        return Output(logits, features, tuple(early))
                    if self.training:
                        early.append(self.exits[head](x).logits)
        return self._head(x)._replace(exits=tuple(early))


class ResNetFamily:
    """A global ResNet and its relatives with fewer blocks a stage.

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
        if pretrained is True:
            raise ConfigError(
                "model.pretrained=true: no weights are published for this ResNet; use false, the"
                " path of a file, or model=vit_small"
            )
        self.blocks = {f"layer{s}": depth for s, depth in enumerate(blocks, start=1)}
        self.widths = list(widths)
        self.stem = stem
        self.image_size = image_size
        check_weights(pretrained)
        self.pretrained = pretrained
        self.channels = shape[0]
        self.num_classes = num_classes
        self.projection_head = projection_head
        self.name = self.level_name(list(blocks))

    def build(self, keep: Sequence[int] | None = None, form: Form = PLAIN) -> nn.Module:
        kept = self._kept(keep, form)
        sizes = {
            name: form.sizes.get(name, group.size) for name, group in self.groups(form).items()
        }
        exits, ends = self._exits(kept, form)
        return ResNet(
            kept,
            sizes,
            self.stem,
            self.channels,
            self.num_classes,
            self.projection_head,
            form,
            exits,
            ends,
            self.widths[-1],
        )

    def _kept(self, keep: Sequence[int] | None, form: Form) -> list[int]:
        return check_keep(self.name, self.blocks, keep, least=0 if form.exits else 1)

    def _exits(self, kept: Sequence[int], form: Form) -> tuple[list[tuple[int, int]], bool]:
        """Where the heads of a relative stand, as (stage, number of its blocks), and whether the
        last is its classifier.
        """
        within, ends = heads_within(form, sum(kept), sum(self.blocks.values()))
        return [self._place(after) for after in within], ends

    def _place(self, after: int) -> tuple[int, int]:
        for s, depth in enumerate(self.blocks.values(), start=1):
            if after <= depth:
                return s, after
            after -= depth
        raise ConfigError(
            f"split.exits has a head after more blocks than the {sum(self.blocks.values())} of"
            f" {self.name}; list fewer"
        )

    def groups(self, form: Form = PLAIN) -> dict[str, Group]:
        """`layerS` is a stage's residual stream (the stem's is layer1), `layerS.B` the inside of a
        block, `exits.J.K` that of a head.
        """
        out: dict[str, Group] = {}
        for (stage, depth), width in zip(self.blocks.items(), self.widths, strict=True):
            out |= {stage: Group(width)} | {f"{stage}.{b}": Group(width) for b in range(depth)}
        for j, after in enumerate(form.exits):
            out |= {
                f"exits.{j}.{k}": Group(self.widths[self._place(after)[0] - 1]) for k in range(3)
            }
        return out

    def level_name(self, keep: Sequence[int]) -> str:
        return f"resnet{2 + 2 * sum(keep)}"

    def depth_levels(self) -> list[list[int]]:
        """Resnet10, 14, 18, 22 and 26 for three blocks a stage (Appendix H.4); the same growth,
        capped, for other depths.
        """
        table = ((1, 1, 1, 1), (1, 1, 2, 2), (2, 2, 2, 2), (2, 2, 3, 3), (3, 3, 3, 3))
        if list(self.blocks.values()) != [3, 3, 3, 3]:
            raise ConfigError(
                f"split.levels=null: the paper gives no sizes for {self.name}; list blocks per"
                " stage yourself"
            )
        return [list(level) for level in table]

    def axes(self, keep: Sequence[int] | None = None, form: Form = PLAIN) -> dict[str, Axes]:
        """Name channel groups, as `groups` does; "image" and "classes" are never cut."""
        out: dict[str, Axes] = {}
        _conv(out, "conv1", "layer1", "image")
        _norm(out, "bn1", "layer1")
        into = "layer1"
        kept = self._kept(keep, form)
        for s, (stream, depth) in enumerate(zip(self.blocks, kept, strict=True), start=1):
            for b in range(depth):
                block = f"{stream}.{b}"
                _conv(out, f"{block}.conv1", block, into if b == 0 else stream)
                _norm(out, f"{block}.bn1", block)
                _conv(out, f"{block}.conv2", stream, block)
                _norm(out, f"{block}.bn2", stream)
                if b == 0 and s > 1:
                    _conv(out, f"{block}.downsample.0", stream, into)
                    _norm(out, f"{block}.downsample.1", stream)
            into = stream if depth else into
        exits, ends = self._exits(kept, form)
        for j, (s, _) in enumerate(exits):
            takes = f"layer{s}"
            for k in range(3):
                _conv(out, f"exits.{j}.convs.{k}", f"exits.{j}.{k}", takes)
                takes = f"exits.{j}.{k}"
                _norm(out, f"exits.{j}.norms.{k}", takes)
            out |= head_axes(f"exits.{j}.fc", takes, "none")
        return out if ends else out | head_axes("fc", into, self.projection_head)

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """One tap a stage: its last block's output."""
        kept = check_keep(self.name, self.blocks, keep, least=0)
        return {
            stage: f"{stage}.{depth - 1}"
            for stage, depth in zip(self.blocks, kept, strict=True)
            if depth
        }

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
                found += [
                    Pair(f"{stage}.{b}.{conv}.weight", f"{stage}.0.{first}.weight")
                    for conv in ("conv1", "conv2")
                ]
        return tuple(found)

    def load_pretrained(self, model: nn.Module) -> None:
        if self.pretrained:
            copy_matching(
                model, read_weights(str(self.pretrained)), str(self.pretrained), head="fc."
            )


def _batch_norm(channels: int, form: Form) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=not form.batch_stats)


def _conv(out: dict[str, Axes], name: str, produces: str, takes: str) -> None:
    out[f"{name}.weight"] = (produces, takes, None, None)


def _norm(out: dict[str, Axes], name: str, channels: str) -> None:
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        out[f"{name}.{tensor}"] = (channels,)

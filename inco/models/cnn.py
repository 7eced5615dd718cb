"""A plain network without BatchNorm: convolutions and pooling, one hidden layer, a classifier.

In shape the network of the first federated experiments (McMahan et al., AISTATS 2017); that of
`model=cnn` has 201,538 parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn

from inco.errors import ConfigError
from inco.fast.pooling import MaxPool2x2
from inco.flat import Axes
from inco.models.base import PLAIN, Group, Variant, linear_axes, scaler
from inco.settings import COUNT, ImageSize, at_least, checked, many
from inco.types import Output, Pair


class CNN(nn.Module):
    """[m, channels, S, S] -> Output.

    The last map is read position by position, all channels of one after the other: so the hidden
    layer's inputs are copies of the last convolution's channels (see `Group.of`), and a map that
    lies channels-last in memory is read without a copy.
    """

    def __init__(self, family: CNNFamily, variant: Variant) -> None:
        super().__init__()
        sizes = variant.sizes_of(family.groups(variant))
        maps = [sizes[name] for name in family.convs]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, family.kernel, padding=family.padding)
            for a, b in pairwise([family.channels, *maps])
        )
        self.pool = MaxPool2x2()
        self.relu = nn.ReLU(inplace=True)
        self.scaler = scaler(variant)
        self.hidden = nn.Linear(family.positions * maps[-1], sizes["hidden"])
        self.fc = nn.Linear(sizes["hidden"], family.num_classes)

    def forward(self, x: Tensor) -> Output:
        for conv in self.convs:
            # the same as the other way round, on a quarter of the pixels
            x = self.relu(self.pool(self.scaler(conv(x))))
        features = self.relu(self.scaler(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))
        return Output(self.fc(features), features)


class CNNFamily:
    """A plain CNN and its relatives of other widths; it has no blocks to leave out.

    `shape`: [C, S, S] of an image; `num_classes`. Raises ConfigError where images are too small for
    the convolutions.
    """

    name = "cnn"
    recipe = "resnet"
    after = ("hidden", "fc")
    min_batch = 1

    @checked("model")
    def __init__(
        self,
        conv_channels: Annotated[
            list[int],
            many(COUNT),
            "channels of each convolution; a 2x2 max-pooling follows each",
        ],
        hidden: Annotated[int, COUNT, "features before the classifier"],
        kernel: Annotated[int, COUNT, "side of a convolution, pixels"] = 5,
        padding: Annotated[int, at_least(0), "zeros around each map, pixels a side"] = 0,
        image_size: ImageSize = None,
        *,
        shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:
        self.blocks: Mapping[str, int] = {}
        self.convs = {f"convs.{i}": size for i, size in enumerate(conv_channels)}
        self.hidden = hidden
        self.kernel = kernel
        self.padding = padding
        self.image_size = image_size
        self.channels = shape[0]
        self.num_classes = num_classes
        side = shape[1]
        for _ in conv_channels:
            side = (side + 2 * padding - kernel + 1) // 2
            if side < 1:
                raise ConfigError(
                    f"model.kernel={kernel} and model.padding={padding} with images of"
                    f" {shape[1]}x{shape[1]}: nothing is left of the map after"
                    f" {len(conv_channels)} convolutions; use a larger model.image_size or"
                    f" model.padding={kernel // 2}"
                )
        self.positions = side**2  # pixels of the last map

    def build(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> nn.Module:
        _check_whole(keep)
        return CNN(self, variant)

    def groups(self, variant: Variant = PLAIN) -> dict[str, Group]:
        """`convs.I` are a convolution's channels, `hidden` the hidden layer's features, `map` its
        inputs: last channels, by position.
        """
        _check_whole(variant.exits)
        last = list(self.convs)[-1]
        return {name: Group(size) for name, size in self.convs.items()} | {
            "hidden": Group(self.hidden),
            "map": Group(self.positions * self.convs[last], of=last),
        }

    def level_name(self, keep: Sequence[int]) -> str:
        _check_whole(keep)
        return self.name

    def depth_levels(self) -> list[list[int]]:
        raise _no_blocks()

    def axes(self, keep: Sequence[int] | None = None, variant: Variant = PLAIN) -> dict[str, Axes]:
        """Name channel groups, as `groups` does; "image" and "classes" are never cut."""
        _check_whole(keep)
        _check_whole(variant.exits)
        out: dict[str, Axes] = {}
        for takes, name in pairwise(["image", *self.convs]):
            out[f"{name}.weight"] = (name, takes, None, None)
            out[f"{name}.bias"] = (name,)
        return out | linear_axes("hidden", "hidden", "map") | linear_axes("fc", "classes", "hidden")

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """One tap per convolution and one for the hidden layer: outputs before ReLU and pooling."""
        _check_whole(keep)
        return {name: name for name in [*self.convs, "hidden"]}

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """None: no two layers have one shape and one role."""
        return ()

    def load_pretrained(self, model: nn.Module) -> None:
        """Nothing: no weights are published for it."""


def _check_whole(blocks: Sequence[int] | None) -> None:
    if blocks:
        raise _no_blocks()


def _no_blocks() -> ConfigError:
    return ConfigError(
        "model=cnn has no blocks that smaller clients could leave out; use split=none, width or"
        " rolling"
    )

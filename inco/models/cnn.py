"""A plain convolutional network without BatchNorm: convolutions and pooling, one hidden layer, a
classifier.

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
from inco.models.base import PLAIN, Form, Group, head_axes, scaler
from inco.settings import COUNT, ImageSize, at_least, checked, many
from inco.types import Output, Pair


class CNN(nn.Module):
    """[m, channels, S, S] -> Output. `sizes`: channels of each convolution, and features of the
    hidden layer; `positions`: of the last map.

    The map is read position by position, all channels of one after the other: so the hidden layer's
    inputs are copies of the last convolution's channels (see `Group.of`), and a map that lies
    channels-last in memory is read without a copy.
    """

    def __init__(
        self,
        channels: int,
        sizes: Sequence[int],
        kernel: int,
        padding: int,
        positions: int,
        num_classes: int,
        form: Form = PLAIN,
    ) -> None:
        super().__init__()
        *maps, hidden = sizes
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=padding) for a, b in pairwise([channels, *maps])
        )
        self.pool = MaxPool2x2()
        self.relu = nn.ReLU(inplace=True)
        self.scaler = scaler(form)
        self.hidden = nn.Linear(positions * maps[-1], hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Output:
        for conv in self.convs:
            # the same as the other way round, on a quarter of the pixels
            x = self.relu(self.pool(self.scaler(conv(x))))
        features = self.relu(self.scaler(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))
        return Output(self.fc(features), features)


class CNNFamily:
    """A plain CNN and its relatives of other widths; it has no blocks that a relative could leave
    out.

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
        self.conv_channels = list(conv_channels)
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
                    f" {len(self.conv_channels)} convolutions; use a larger model.image_size or"
                    f" model.padding={kernel // 2}"
                )
        self.positions = side**2

    def build(self, keep: Sequence[int] | None = None, form: Form = PLAIN) -> nn.Module:
        self._whole(keep, form)
        sizes = [
            form.sizes.get(name, group.size)
            for name, group in self.groups(form).items()
            if group.of is None
        ]
        return CNN(
            self.channels, sizes, self.kernel, self.padding, self.positions, self.num_classes, form
        )

    def _whole(self, keep: Sequence[int] | None, form: Form = PLAIN) -> None:
        if keep or form.exits:
            raise _no_blocks()

    def groups(self, form: Form = PLAIN) -> dict[str, Group]:
        """`convs.I` are a convolution's channels, `hidden` the hidden layer's features, `map` its
        inputs: last channels, by position.
        """
        self._whole(None, form)
        out = {f"convs.{i}": Group(size) for i, size in enumerate(self.conv_channels)}
        last = f"convs.{len(self.conv_channels) - 1}"
        return out | {
            "hidden": Group(self.hidden),
            "map": Group(self.positions * self.conv_channels[-1], of=last),
        }

    def level_name(self, keep: Sequence[int]) -> str:
        self._whole(keep)
        return self.name

    def depth_levels(self) -> list[list[int]]:
        raise _no_blocks()

    def axes(self, keep: Sequence[int] | None = None, form: Form = PLAIN) -> dict[str, Axes]:
        """Name channel groups, as `groups` does; "image" and "classes" are never cut."""
        self._whole(keep, form)
        out: dict[str, Axes] = {}
        takes = "image"
        for i in range(len(self.conv_channels)):
            produces = f"convs.{i}"
            out[f"{produces}.weight"] = (produces, takes, None, None)
            out[f"{produces}.bias"] = (produces,)
            takes = produces
        out["hidden.weight"] = ("hidden", "map")
        out["hidden.bias"] = ("hidden",)
        return out | head_axes("fc", "hidden", "none")

    def taps(self, keep: Sequence[int] | None = None) -> dict[str, str]:
        """One tap a convolution and one for the hidden layer: their outputs, before ReLU and
        pooling.
        """
        self._whole(keep)
        names = [*(f"convs.{i}" for i in range(len(self.conv_channels))), "hidden"]
        return {name: name for name in names}

    def pairs(self, style: str) -> tuple[Pair, ...]:
        """None: no two layers have one shape and one role."""
        return ()

    def load_pretrained(self, model: nn.Module) -> None:
        """Nothing: no weights are published for it."""


def _no_blocks() -> ConfigError:
    return ConfigError(
        "model=cnn has no blocks that smaller clients could leave out; use split=none, width or"
        " rolling"
    )

"""Batched image transforms on the images' device: uint8 `[m, C, H, W]` in, float32 out.

Steps that only move pixels (crop, flip) come first and work on bytes, four times cheaper than
floats. `Normalise` and the resizing steps commute (interpolation weights sum to one), so a recipe
normalises on whichever side of the resize has fewer pixels. Resizing is in float32 and is not
rounded back to 8 bits as PIL does: values differ from a PIL pipeline by at most about one grey
level (1/255 before normalisation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Step = Callable[[Tensor, Generator], Tensor]
"""One batched operation on `[m, C, H, W]`; the generator supplies every random number."""


@dataclass(frozen=True, eq=False)
class Transform:
    """A sequence of steps: uint8 `[m, C, H, W]` -> float32 `[m, C', S, S]`.

    The generator may live on the CPU or on the images' device; a CPU generator draws the same
    numbers for every device.
    """

    steps: Sequence[Step]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        for step in self.steps:
            images = step(images, generator)
        return images


def integers(high: int | Tensor, count: int, generator: Generator, device: torch.device) -> Tensor:
    """Draw int64 `[count]`, uniform on `[0, high)`: one bound for all, or one per number."""
    if isinstance(high, int):
        drawn = torch.randint(high, (count,), generator=generator, device=generator.device)
        return drawn.to(device)
    # rand < 1, but the float32 product can round up to `high` itself: the minimum keeps it inside
    return torch.minimum((uniform((count,), generator, device) * high).long(), high - 1)


def uniform(shape: tuple[int, ...], generator: Generator, device: torch.device) -> Tensor:
    """Draw float32 values of the given shape, uniform on `[0, 1)`."""
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


@dataclass(frozen=True, eq=False)
class RandomCrop:
    """Zero-pad by `pad` on each side, then cut a window of the original size at a random place."""

    pad: int

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        reach = 2 * self.pad + 1
        top = integers(reach, len(x), generator, x.device)
        left = integers(reach, len(x), generator, x.device)
        return shift_crop(x, self.pad, top, left)


def shift_crop(x: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """Cut the window at (`top`, `left`), `[m]` in `0..2 pad`, of each zero-padded image."""
    height, width = x.shape[-2:]
    # a view: [m, C, 2p+1, 2p+1, H, W]
    windows = F.pad(x, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


@dataclass(frozen=True, eq=False)
class RandomFlip:
    """Mirror each image left to right with probability one half."""

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        mirrored = uniform((len(x), 1, 1, 1), generator, x.device) < 0.5
        return torch.where(mirrored, x.flip(-1), x)


Constants = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Normalise:
    """Map bytes to `(x / full - mean) / std`, per channel, in float32; `full` is the top byte."""

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    full: float = 255.0
    _on: dict[torch.device, Constants] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        # kept for each device: a copy would make a GPU wait
        if x.device not in self._on:
            self._on[x.device] = self._constants(x.device)
        scale, shift = self._on[x.device]
        return x.float().mul(scale).add_(shift)

    def _constants(self, device: torch.device) -> Constants:
        """Return scale and shift, [1, C, 1, 1]."""
        mean = torch.tensor(self.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(1, -1, 1, 1)
        scale = 1 / (self.full * std)
        shift = -mean / std
        return scale.float().to(device), shift.float().to(device)


@dataclass(frozen=True, eq=False)
class Resize:
    """Resize to `size` x `size`, bilinear; antialiased when it shrinks, as torchvision does."""

    size: int

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        shrinks = self.size < max(x.shape[-2:])
        size = (self.size, self.size)
        return F.interpolate(x.float(), size, mode="bilinear", antialias=shrinks)


@dataclass(frozen=True, eq=False)
class Replicate:
    """Repeat a single channel `channels` times: `[m, 1, H, W]` -> `[m, channels, H, W]`."""

    channels: int

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        return x.expand(-1, self.channels, -1, -1).contiguous()


@dataclass(frozen=True, eq=False)
class Cutout:
    """Zero a square of side `length`, centred at a uniform pixel and clipped at the border.

    Works after normalisation, so the square holds the channel mean. Rows `[y - length/2, y +
    length/2)`, likewise columns. DeVries and Taylor, "Improved Regularization of Convolutional
    Neural Networks with Cutout", 2017.
    """

    length: int

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        height, width = x.shape[-2:]
        y = integers(height, len(x), generator, x.device)
        column = integers(width, len(x), generator, x.device)
        inside = self._span(y, height)[:, :, None] & self._span(column, width)[:, None, :]
        return x.masked_fill(inside[:, None], 0.0)

    def _span(self, centre: Tensor, size: int) -> Tensor:
        offset = torch.arange(size, device=centre.device) - centre[:, None]  # [m, size]
        return (offset >= -(self.length // 2)) & (offset < self.length // 2)


@dataclass(frozen=True, eq=False)
class RandomResizedCrop:
    """torchvision's RandomResizedCrop for a whole batch: a random rectangle of each image, resized.

    Area uniform in `scale` (share of the image), log of the aspect ratio uniform in `ratio`; the
    first of `tries` that fits is taken, else the centre. Bilinear with antialias; the weights are
    PIL's. Szegedy et al., "Going deeper with convolutions", 2015.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    tries: int = 10

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        top, left, height, width = self.draw(len(x), x.shape[-2], x.shape[-1], generator, x.device)
        return crop_resize(x.float(), top, left, height, width, self.size)

    def draw(
        self, m: int, rows: int, columns: int, generator: Generator, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw (top, left, height, width), int64 `[m]` each, for images of `rows` x `columns`."""
        draws = uniform((2, m, self.tries), generator, device)
        area = rows * columns * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[0])
        low = math.log(self.ratio[0])
        high = math.log(self.ratio[1])
        aspect = torch.exp(low + (high - low) * draws[1])
        width = torch.round(torch.sqrt(area * aspect)).long()
        height = torch.round(torch.sqrt(area / aspect)).long()
        fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)  # [m, tries]
        first = fits.int().argmax(1, keepdim=True)
        centre_height, centre_width = self._centre(rows, columns)
        found = fits.any(1)
        height = torch.where(found, height.gather(1, first)[:, 0], centre_height)
        width = torch.where(found, width.gather(1, first)[:, 0], centre_width)
        top = integers(rows - height + 1, m, generator, device)
        left = integers(columns - width + 1, m, generator, device)
        top = torch.where(found, top, (rows - height) // 2)
        left = torch.where(found, left, (columns - width) // 2)
        return top, left, height, width

    def _centre(self, rows: int, columns: int) -> tuple[int, int]:
        """Return (height, width) of the largest centre rectangle whose aspect ratio is allowed."""
        low, high = self.ratio
        if columns / rows < low:
            return round(columns / low), columns
        if columns / rows > high:
            return rows, round(rows * high)
        return rows, columns


def crop_resize(
    x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int
) -> Tensor:
    """Resize one rectangle, given by int64 `[m]`, of each float image to `[m, C, size, size]`."""
    rows = resize_weights(top, height, x.shape[-2], size)[:, None]  # [m, 1, size, H]
    columns = resize_weights(left, width, x.shape[-1], size)[:, None]  # [m, 1, size, W]
    return rows @ x @ columns.transpose(-1, -2)


def resize_weights(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Return the triangle-filter weights `[m, size, pixels]` that resize pixels `[start, start +
    length)` to `size` samples.

    Sample o looks at `start + (o + 1/2) length / size`; the triangle's half width is one source
    pixel, or one output pixel when the rectangle shrinks (antialias). Pixels outside the rectangle
    weigh nothing; each row sums to one.
    """
    step = (length / size)[:, None, None]
    sample = torch.arange(size, device=start.device)[:, None] + 0.5
    centre = start[:, None, None] + sample * step  # [m, size, 1]
    pixel = torch.arange(pixels, device=start.device)
    weight = (1 - (pixel + 0.5 - centre).abs() / step.clamp(min=1.0)).clamp(min=0.0)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # [m, pixels]
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)

"""Files of images, read as bytes of one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inco.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


def read_image(
    path: Path, size: int | None, channels: int = 3, told: Counter[str] | None = None
) -> np.ndarray:
    """Return an image as uint8 [channels, H, W], RGB or grey, resized to `size` x `size` (bilinear)
    unless None.

    `told` counts images of which not all is kept. DataError for a file that is no image, or whose
    values have no known black and white.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = _in_bytes(opened, Counter() if told is None else told)
            image = image.convert("RGB" if channels == 3 else "L")
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
            return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]
    except Exception as error:  # PIL's decoders raise what they like
        raise DataError(
            f"{path}: not a readable image ({type(error).__name__}: {error}); replace or remove the"
            " file"
        ) from None


def _in_bytes(image: Image, told: Counter[str]) -> Image:
    """Return an image with eight bits a value and without transparency, which Pillow's own
    conversions clip and drop.
    """
    from PIL import Image as images

    if getattr(image, "is_animated", False):
        told["with several frames (the first is read)"] += 1
    # how Pillow opens grey images of 16 bits, by format
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.float32)
        told["of 16 bits (divided by 257)"] += 1
        # a camera's or a scanner's 12 bits, say: few greys are left of them
        told["of 16 bits without a pixel brighter than a sixteenth of white"] += int(
            values.max() < 0x1000
        )
        return images.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are numbers of 32 bits (mode {image.mode}), of which none is known to be"
            " white: convert it to 8 or 16 bits"
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        told["partly transparent (laid over white)"] += int(np.asarray(rgba)[..., 3].min() < 255)
        return images.alpha_composite(images.new("RGBA", rgba.size, "white"), rgba)
    return image.copy()


def read_images(
    files: Sequence[Path],
    size: int,
    fixed: bool = False,
    out: np.ndarray | None = None,
    channels: int = 3,
    told: Counter[str] | None = None,
) -> np.ndarray:
    """Return uint8 [M, channels, size, size], in `out` if given.

    `fixed`: other sizes are a DataError.
    """
    images = np.empty((len(files), channels, size, size), np.uint8) if out is None else out
    for i, path in enumerate(files):
        image = read_image(path, None if fixed else size, channels, told)
        if image.shape != images.shape[1:]:
            raise DataError(
                f"{path}: {image.shape[2]}x{image.shape[1]} pixels; every image of this dataset is"
                f" {size}x{size}"
            )
        images[i] = image
    return images

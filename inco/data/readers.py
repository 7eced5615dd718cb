"""Reading the files of datasets into arrays, and writing files so that a crash leaves no half one.

Errors are `DataError` naming the file; a file that cannot be written is a `StorageError`.
"""

import contextlib
import gzip
import os
import secrets
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inco.errors import DataError, StorageError

Arrays = tuple[np.ndarray, np.ndarray]
"""One split: images uint8 [M, C, H, W] and integer labels [M]."""
IMAGE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp",
}  # fmt: skip


def write_atomic(path: Path, write: Callable[[Any], object]) -> None:
    """Let `write` fill a file beside `path`, and move it into place; StorageError if that fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another"
            " place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_idx(path: Path, ndim: int, max_bytes: int = 2**30) -> np.ndarray:
    """Return the uint8 array with `ndim` dimensions of an IDX file (MNIST's), plain or `.gz`.

    http://yann.lecun.com/exdb/mnist: two zero bytes, type 8, number of dimensions, their sizes as
    big-endian int32, the data.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from None
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) < 4 + 4 * ndim:
        raise DataError(f"{path}: not an IDX file of bytes with {ndim} dimensions; fetch it again")
    shape = [int(n) for n in np.frombuffer(data, ">u4", ndim, offset=4)]
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * ndim)
    if len(body) != np.prod(shape):
        raise DataError(
            f"{path}: says shape {shape} and holds {len(body):,} bytes: cut off or damaged; fetch"
            " it again"
        )
    return body.reshape(shape)


def read_npz(path: Path) -> tuple[Arrays, Arrays]:
    """Return (training, test) of an archive with x_train, y_train, x_test, y_test."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            train, test = [(arrays[f"x_{s}"], arrays[f"y_{s}"]) for s in ("train", "test")]
    except Exception as error:  # zip, zlib, header and key errors all mean the same to the reader
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); it must hold x_train,"
            " y_train, x_test, y_test"
        ) from None
    return _checked_split(path, *train), _checked_split(path, *test)


def _checked_split(path: Path, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Return images with channels first, and labels as one row."""
    for array, kind in ((images, "images"), (labels, "labels")):
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"{path}: a member that should be an array of {kind} is none; fetch the file again"
            )
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: images are {images.dtype} {images.shape}; expected uint8 with 3 or 4"
            " dimensions"
        )
    if labels.dtype.kind not in "iu" or labels.ndim == 0 or labels.size != len(labels):
        raise DataError(
            f"{path}: labels are {labels.dtype} {labels.shape}; expected one integer for each image"
        )
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    return images, labels.reshape(-1)


def class_folders(root: Path) -> list[str]:
    """Return the names of the class folders below `root`, sorted, without the hidden ones."""
    if not root.is_dir():
        return []
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    return sorted(name for name in folders if not name.startswith("."))


def image_files(root: Path, classes: Sequence[str]) -> list[list[Path]]:
    """Return the image files of each class, with subfolders, in torchvision's ImageFolder order."""
    return [
        [
            Path(folder) / name
            for folder, _, names in sorted(os.walk(root / label, followlinks=True))
            for name in sorted(names)
            if Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
        for label in classes
    ]


def read_image(path: Path, size: int | None) -> np.ndarray:
    """Return an image as RGB uint8 [3, H, W], resized to `size` x `size` (bilinear) unless None."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            if size is not None and rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(rgb).transpose(2, 0, 1)
    except Exception as error:  # PIL's decoders raise what they like
        raise DataError(
            f"{path}: not a readable image ({type(error).__name__}: {error}); replace or remove the"
            " file"
        ) from None


def read_images(
    files: Sequence[Path], size: int, fixed: bool = False, out: np.ndarray | None = None
) -> np.ndarray:
    """Return uint8 [M, 3, size, size], in `out` if given; `fixed`: other sizes are a DataError."""
    images = np.empty((len(files), 3, size, size), np.uint8) if out is None else out
    for i, path in enumerate(files):
        image = read_image(path, None if fixed else size)
        if image.shape != images.shape[1:]:
            raise DataError(
                f"{path}: {image.shape[2]}x{image.shape[1]} pixels; every image of this dataset is"
                f" {size}x{size}"
            )
        images[i] = image
    return images

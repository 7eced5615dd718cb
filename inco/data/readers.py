"""Reading the files of datasets into arrays, and writing files so that a crash leaves no half one.

Errors are `DataError` naming the file; a file that cannot be written is a `StorageError`.
"""

import contextlib
import gzip
import os
import secrets
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from inco.errors import DataError, StorageError

Arrays = tuple[np.ndarray, np.ndarray]
"""One split: images uint8 [M, C, H, W] and integer labels [M]."""


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

"""Files of images: which there are below a folder, and what is in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inco.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# a fixed list: what Pillow can open depends on how it was built
IMAGE_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg",
    ".jpg", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
# what systems, editors and archives leave beside images; so do hidden files
_LEFTOVERS = {
    "$recycle.bin", "@eadir", "__macosx", "__pycache__", "desktop.ini", "ehthumbs.db", "lost+found",
    "system volume information", "thumbs.db",
}  # fmt: skip
_Key = tuple[int, int]  # device and inode: the same for every name of a file


def is_leftover(name: str) -> bool:
    """Say whether a name is hidden, or of a system, an editor or an archive."""
    return name.startswith(".") or name.casefold() in _LEFTOVERS


def class_folders(root: Path) -> list[str]:
    """Return the names of the class folders below `root`, sorted."""
    if not root.is_dir():
        return []
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    return sorted(name for name in folders if not is_leftover(name))


@dataclass
class Trees:
    """Reads which images are below folders, each file once.

    `passed_over` counts what is not read, and why.
    """

    passed_over: Counter[str] = field(default_factory=Counter)
    _folders: set[_Key] = field(default_factory=set)
    _files: dict[_Key, tuple[Path, Path]] = field(default_factory=dict)

    def close(self, folder: Path) -> None:
        """Let no link lead into a folder, which is a class of its own or holds classes."""
        self._folders.add(_key(folder))

    def files(self, root: Path, classes: Sequence[str]) -> list[list[Path]]:
        """Return the image files of each class, with subfolders, in torchvision's ImageFolder
        order.

        DataError for a file that is in two classes or splits.
        """
        tops = [root / label for label in classes]
        try:
            for folder in (root, *tops):
                self.close(folder)
            for entry in os.scandir(root):
                if not entry.is_dir():
                    self._beside(entry.name)
            return [[path for path in self._below(top) if self._is_new(path, top)] for top in tops]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def _beside(self, name: str) -> None:
        if is_leftover(name) or not _is_image(name):
            self._pass_over(name)
        else:
            self.passed_over["images outside of class folders"] += 1

    def _below(self, top: Path) -> list[Path]:
        """Return the image files below a folder, sorted by folder and name."""
        folders = sorted(self._walk(str(top)))
        return [Path(folder, name) for folder, names in folders for name in sorted(names)]

    def _walk(self, folder: str) -> Iterator[tuple[str, list[str]]]:
        names = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir() and not is_leftover(entry.name):
                if self._enter(Path(entry.path)):
                    yield from self._walk(entry.path)
            elif not is_leftover(entry.name) and _is_image(entry.name):
                names.append(entry.name)
            else:
                self._pass_over(entry.name)
        yield folder, names

    def _enter(self, folder: Path) -> bool:
        """Say whether a folder has not been read yet."""
        key = _key(folder)
        if key in self._folders:
            self.passed_over["links to folders that are read anyway"] += 1
            return False
        self._folders.add(key)
        return True

    def _is_new(self, path: Path, top: Path) -> bool:
        """Say whether a file has not been read yet, by another name."""
        if not path.exists():
            self.passed_over["links to nothing"] += 1
            return False
        first, of = self._files.setdefault(_key(path), (path, top))
        if first == path:
            return True
        if of != top:
            raise DataError(
                f"{path} is the same file as {first}: an image cannot be in two classes or splits;"
                " remove one"
            )
        self.passed_over["links to files that are read anyway"] += 1
        return False

    def _pass_over(self, name: str) -> None:
        kind = Path(name).suffix.lower() or "files without a suffix"
        left = "files that systems, editors or archives leave"
        self.passed_over[left if is_leftover(name) else kind] += 1


def counted(counts: Mapping[str, int]) -> str:
    """Return counts in words, as `.txt: 3; links to nothing: 2`."""
    return "; ".join(f"{what}: {n:,}" for what, n in sorted(counts.items()) if n)


def _key(path: Path) -> _Key:
    found = path.stat()
    return found.st_dev, found.st_ino


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


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

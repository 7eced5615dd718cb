"""Which images are below a folder: its splits, its classes, and their files, each once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inco.errors import DataError

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
_ROLES = {
    "training": ("train", "training", "trn"),
    "test": ("test", "testing", "tst"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
}
_OF_SPLITS = ("set", "data", "images", "imgs")  # as in training_set, test-images
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
            self.beside(root)
            return [[path for path in self._below(top) if self._is_new(path, top)] for top in tops]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def beside(self, root: Path) -> None:
        """Count the files that lie beside class folders, or beside splits."""
        for entry in os.scandir(root):
            if entry.is_dir():
                continue
            if is_leftover(entry.name) or not _is_image(entry.name):
                self._pass_over(entry.name)
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


@dataclass(frozen=True)
class Layout:
    """Where a folder's training and test images are; `test` None: each class is to be divided.

    `unused`: folders of another split, which are not read.
    """

    train: Path
    test: Path | None = None
    unused: tuple[Path, ...] = ()


def find_splits(root: Path) -> Layout:
    """Tell folders of splits from folders of classes, by their names in any case.

    Where both a test and a validation split are there, the test is scored. DataError where the
    names allow two readings.
    """
    folders = class_folders(root)
    roles: dict[str, list[str]] = {role: [] for role in (*_ROLES, "class")}
    for name in folders:
        roles[_role(name)].append(name)
    training, tests, validation, classes = roles.values()
    if not training or not (tests or validation):
        return _unsplit(root, folders, training, classes)
    scored = [name for name in tests if class_folders(root / name)] or validation
    problem = ""
    if classes:
        problem = f"{', '.join(classes[:5])} stand(s) beside the splits"
    elif len(training) > 1 or len(scored) > 1:
        twice = training if len(training) > 1 else scored
        problem = f"{' and '.join(twice)} may both be meant"
    elif not scored:
        problem = f"{tests[0]} has no class folders, so its images have no labels"
    if problem:
        raise DataError(
            f"dataset=images: {root} holds the splits {', '.join(training + tests + validation)},"
            f" and {problem}; leave two folders of class folders there, train and test, or set"
            " dataset.root to one of them, which is then divided at random"
        )
    train, test = root / training[0], root / scored[0]
    others = [root / name for name in folders]
    return Layout(train, test, tuple(path for path in others if path not in (train, test)))


def _unsplit(root: Path, folders: list[str], training: list[str], classes: list[str]) -> Layout:
    """Return the layout of a folder without two splits: a name like `train` may be a class's."""
    if folders and not classes:
        inside = root / (training or folders)[0]
        raise DataError(
            f"dataset=images: {root} holds {', '.join(folders)}, which is the name of a split, and"
            f" no classes; set dataset.root={inside}, and each class there is divided at random"
            " (dataset.test_share)"
        )
    return Layout(root)


def _role(name: str) -> str:
    """Return what a folder is by its name: a split, or a class."""
    words = re.split(r"[ _.-]+", name.casefold())
    word = words[0] if len(words) == 2 and words[1] in _OF_SPLITS else "".join(words)
    word = word.removesuffix("set") if word.endswith("set") else word
    return next((role for role, names in _ROLES.items() if word in names), "class")

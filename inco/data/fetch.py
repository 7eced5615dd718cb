"""Datasets that torchvision can download: what they share."""

import contextlib
import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import Annotated

from inco.data.dataset import Expected, Source, missing
from inco.errors import DataError
from inco.settings import DataRoot, TestDropLast, Transforms, checked


def data_root(root: str | None) -> Path:
    """Return the absolute folder of `dataset.root`; None is `data`."""
    return Path(root or "data").expanduser().absolute()


class Downloadable(Source):
    """A source whose files torchvision can download, when `dataset.download` says so.

    `files` are looked for in each of `_places()`; `sizes`: what their owner publishes about each.
    """

    files: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()

    @checked("dataset")
    def __init__(
        self,
        root: DataRoot = None,
        transforms: Transforms = "published",
        download: Annotated[
            bool,
            "true: download through torchvision what is not there; a failed download says what "
            "else can be done",
        ] = False,
        test_drop_last: TestDropLast = None,
    ) -> None:
        super().__init__(root, transforms, test_drop_last)
        self.download = download

    @abstractmethod
    def _places(self) -> list[Path]:
        """Return the folders to look in, the first choice first."""

    @abstractmethod
    def _download(self, root: str) -> None:
        """Let torchvision download everything to a folder."""

    def check(self) -> None:
        if not self.is_there() and not self.download:
            raise self.missing_error()

    def is_there(self) -> bool:
        """Say whether all files are in one of the places."""
        return self._place() is not None

    def where(self) -> str:
        return f" in {self._place()}"

    def missing_error(self, why: str = "") -> DataError:
        """Return the one-screen error that says what was looked for and how to get it."""
        return missing(self.name, self._places(), self._expected(), self._ways(), why)

    def _expected(self) -> list[Expected]:
        return [Expected(*file) for file in zip(self.files, self.sizes, strict=True)]

    def _ways(self) -> list[str]:
        root = self.root or "data"
        return [
            f"python -m inco.data fetch {self.name} --root {root}   (needs the internet)",
            "let the run download it: dataset.download=true",
        ]

    def _place(self) -> Path | None:
        return next((place for place in self._places() if self._holds(place)), None)

    def _holds(self, place: Path) -> bool:
        return all(self._file(place, name).is_file() for name in self.files)

    def _file(self, place: Path, name: str) -> Path:
        return place / name

    def _fetched(self) -> Path:
        """Return the place of the files, downloaded first if there is none."""
        if not self.is_there():
            self._try_download()
        place = self._place()
        if place is None:
            raise self.missing_error("the download left no complete set of files")
        return place

    def _try_download(self) -> None:
        root = data_root(self.root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._download(str(root))
        except (OSError, RuntimeError) as error:
            said = str(error).strip().splitlines() or [type(error).__name__]
            # torchvision leaves empty folders behind; only such can be removed this way
            for folder in (root / "FashionMNIST" / "raw", root / "FashionMNIST", root):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise self.missing_error(f"downloading failed: {said[-1]}") from error


def check_md5(path: Path, expected: str) -> None:
    """Raise DataError unless the file's MD5 is the published one; it is not opened otherwise."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: has md5 {found} and the published file {expected}: damaged or not the"
            " original, so it is not opened; delete it and fetch it again"
        )

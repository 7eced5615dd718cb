"""Datasets in files: where they are looked for, and those that torchvision can download."""

import contextlib
import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from inco.data.dataset import Expected, Source, missing
from inco.errors import DataError
from inco.settings import DataRoot, Limit, TestDropLast, TestLimit, Transforms, checked


def data_root(root: str | None) -> Path:
    """Return the absolute folder of `dataset.root`; None is `data`."""
    return Path(root or "data").expanduser().absolute()


class OnDisk(Source):
    """A source whose files are looked for in each of `subfolders` of the root, in this order.

    `download`: what is not there will be fetched.
    """

    subfolders: tuple[str, ...] = ("",)
    download = False

    @abstractmethod
    def _holds(self, place: Path) -> bool:
        """Say whether all files are in a place."""

    @abstractmethod
    def _expected(self) -> list[Expected]:
        """Return the files that are looked for."""

    @abstractmethod
    def _ways(self) -> list[str]:
        """Return the ways to get them."""

    def check(self) -> None:
        super().check()
        if not (self.download or self.is_there()):
            raise self.missing_error()

    def is_there(self) -> bool:
        """Say whether all files are in one of the places."""
        return self._place() is not None

    def missing_error(self, why: str = "") -> DataError:
        """Return the one-screen error that says what was looked for and how to get it."""
        return missing(self.name, self._places(), self._expected(), self._ways(), why)

    def _places(self) -> list[Path]:
        return [data_root(self.root) / folder for folder in self.subfolders]

    def _place(self) -> Path | None:
        return next((place for place in self._places() if self._holds(place)), None)


class Downloadable(OnDisk):
    """A source whose files torchvision can download, when `dataset.download` says so.

    `files`: their names in a place; `sizes`: what their owner publishes about each;
    `torchvision_class`: its name there; `downloads`: its arguments for each part.
    """

    files: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    torchvision_class: str
    downloads: tuple[Mapping[str, str], ...] = ({},)

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
        limit: Limit = None,
        test_limit: TestLimit = None,
    ) -> None:
        super().__init__(root, transforms, test_drop_last, limit, test_limit)
        self.download = download

    def where(self) -> str:
        return f" in {self._place()}"

    def _expected(self) -> list[Expected]:
        return [Expected(*file) for file in zip(self.files, self.sizes, strict=True)]

    def _ways(self) -> list[str]:
        root = self.root or "data"
        return [
            f"python -m inco.data fetch {self.name} --root {root}   (needs the internet)",
            "let the run download it: dataset.download=true",
        ]

    def _holds(self, place: Path) -> bool:
        return all((place / name).is_file() for name in self.files)

    def _torchvision(self) -> Any:
        """Return torchvision's class of this dataset."""
        from torchvision import datasets

        return getattr(datasets, self.torchvision_class)

    def _fetched(self) -> Path:
        """Return the place of the files, downloaded first if there is none."""
        if not self.is_there():
            self._download(data_root(self.root))
        place = self._place()
        if place is None:
            raise self.missing_error("the download left no complete set of files")
        return place

    def _download(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            for part in self.downloads:
                self._torchvision()(str(root), download=True, **part)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            # torchvision leaves empty folders behind; only such can be removed this way
            for folder in (root / "FashionMNIST" / "raw", root / "FashionMNIST", root):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise self.missing_error(f"downloading failed: {reason[-1]}") from error


def check_md5(path: Path, expected: str) -> None:
    """Raise DataError unless the file's MD5 is the published one; it is not opened otherwise."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: has md5 {found} and the published file {expected}: damaged or not the"
            " original, so it is not opened; delete it and fetch it again"
        )

"""Datasets that can be downloaded: what they share, and how a failed download becomes an error one
can act on.
"""

import contextlib
import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from inco.data.dataset import Source
from inco.errors import DataError


def data_root(root: str | None) -> Path:
    """Return the absolute folder of `dataset.root`; None is `data`."""
    return Path(root or "data").expanduser().absolute()


class Downloadable(Source):
    """A source that torchvision can download when `dataset.download` says so."""

    def __init__(
        self,
        root: str | None = None,
        transforms: str = "published",
        download: bool = False,
        test_drop_last: int | None = None,
    ) -> None:
        super().__init__(root, transforms, test_drop_last)
        self.download = download

    def check(self) -> None:
        if not self.is_there() and not self.download:
            raise self.missing_error()

    @abstractmethod
    def is_there(self) -> bool:
        """Say whether all files are in one of the places."""

    @abstractmethod
    def missing_error(self, why: str = "") -> DataError:
        """Return the one-screen error that says what was looked for and how to get it."""


def fetch_command(source: Source) -> str:
    """Return what to type to fetch the dataset."""
    return (
        f"python -m inco.data fetch {source.name} --root {source.root or 'data'}   (needs the"
        " internet)"
    )


def check_md5(path: Path, expected: str) -> None:
    """Raise DataError unless the file's MD5 is the published one; it is not opened otherwise."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: has md5 {found} and the published file {expected}: damaged or not the"
            " original, so it is not opened; delete it and fetch it again"
        )


@contextlib.contextmanager
def downloading(source: Downloadable) -> Iterator[None]:
    """Turn a failed download into the missing-data error, and remove the empty folders that
    torchvision leaves behind.
    """
    root = data_root(source.root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:
        said = str(error).strip().splitlines()
        for folder in (root / "FashionMNIST" / "raw", root / "FashionMNIST", root):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only an empty folder can be removed this way
        raise source.missing_error(
            f"downloading failed: {said[-1] if said else type(error).__name__}"
        ) from error

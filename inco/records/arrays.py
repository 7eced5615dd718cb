"""Arrays that a run keeps beside its numbers: `<kind>/round_NNNNN.npz` in its folder, one file a
kind and measured round.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from inco.records.record import atomic_write

KINDS = ("cka", "gradients")


def write_npz(path: Path, named: Mapping[str, Any]) -> None:
    """Replace a .npz file in one step."""
    raw = io.BytesIO()
    # late: the command line starts without NumPy
    import_module("numpy").savez_compressed(raw, **named)
    atomic_write(path, raw.getvalue())


def read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of a .npz file, by name. No pickle is read."""
    with import_module("numpy").load(path, allow_pickle=False) as file:
        return dict(file)


class ArrayStore:
    """The arrays of one run's folder, written and taken back with its rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, round: int, arrays: Mapping[str, Mapping[str, Any]]) -> None:
        """Write a round's arrays, by kind and name; to be called before its row is written."""
        for kind, named in arrays.items():
            write_npz(self._path(kind, round), named)

    def rounds(self, kind: str) -> list[int]:
        """Return the rounds that have arrays of a kind."""
        files = (self.folder / kind).glob("round_*.npz")
        return sorted(int(path.stem.rpartition("_")[2]) for path in files)

    def read(self, kind: str, round: int) -> dict[str, Any]:
        """Read the arrays of a kind and round, by name."""
        return read_npz(self._path(kind, round))

    def rewind(self, round: int) -> None:
        """Drop the arrays of later rounds."""
        for kind in KINDS:
            for later in self.rounds(kind):
                if later > round:
                    self._path(kind, later).unlink()

    def _path(self, kind: str, round: int) -> Path:
        return self.folder / kind / f"round_{round:05d}.npz"

"""Reading run folders: what reports and figures are made of.

Nothing here writes, and a run may be under way while it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inco.errors import DataError
from inco.records.arrays import ArrayStore, read_npz
from inco.records.record import RunRecord

_MARKS = ("about.json", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Run:
    """One run's folder, read when first asked for.

    `about`: what is known from its start on (name, group, choices, seed, digest, settings,
    capacities, sizes, versions); `rows`: one dict a round; `summary`: how it ended, empty while it
    runs.
    """

    folder: Path

    @cached_property
    def about(self) -> Mapping[str, Any]:
        return self._json("about.json")

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        return self._json("summary.json")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return RunRecord(self.folder).rows()

    @cached_property
    def arrays(self) -> ArrayStore:
        return ArrayStore(self.folder)

    @property
    def name(self) -> str:
        return str(self.about.get("name", self.folder.name))

    @property
    def status(self) -> str:
        """How it stands: finished, interrupted, failed, or running where it has not said how it
        ended.
        """
        return str(self.summary.get("status", "running"))

    def partition(self) -> dict[str, np.ndarray] | None:
        """Return `counts` [clients shown, classes], `levels` [clients shown], and `clients`, how
        many there are; None before round 1.
        """
        path = self.folder / "partition.npz"
        return read_npz(path) if path.exists() else None

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rounds that have a metric, and its values there."""
        having = [(row["round"], row[key]) for row in self.rows if row.get(key) is not None]
        return np.array([r for r, _ in having], dtype=int), np.array(
            [v for _, v in having], dtype=float
        )

    def _json(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        try:
            return dict(json.loads(path.read_bytes())) if path.exists() else {}
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: not JSON ({error}); restore it from a copy, or leave this run out"
            ) from error


def find(paths: Iterable[Path | str]) -> list[Run]:
    """Return the runs at or below each path, in the order of the paths, then by name; each once.

    Raises DataError for a path that is not there or has no runs.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        folders = sorted(_folders(path))
        if not folders:
            why = (
                "no run in it: no folder with about.json or metrics.jsonl"
                if path.is_dir()
                else "no such folder"
            )
            raise DataError(
                f"{path}: {why}; give the folders of runs, or one above them, as outputs/"
            )
        found |= {folder.resolve(): Run(folder) for folder in folders}
    return list(found.values())


def _folders(path: Path) -> Iterator[Path]:
    if any((path / mark).is_file() for mark in _MARKS):
        yield path
    elif path.is_dir():
        for below in path.iterdir():
            if below.is_dir() and not below.name.startswith(".") and below.name != "wandb":
                yield from _folders(below)

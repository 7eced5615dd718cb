"""Reading run folders: what reports and figures are made of.

Nothing here writes, and a run may be under way while it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inco.errors import DataError
from inco.records.arrays import ArrayStore, read_npz
from inco.records.names import flat
from inco.records.record import RunRecord

_MARKS = ("about.json", "metrics.jsonl", "summary.json")
_FREE = ("tracker", "engine", "experiment", "debug")  # no result depends on them
_NAMED = ("dataset", "model", "split", "algorithm", "transform")
_NAME = re.compile(
    r"-".join(rf"(?P<{group}>[^-]+)" for group in _NAMED)
    + r"-s(?P<seed>\d+)-(?P<digest>[0-9a-f]{8})"
)


@dataclass(frozen=True)
class Run:
    """One run's folder, read when first asked for."""

    folder: Path

    @cached_property
    def about(self) -> Mapping[str, Any]:
        """What is known from its start on: name, choices, seed, settings, capacities, versions."""
        return self._json("about.json")

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """How it ended; empty while it runs."""
        return self._json("summary.json")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Its metrics, one dict a round."""
        return RunRecord(self.folder).rows()

    @cached_property
    def arrays(self) -> ArrayStore:
        return ArrayStore(self.folder)

    @property
    def known(self) -> dict[str, Any]:
        """All that is known of it; what was known at its start takes precedence."""
        return {**self.summary, **self.about}

    @property
    def name(self) -> str:
        return str(self.about.get("name", self.folder.name))

    @cached_property
    def named(self) -> dict[str, str]:
        """Options, seed and digest, where its folder's name was made from its settings."""
        found = _NAME.fullmatch(self.folder.name)
        return found.groupdict() if found else {}

    @property
    def seed(self) -> Any:
        """Its seed, or None if it is not known."""
        return self.known.get("seed", int(self.named["seed"]) if self.named else None)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """Its settings as they were recorded, nested; empty where they were not."""
        return self.about.get("settings") or self.summary.get("settings") or {}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that a result depends on, with dotted keys, the seed left out."""
        return flat({k: v for k, v in self.recorded.items() if k not in ("seed", "options")})

    @cached_property
    def choices(self) -> dict[str, str]:
        """The chosen options that a result depends on, by group; without about.json, those of its
        settings and its folder's name.
        """
        recorded = self.about.get("choices")
        if recorded:
            return {group: option for group, option in recorded.items() if group not in _FREE}
        named = {group: self.named[group] for group in _NAMED if self.named}
        return self.recorded.get("options", {}) | named

    @property
    def capacities(self) -> list[str]:
        """Names of the capacities, smallest first; without about.json, those with a score."""
        prefix = "test/acc/"
        keys = dict.fromkeys(key for row in [self.summary, *self.rows] for key in row)
        scored = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        recorded = self.about.get("capacities")
        return list(recorded or [name for name in scored if not name.endswith("_best")])

    @property
    def done(self) -> int:
        """The last round that it has finished."""
        return self.rows[-1]["round"] if self.rows else 0

    @property
    def planned(self) -> int:
        """How many rounds it is to have."""
        recorded = self.about.get("rounds") or self.summary.get("rounds") or self.done
        return max(int(recorded), self.done)

    @property
    def status(self) -> str:
        """finished, interrupted, failed, or running where no end is recorded."""
        return str(self.summary.get("status", "running"))

    @property
    def outcome(self) -> str:
        """How it ended; without a recorded end it may be running, or may have been killed."""
        return "no end recorded" if self.status == "running" else self.status

    def partition(self) -> dict[str, np.ndarray] | None:
        """Return `counts` [clients shown, classes], `levels` [clients shown] and `clients`, their
        number; None before round 1.
        """
        path = self.folder / "partition.npz"
        return read_npz(path) if path.exists() else None

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rounds that have a metric, and its values there."""
        having = [(row["round"], row[key]) for row in self.rows if row.get(key) is not None]
        rounds, values = zip(*having, strict=True) if having else ((), ())
        return np.array(rounds, dtype=int), np.array(values, dtype=float)

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
            empty = "no run in it: no folder with about.json or metrics.jsonl"
            why = empty if path.is_dir() else "no such folder"
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

"""What the file fuzzer damages: files of one kind, how they are read, and what reading may give."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from fuzz.mutate import damaged


class Subject(ABC):
    """Files of one kind: `make` writes good ones, `read` reads them as a run does, `judge` says
    what is wrong with what came.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        folder.mkdir(parents=True)
        self.make()
        self.good = {
            path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }

    def damage(self, marker: Path) -> str:
        """Put the good files back, and damage one; say which."""
        for path, data in self.good.items():
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        target = self.rng.choice(sorted(self.good))
        target.write_bytes(damaged(self.rng, self.good[target], marker))
        return str(target.relative_to(self.folder))

    @abstractmethod
    def make(self) -> None: ...
    @abstractmethod
    def read(self) -> Any: ...
    @abstractmethod
    def judge(self, got: Any) -> str | None: ...

"""Clients' own vectors between their rounds (control variates, previous models), in files that
every worker can read.

A file holds one client after one of its rounds and is never changed, so a round that fails leaves
nothing behind, and a checkpoint needs no copy: it is enough that the files it refers to stay. Which
file is a client's last follows from the cohorts alone. Memory is the operating system's page cache,
which gives way where the states do not fit.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from inco.errors import StorageError
from inco.flat import Slice
from inco.types import ClientTask, SubModel

State = dict[str, Tensor]
_DIGEST = 32  # bytes of sha256 behind the tensors


class ClientStore:
    """States by client and round below `folder` (None: a folder of its own, gone with the object).

    `moving`: clients change what they hold from round to round; then states are kept in the
    server's coordinates, where what a client has never held is zero. Otherwise in the client's own,
    which are fewer. `num_params`, `num_buffers`: P and B; `kept_whole`: names of vectors that stay
    as they are in any case.
    """

    def __init__(
        self,
        folder: str | None,
        moving: bool,
        num_params: int,
        num_buffers: int,
        kept_whole: Collection[str] = (),
    ) -> None:
        self.kept_whole = frozenset(kept_whole)
        self._own = tempfile.TemporaryDirectory(prefix="inco-clients-") if folder is None else None
        self.folder = Path(self._own.name if self._own else str(folder))
        self.moving = moving
        self.sizes = (num_params, num_buffers)
        # rounds of a client, those whose files may be there
        self._rounds: dict[int, list[int]] = defaultdict(list)
        self._unsynced: list[tuple[int, int]] = []  # (client, round)

    def load(self, task: ClientTask, sub: SubModel) -> State | None:
        """Return a client's vectors as after its last round, in its own coordinates of now; None
        before its first.
        """
        rounds = [r for r in self._rounds[task.client] if r < task.round]
        if not rounds:
            return None
        state = self._read(self._path(task.client, rounds[-1]))
        return (
            {name: self._gather(t, self._slice(name, t, sub)) for name, t in state.items()}
            if self.moving
            else state
        )

    def save(self, task: ClientTask, sub: SubModel, state: State) -> None:
        """Write a client's vectors as after this round; they count once `advance` says that the
        round has succeeded.
        """
        whole = {name: t.detach().cpu().contiguous() for name, t in state.items()}
        if self.moving:
            whole = self._scatter(task, sub, whole)
        data = save(whole)
        path = self._path(task.client, task.round)
        temp = path.with_suffix(f".new{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temp.open("wb") as file:
                file.write(data)
                file.write(hashlib.sha256(data).digest())
            os.replace(temp, path)
        except OSError as error:
            with suppress(OSError):
                temp.unlink()
            raise StorageError(
                f"engine.state_dir={self.folder}: cannot write client {task.client}'s state"
                f" ({error}); free some space"
            ) from error

    def advance(self, round: int, clients: Iterable[int]) -> None:
        """Note that a round has succeeded with these clients."""
        for client in clients:
            self._rounds[client].append(round)
            self._unsynced.append((client, round))

    def sync(self) -> None:
        """Force the files of the rounds since the last call to the disk; one process of a machine
        is enough.
        """
        paths = [self._path(*one) for one in self._unsynced]
        for path in [*paths, *{path.parent for path in paths}]:  # a folder holds the names
            if path.exists():
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        self._unsynced.clear()

    def prune(self, oldest: int) -> None:
        """Remove files that no round after `oldest` would read, the round of the oldest checkpoint
        kept. One process does it.
        """
        for client, rounds in self._rounds.items():
            needed = max((r for r in rounds if r <= oldest), default=0)
            for old in [r for r in rounds if r < needed]:
                self._path(client, old).unlink(missing_ok=True)
                rounds.remove(old)

    def _path(self, client: int, round: int) -> Path:
        return self.folder / f"{client // 1000:06d}" / f"{client:09d}.r{round:06d}"

    def _read(self, path: Path) -> State:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"a client's state is missing: {path} ({error}); start over with fresh=true"
            ) from error
        tensors = memoryview(data)[:-_DIGEST]
        if hashlib.sha256(tensors).digest() != data[-_DIGEST:]:
            raise StorageError(f"a client's state is damaged: {path}; start over with fresh=true")
        return load(bytes(tensors))

    def _slice(self, name: str, t: Tensor, sub: SubModel) -> tuple[Slice, int] | None:
        """Return where a vector lies in the server's coordinates, and their number; None for bare
        numbers and what is kept whole.
        """
        if name in self.kept_whole:
            return None
        where, size = (
            (sub.buffers, self.sizes[1])
            if name.startswith("buffers")
            else (sub.params, self.sizes[0])
        )
        return (where, size) if t.numel() in (where.layout.numel, size) and t.numel() > 1 else None

    @staticmethod
    def _gather(t: Tensor, place: tuple[Slice, int] | None) -> Tensor:
        return (
            t
            if place is None
            else place[0].gather(t, torch.empty(place[0].layout.numel, dtype=t.dtype))
        )

    def _scatter(self, task: ClientTask, sub: SubModel, state: State) -> State:
        before = self._last(task)
        out = {}
        for name, t in state.items():
            place = self._slice(name, t, sub)
            if place is None:
                out[name] = t
            else:
                out[name] = before.get(name, torch.zeros(place[1], dtype=t.dtype))
                out[name][place[0].index] = t
        return out

    def _last(self, task: ClientTask) -> State:
        rounds = [r for r in self._rounds[task.client] if r < task.round]
        return self._read(self._path(task.client, rounds[-1])) if rounds else {}

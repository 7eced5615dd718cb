"""Clients' own vectors between their rounds (control variates, previous models), in files that
every worker can read.

A file holds one client after one of its rounds and is never changed, so a round that fails leaves
nothing behind, and a checkpoint needs no copy: it is enough that the files it refers to stay. Which
file is a client's last follows from the cohorts alone. Files are written behind the training of the
next client, and recent states are kept in memory, so that they need not be read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inco.errors import StorageError
from inco.flat import Slice
from inco.types import ClientTask, SubModel

State = dict[str, Tensor]
_WAITING = 256 << 20  # bytes that may wait to be written, beside what is kept in memory


class _Recent:
    """The states that were used last, up to `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._states: OrderedDict[tuple[int, int], State] = OrderedDict()  # by (client, round)

    def keep(self, client: int, round: int, state: State) -> None:
        self._held += _bytes(state) - _bytes(self._states.pop((client, round), {}))
        self._states[client, round] = state
        while self._held > self._most:
            _, dropped = self._states.popitem(last=False)
            self._held -= _bytes(dropped)

    def get(self, client: int, round: int) -> State | None:
        if (client, round) in self._states:
            self._states.move_to_end((client, round))
        return self._states.get((client, round))


class ClientStore:
    """States by client and round below `folder` (None: a folder of its own, gone with the object).

    `moving`: clients change what they hold from round to round; then states are kept in the
    server's coordinates, where what a client has never held is zero. Otherwise in the client's own,
    which are fewer. `num_params`, `num_buffers`: P and B; `kept_whole`: names of vectors that stay
    as they are in any case; `memory`: bytes of recent states that are kept, on the host.
    """

    def __init__(
        self,
        folder: str | None,
        moving: bool,
        num_params: int,
        num_buffers: int,
        kept_whole: Collection[str] = (),
        memory: int = 0,
    ) -> None:
        self.kept_whole = frozenset(kept_whole)
        self._own = tempfile.TemporaryDirectory(prefix="inco-clients-") if folder is None else None
        self.folder = Path(self._own.name if self._own else str(folder))
        self.moving = moving
        self.sizes = (num_params, num_buffers)
        # rounds of a client, those whose files may be there
        self._rounds: dict[int, list[int]] = defaultdict(list)
        self._unsynced: list[tuple[int, int]] = []  # (client, round)
        self._recent = _Recent(memory)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="client-states")
        self._writing: deque[tuple[int, Future[None]]] = deque()  # bytes of each, in their order
        self._waiting = 0  # their sum

    def load(self, task: ClientTask, sub: SubModel) -> State | None:
        """Return a client's vectors as after its last round, in its own coordinates of now; None
        before its first.
        """
        rounds = [r for r in self._rounds[task.client] if r < task.round]
        if not rounds:
            return None
        state = self._state(task.client, rounds[-1])
        if self.moving:
            return {name: self._gather(t, self._slice(name, t, sub)) for name, t in state.items()}
        return {name: t.clone() for name, t in state.items()}  # algorithms may write into it

    def save(self, task: ClientTask, sub: SubModel, state: State) -> None:
        """Take a client's vectors as after this round, to be written; they count once `advance`
        says that the round has succeeded.

        Raises StorageError where a former state could not be written.
        """
        whole = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in state.items()}
        if self.moving:
            whole = self._scatter(task, sub, whole)
        self._recent.keep(task.client, task.round, whole)
        size = _bytes(whole)
        while self._writing and self._waiting + size > _WAITING:
            self._wait_for_one()
        self._writing.append((size, self._writer.submit(self._write, task, whole)))
        self._waiting += size

    def _wait_for_one(self) -> None:
        size, written = self._writing.popleft()
        self._waiting -= size
        written.result()

    def _write(self, task: ClientTask, state: State) -> None:
        path = self._path(task.client, task.round)
        temp = path.with_suffix(f".new{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, temp, metadata={"sha256": _digest(state)})
            os.replace(temp, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                temp.unlink()
            raise StorageError(
                f"engine.state_dir={self.folder}: cannot write client {task.client}'s state"
                f" ({error}); free some space"
            ) from error

    def flush(self) -> None:
        """Wait until all that has been saved is written, so that other workers can read it.

        Raises StorageError where it cannot be.
        """
        while self._writing:
            self._wait_for_one()

    def advance(self, round: int, clients: Iterable[int]) -> None:
        """Note that a round has succeeded with these clients."""
        for client in clients:
            self._rounds[client].append(round)
            self._unsynced.append((client, round))

    def sync(self) -> None:
        """Force the files of the rounds since the last call to the disk; one process of a machine
        is enough.
        """
        self.flush()
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

    def _state(self, client: int, round: int) -> State:
        """Return a client's state after one of its rounds, not to be written into."""
        state = self._recent.get(client, round)
        if state is None:
            self.flush()  # it may be on its way
            state = self._read(self._path(client, round))
            self._recent.keep(client, round, state)
        return state

    def _read(self, path: Path) -> State:
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                state = {name: file.get_tensor(name) for name in names}
                digest = (file.metadata() or {}).get("sha256")
        except FileNotFoundError as error:
            raise StorageError(
                f"a client's state is missing: {path} ({error}); start over with fresh=true"
            ) from error
        except (OSError, SafetensorError, ValueError):
            digest, state = None, {}
        if digest is None or digest != _digest(state):
            raise StorageError(f"a client's state is damaged: {path}; start over with fresh=true")
        return state

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
                former = before.get(name)
                out[name] = (
                    torch.zeros(place[1], dtype=t.dtype) if former is None else former.clone()
                )
                out[name][place[0].index] = t
        return out

    def _last(self, task: ClientTask) -> State:
        rounds = [r for r in self._rounds[task.client] if r < task.round]
        return self._state(task.client, rounds[-1]) if rounds else {}


def _bytes(state: Mapping[str, Tensor]) -> int:
    return sum(t.nbytes for t in state.values())


def _digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a state: names, types, shapes and values."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        t = state[name]
        hasher.update(f"{name} {t.dtype} {tuple(t.shape)} ".encode())
        hasher.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()

"""Locks of the operating system (flock) on files: they go with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self


class LockFile:
    """A file to lock, open for the length of a `with` block; its content names the holder.

    Neither a forked copy of the process nor a program that it starts keeps the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    def __enter__(self) -> Self:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self.path, flags, 0o644)
        _open_files.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in _open_files:  # else this is a copy of the process that has the lock
            _open_files.discard(self)
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)

    def lock(self, wait: bool = False) -> bool:
        """Take the lock; False where another has it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def in_place(self) -> bool:
        """Whether the file is open in this process, and still the one that its path names."""
        try:
            return self in _open_files and os.path.samestat(
                os.fstat(self._handle), self.path.stat()
            )
        except FileNotFoundError:
            return False

    def read(self) -> str:
        return os.pread(self._handle, 1000, 0).decode(errors="replace")

    def write(self, text: str) -> None:
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)


_open_files: set[LockFile] = set()


def _close_copies() -> None:
    for file in _open_files:
        os.close(file._handle)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_copies)

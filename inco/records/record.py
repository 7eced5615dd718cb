"""The local record of a run: metrics.jsonl, summary.json, and the lock that keeps others out."""

import errno
import json
import math
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from inco.errors import StorageError
from inco.records.locks import LockFile

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_UNREADABLE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


def storage_error(doing: str, path: Path, error: Exception) -> StorageError:
    """Make the error that names the file that failed, why, and what to do about it."""
    code = getattr(error, "errno", None)
    if code in _FULL or "os error 28" in str(error):
        fix = "free some space on that disk, then give the same command to resume"
    elif code in _FORBIDDEN:
        fix = "make the folder writable, or choose another with hydra.run.dir=PATH"
    else:
        fix = "check the disk, then give the same command to resume"
    return StorageError(f"cannot {doing} {path}: {error}; what was there before is kept; {fix}")


def fsync_path(path: Path) -> None:
    """Force a file, or the renames inside a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old content or the new and nothing
    between.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.write_bytes(data.encode() if isinstance(data, str) else data)
        fsync_path(temp)
        os.replace(temp, path)
        fsync_path(path.parent)
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Turn a value into strict JSON: non-finite numbers become null, scalars of NumPy and torch
    become numbers.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


class RunRecord:
    """The numbers of one run: one JSON line a round in `metrics.jsonl`, the end in `summary.json`.

    A row is handed to the operating system at once, so a killed process loses none. It is forced to
    the disk by `sync()`, which belongs before each checkpoint: a power cut can then only lose rows
    that the resumed run writes again. An fsync a row would cost a short round more than the row is
    worth.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.summary = folder / "summary.json"
        self.about = folder / "about.json"
        lines = self._lines()
        self.last_round = lines[-1][0] if lines else None
        # may end in half a line: repaired before the first row, not by readers
        self._torn = self.metrics.exists()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row of the next round, keys in the order given.

        A failed write leaves no part of a line.
        """
        number = int(row["round"])
        if self.last_round is not None and number <= self.last_round:
            raise ValueError(
                f"round {number} comes after round {self.last_round} in {self.metrics}: call rewind"
                " first"
            )
        if self._torn:
            self.rewind(number)
        line = json.dumps(plain(row), allow_nan=False).encode() + b"\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.metrics, "ab", buffering=0) as file:
                _write_whole(file, line)
        except OSError as error:
            raise storage_error(f"write round {number} to", self.metrics, error) from error
        self.last_round = number

    def rows(self) -> list[dict[str, Any]]:
        """Read every whole row."""
        return [json.loads(line) for _, line in self._lines()]

    def rewind(self, round: int) -> None:
        """Keep the rows up to and with `round`, byte for byte, and drop later ones and a torn last
        line.
        """
        kept = [(number, line) for number, line in self._lines() if number <= round]
        if self.metrics.exists():
            atomic_write(self.metrics, b"".join(line + b"\n" for _, line in kept))
        self.last_round = kept[-1][0] if kept else None
        self._torn = False

    def sync(self) -> None:
        """Force all rows to the disk."""
        if self.metrics.exists():
            try:
                fsync_path(self.metrics)
            except OSError as error:
                raise storage_error("write", self.metrics, error) from error

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Replace about.json, what is known of the run from its start on."""
        _write_json(self.about, about)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json."""
        _write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """Read summary.json; None if the run has none yet."""
        try:
            summary = json.loads(self.summary.read_bytes())
            if isinstance(summary, dict):
                return summary
            raise ValueError("no object")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error("read", self.summary, error) from error
        except (ValueError, RecursionError) as error:
            raise StorageError(
                f"{self.summary} is damaged ({error}); delete it, then give the same command to"
                " resume"
            ) from error

    def _lines(self) -> list[tuple[int, bytes]]:
        """Read the whole lines as (round, bytes).

        Only the last can be torn; damage elsewhere is reported, not skipped.
        """
        try:
            *whole, _torn = self.metrics.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error("read", self.metrics, error) from error
        lines = []
        for number, line in enumerate(whole, 1):
            try:
                lines.append((int(json.loads(line)["round"]), line))
            except _UNREADABLE as error:
                fix = "restore the file from a copy, or start over with fresh=true"
                if number == len(whole):
                    fix = "delete that line"
                raise StorageError(
                    f"{self.metrics}, line {number}: not a row of metrics ({error}); {fix}"
                ) from error
        return lines


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def _write_whole(file: Any, data: bytes) -> None:
    """Append all of `data` or, where the disk is full, nothing."""
    start = os.fstat(file.fileno()).st_size
    done = 0
    try:
        while done < len(data):
            done += file.write(data[done:])
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), start)
        raise


class RunLock(LockFile):
    """Keeps a second writer out of a run's folder: `run.lock` names the writer's host and process.

    A lock whose process is gone on this host is taken over. Of another host nothing can be known,
    so its lock holds.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "run.lock")

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise storage_error("lock", self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            if self.in_place():
                self.path.unlink()
        super().__exit__()

    def _take(self) -> None:
        super().__enter__()
        try:
            free = self.lock()
            removed = free and not self.in_place()  # by its holder, since we opened it
            if not removed:
                self._refuse_if_held(free)
                self.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        except BaseException:
            super().__exit__()
            raise
        if removed:
            super().__exit__()
            self._take()

    def _refuse_if_held(self, free: bool) -> None:
        here = socket.gethostname()
        try:
            holder = json.loads(self.read())
            host = str(holder["host"])
            pid = str(int(holder["pid"]))
        except (ValueError, KeyError, TypeError):  # nobody has written a name into it yet
            host = here
            pid = "unknown"
        if free and host == here:
            return
        wait = "wait for it or stop it" if host == here else f"if it has ended, delete {self.path}"
        raise StorageError(
            f"{self.path.parent} is being written by process {pid} on host {host}: a run's folder"
            f" has one writer; {wait}, or choose another folder with name=NAME"
        )

"""The local record of a run: metrics.jsonl, summary.json, run.log, and the lock that keeps a second
writer out.
"""

import errno
import fcntl
import json
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inco.errors import StorageError
from inco.records.processes import alive, born_at

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def storage_error(doing: str, path: Path, error: Exception) -> StorageError:
    """Make the error that tells which file failed, why, and what to do about it."""
    code = getattr(error, "errno", None)
    if code in FULL or "os error 28" in str(error):
        fix = "free some space on that disk, then give the same command to resume"
    elif code in FORBIDDEN:
        fix = "make the folder writable, or choose another with hydra.run.dir=PATH"
    else:
        fix = "check the disk, then give the same command to resume"
    return StorageError(f"cannot {doing} {path}: {error}; what was there before is kept; {fix}")


def fsync_dir(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old content or the new and nothing
    between.
    """
    raw = data.encode() if isinstance(data, str) else data
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        fsync_dir(path.parent)
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
        self.metrics, self.summary, self.about = (
            folder / name for name in ("metrics.jsonl", "summary.json", "about.json")
        )
        lines = self._lines()
        self.count = len(lines)
        self.last_round = lines[-1][0] if lines else None
        # may end in half a line: repaired before the first row, not by readers
        self._torn = self.metrics.exists()

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row of the next round, keys in the order given.

        A failed write leaves no part of a line.
        """
        round_ = int(row["round"])
        if self.last_round is not None and round_ <= self.last_round:
            raise ValueError(
                f"round {round_} comes after round {self.last_round} in {self.metrics}: call rewind"
                " first"
            )
        if self._torn:
            self.rewind(round_)
        line = json.dumps(plain(row), allow_nan=False).encode() + b"\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.metrics, "ab", buffering=0) as file:
                _write_whole(file, line)
        except OSError as error:
            raise storage_error(f"write round {round_} to", self.metrics, error) from error
        self.count, self.last_round = self.count + 1, round_

    def rows(self) -> list[dict[str, Any]]:
        """Read every whole row."""
        return [json.loads(line) for _, line in self._lines()]

    def rewind(self, round: int) -> None:
        """Keep the rows up to and with `round`, byte for byte, and drop later ones and a torn last
        line.
        """
        kept = [(at, line) for at, line in self._lines() if at <= round]
        if self.metrics.exists():
            atomic_write(self.metrics, b"".join(line + b"\n" for _, line in kept))
        self.count = len(kept)
        self.last_round = kept[-1][0] if kept else None
        self._torn = False

    def sync(self) -> None:
        """Force all rows to the disk."""
        if self.metrics.exists():
            try:
                with open(self.metrics, "rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                raise storage_error("write", self.metrics, error) from error

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Replace about.json, what is known of the run from its start on, in one step."""
        atomic_write(self.about, json.dumps(plain(about), indent=2, allow_nan=False) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json in one step."""
        atomic_write(self.summary, json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")

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

        Only the last can be torn; damage elsewhere is told, not skipped.
        """
        try:
            raw = self.metrics.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error("read", self.metrics, error) from error
        *whole, _torn = raw.split(b"\n")
        return [
            (self._round(line, number, last=number == len(whole)), line)
            for number, line in enumerate(whole, 1)
        ]

    def _round(self, line: bytes, number: int, last: bool) -> int:
        """Give the round of a line."""
        try:
            return int(json.loads(line)["round"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            fix = (
                "delete that line"
                if last
                else "restore the file from a copy, or start over with fresh=true"
            )
            raise StorageError(
                f"{self.metrics}, line {number}: not a row of metrics ({error}); {fix}"
            ) from error


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


class _LogFile(logging.FileHandler):
    """A log file that cannot break a run: it says once that it cannot be written, and no more."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            self.told = True
            print(
                f"cannot write {self.baseFilename}: {sys.exc_info()[1]}; the run goes on"
                " without it",
                file=sys.stderr,
            )


@contextmanager
def setup_log(folder: Path) -> Iterator[logging.Logger]:
    """Send what the `inco` loggers say to `run.log`, with times, until the block ends; then close
    the file.

    The root logger stays as it is, so that runs of a sweep in one process neither share a file nor
    write lines twice.
    """
    path = folder / "run.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise storage_error("open", path, error) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logger = logging.getLogger("inco")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the console belongs to the progress display
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # a full disk again, at what was left to write
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


class RunLock:
    """Keeps a second writer out of a run's folder: `run.lock` names the host and the process that
    hold it.

    A lock whose process is gone on this host is taken over. Of another host nothing can be known,
    so its lock holds.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self._mine: bytes | None = None

    def __enter__(self) -> "RunLock":
        me = {"host": socket.gethostname(), "pid": os.getpid(), "born": born_at(os.getpid())}
        mine = json.dumps(me).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._take(mine)
        except OSError as error:
            raise storage_error("lock", self.path, error) from error
        self._mine = mine
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back, unless somebody else has taken it over meanwhile."""
        with suppress(OSError):
            if self._mine is not None and self.path.read_bytes() == self._mine:
                self.path.unlink()
        self._mine = None

    def _take(self, mine: bytes) -> None:
        """Make the lock file, or take over a stale one in place: of two that try at once, one
        wins.
        """
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            handle = os.open(self.path, os.O_RDWR)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            # held for the few lines below only; the file's content is the lock
            fcntl.flock(file, fcntl.LOCK_EX)
            self._refuse_if_held(file.read())
            file.seek(0)
            file.truncate()
            file.write(mine)
            gone = not self.path.exists() or not os.path.samestat(
                os.fstat(file.fileno()), self.path.stat()
            )
        # the former holder ended between our opening and our writing, and removed the file
        if gone:
            self._take(mine)

    def _refuse_if_held(self, content: bytes) -> None:
        """Raise if the lock file names a process that lives, or may live."""
        try:
            holder = json.loads(content)
            host = str(holder["host"])
            pid = int(holder["pid"])
            born = holder.get("born")
        except (ValueError, KeyError, TypeError):
            return  # empty: nobody has written a name into it, so nobody holds it
        if host == socket.gethostname() and not alive(pid, born):
            return
        wait = (
            "wait for it or stop it"
            if host == socket.gethostname()
            else f"if it has ended, delete {self.path}"
        )
        raise StorageError(
            f"{self.path.parent} is being written by process {pid} on host {host}: a run's folder"
            f" has one writer; {wait}, or choose another folder with name=NAME"
        )

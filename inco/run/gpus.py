"""The GPUs that a run takes for itself (engine.gpus), so that runs side by side on one machine do
not share one.

A claim is a lock of the operating system (flock) on a file a GPU, in a folder of the user's below
the temporary directory: it goes with the process, however that ends. No torch here: CUDA reads
CUDA_VISIBLE_DEVICES once a process, when torch first asks it for a GPU.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from inco.errors import ConfigError, StorageError
from inco.run.signals import Stop

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_POLL_S = 0.25
_DRIVER = Path("/proc/driver/nvidia/gpus")
_DEVICES = Path("/dev")
_log = logging.getLogger(__name__)
_handles: set[int] = set()  # of the files that this process has locked, or looks at
_shown: list[str] | None = (
    # the GPUs that an earlier run of this process had: CUDA sees no others for as long as the
    # process lives
    None
)


def visible() -> list[str]:
    """Return the GPUs that CUDA shows to this process, by the names that CUDA_VISIBLE_DEVICES gives
    them, else numbered from 0.
    """
    given = os.environ.get(_VARIABLE)
    if given is None:  # in a container the driver may tell of GPUs whose device is not there
        counts = [len(list(_DRIVER.glob("*"))), len(list(_DEVICES.glob("nvidia[0-9]*")))]
        return [str(number) for number in range(min(filter(None, counts), default=0))]
    words = (word.strip() for word in given.split(","))
    # as CUDA: up to the first that is none
    known = takewhile(lambda word: word.isdecimal() or word.startswith(("GPU-", "MIG-")), words)
    return list(dict.fromkeys(known))


@contextmanager
def claimed(settings: Mapping[str, Any], stop: Stop) -> Iterator[None]:
    """Have `engine.gpus` GPUs that no other run of this user has, and show them alone to CUDA, here
    and in processes that are started.

    Waits until so many are free; `stop` ends the wait. null: all that are visible, and no claim.
    Raises ConfigError where there are fewer.
    """
    global _shown
    names = visible()
    count = settings["engine"]["gpus"]
    device = settings["engine"]["device"]
    if device != "cpu":
        _refuse(names, count, device)
    with ExitStack() as stack:
        mine = names
        if count is not None:
            mine = _wait(stack, _shown or names, count, stop) if names else _none(count)
            _show(stack, mine)
        try:
            yield
        finally:
            if "torch" in sys.modules:  # it may have asked CUDA for GPUs
                _shown = mine


def _refuse(names: Sequence[str], count: int | None, device: str) -> None:
    """Raise if so many GPUs cannot be had, or not in this process."""
    asked = f"engine.gpus={'null' if count is None else count}"
    if count is not None and not names and device == "cuda":
        raise ConfigError(
            f"{asked} with engine.device=cuda: no GPU is visible here; use engine.device=auto, or"
            f" see to {_VARIABLE}"
        )
    if count is not None and names and count > len(names):
        raise ConfigError(
            f"{asked}: must be at most {len(names)}, the GPUs visible here ({_listed(names)}); see"
            f" to {_VARIABLE} if there are more"
        )
    wanted = len(names) if count is None else min(count, len(names))
    if _shown is not None and (len(_shown) != wanted or not set(_shown) <= set(names)):
        raise ConfigError(
            f"{asked}: an earlier run of this process had GPUs {_listed(_shown) or 'none'}, and"
            " CUDA shows a process the same to its end; give this run alone"
        )


def _none(count: int) -> list[str]:
    print(
        f"engine.gpus={count}: no GPU is visible here, so there is none to claim; the run is on"
        " the CPU",
        flush=True,
    )
    return []


def _wait(stack: ExitStack, names: Sequence[str], count: int, stop: Stop) -> list[str]:
    """Claim GPUs until the stack closes, and return their names."""
    folder = _folder()
    told = False
    while True:
        stop.check()
        mine, holders = _try(stack, folder, names, count)
        if mine:
            break
        if not told:
            taken = ", ".join(f"{name} ({who})" for name, who in holders.items())
            print(
                f"engine.gpus={count}: waiting for {count} of the GPUs {_listed(names)}; taken:"
                f" {taken}",
                flush=True,
            )
        told = True
        time.sleep(_POLL_S)
    if told:
        print(f"engine.gpus={count}: going on with {_listed(mine)}", flush=True)
    _log.info("GPUs claimed: %s", _listed(mine))
    stack.callback(_log.info, "GPUs given back: %s", _listed(mine))
    stack.callback(_free_memory)
    return mine


def _try(
    stack: ExitStack, folder: Path, names: Sequence[str], count: int
) -> tuple[list[str], dict[str, str]]:
    """Claim GPUs if enough are free, and none otherwise.

    Returns those claimed, and who has others.
    """
    mine: dict[str, int] = {}
    holders: dict[str, str] = {}
    try:
        with ExitStack() as turn, ExitStack() as found:
            # one looks at a time: of two, none keeps half of what both want
            _lock(turn, folder / "turn", fcntl.LOCK_EX)
            for name in names:
                handle, free = _lock(
                    found,
                    folder / f"{socket.gethostname()}-{name.replace('/', '_')}",
                    fcntl.LOCK_EX | fcntl.LOCK_NB,
                )
                if free:
                    mine[name] = handle
                else:
                    holders[name] = (
                        os.pread(handle, 100, 0).decode(errors="replace") or "another process"
                    )
                if len(mine) == count:
                    break
            else:
                return [], holders
            for handle in mine.values():
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
            stack.push(found.pop_all())
    except OSError as error:
        raise StorageError(
            f"cannot claim a GPU in {folder}: {error}; see to it, or set TMPDIR to another folder,"
            " the same for all runs of this machine"
        ) from error
    return list(mine), holders


def _lock(stack: ExitStack, path: Path, how: int) -> tuple[int, bool]:
    """Open a file until the stack closes, and lock it.

    Returns its handle, and whether the lock was free.
    """
    # programs that are started do not get it
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    _handles.add(handle)
    stack.callback(_close, handle)
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return handle, False
    return handle, True


def _close(handle: int) -> None:
    # else this is a copy of the process that has the lock: not its to give back
    if handle in _handles:
        _handles.discard(handle)
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _forked() -> None:
    """Let go of what a copy of this process has got with it: a lock lasts until the last copy of
    its file is closed.
    """
    for handle in _handles:
        os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_forked)


def _folder() -> Path:
    """Return the folder of the locks, made if need be."""
    path = Path(tempfile.gettempdir()) / f"inco-gpus-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        ours = not path.is_symlink() and path.stat().st_uid == os.getuid()
    except OSError as error:
        raise StorageError(
            f"cannot make {path}, where GPUs are claimed: {error}; see to it, or set TMPDIR to"
            " another folder"
        ) from error
    if not ours:
        raise StorageError(
            f"{path}, where GPUs are claimed, is somebody else's or a link; remove it, or set"
            " TMPDIR to another folder"
        )
    return path


def _show(stack: ExitStack, names: Sequence[str]) -> None:
    """Let CUDA see these GPUs alone, until the stack closes."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = ",".join(names)
    if before is None:
        stack.callback(os.environ.pop, _VARIABLE)
    else:
        stack.callback(os.environ.__setitem__, _VARIABLE, before)


def _free_memory() -> None:
    """Give back what torch keeps of a GPU's memory: in a sweep this process may live on, and
    another run have the GPU.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        with suppress(RuntimeError):  # after an error of the GPU nothing can be asked of it
            torch.cuda.empty_cache()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)

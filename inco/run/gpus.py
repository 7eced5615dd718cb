"""The GPUs that a run takes for itself (engine.gpus), so that runs side by side on one machine do
not share one.

A claim is a lock on a file per GPU, in a folder of the user's below the temporary directory. No
torch here: CUDA reads CUDA_VISIBLE_DEVICES once a process, when torch first asks it for a GPU.
"""

from __future__ import annotations

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
from inco.records.locks import LockFile
from inco.run.signals import Stop

_VARIABLE = "CUDA_VISIBLE_DEVICES"
_POLL_S = 0.25
_DRIVER = Path("/proc/driver/nvidia/gpus")
_DEVICES = Path("/dev")
_NONE = "no GPU is visible here"
_log = logging.getLogger(__name__)
# the GPUs that an earlier run of this process had: CUDA sees no others until the process ends
_shown: list[str] | None = None


def visible() -> list[str]:
    """Return the GPUs that CUDA shows to this process, by the names that CUDA_VISIBLE_DEVICES gives
    them, else numbered from 0.
    """
    given = os.environ.get(_VARIABLE)
    if given is None:  # in a container the driver may list GPUs whose device is not there
        counts = [len(list(_DRIVER.glob("*"))), len(list(_DEVICES.glob("nvidia[0-9]*")))]
        return [str(number) for number in range(min(filter(None, counts), default=0))]
    names = (name.strip() for name in given.split(","))
    # as CUDA: up to the first that is none
    known = takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names)
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
            if names:
                mine = _wait(stack, _shown or names, count, stop)
            else:
                _report(count, f"{_NONE}, so there is none to claim; the run is on the CPU")
            stack.enter_context(_visible_alone(mine))
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
            f"{asked} with engine.device=cuda: {_NONE}; use engine.device=auto, or see to"
            f" {_VARIABLE}"
        )
    if count is not None and names and count > len(names):
        raise ConfigError(
            f"{asked}: must be at most {len(names)}, the GPUs visible here ({', '.join(names)});"
            f" see to {_VARIABLE} if there are more"
        )
    wanted = len(names) if count is None else min(count, len(names))
    if _shown is not None and (len(_shown) != wanted or not set(_shown) <= set(names)):
        raise ConfigError(
            f"{asked}: an earlier run of this process had GPUs {', '.join(_shown) or 'none'}, and"
            " CUDA shows a process the same to its end; give this run alone"
        )


def _report(count: int, text: str) -> None:
    print(f"engine.gpus={count}: {text}", flush=True)


def _wait(stack: ExitStack, names: Sequence[str], count: int, stop: Stop) -> list[str]:
    """Claim GPUs until the stack closes, and return their names."""
    folder = _folder()
    reported = False
    while True:
        stop.check()
        mine, holders = _claim(stack, folder, names, count)
        if mine:
            break
        if not reported:
            taken = ", ".join(f"{name} ({holder})" for name, holder in holders.items())
            _report(count, f"waiting for {count} of the GPUs {', '.join(names)}; taken: {taken}")
        reported = True
        time.sleep(_POLL_S)
    listed = ", ".join(mine)
    if reported:
        _report(count, f"going on with {listed}")
    _log.info("GPUs claimed: %s", listed)
    stack.callback(_log.info, "GPUs given back: %s", listed)
    stack.callback(_free_memory)
    return mine


def _claim(
    stack: ExitStack, folder: Path, names: Sequence[str], count: int
) -> tuple[list[str], dict[str, str]]:
    """Claim GPUs if enough are free, and none otherwise.

    Returns those claimed, and who has others.
    """
    mine: dict[str, LockFile] = {}
    holders: dict[str, str] = {}
    try:
        with LockFile(folder / "turn") as turn, ExitStack() as opened:
            turn.lock(wait=True)  # one looks at a time: of two, none keeps half of what both want
            for name in names:
                path = folder / f"{socket.gethostname()}-{name.replace('/', '_')}"
                file = opened.enter_context(LockFile(path))
                if file.lock():
                    mine[name] = file
                else:
                    holders[name] = file.read() or "another process"
                if len(mine) == count:
                    break
            else:
                return [], holders
            for file in mine.values():
                file.write(f"process {os.getpid()}")
            stack.enter_context(opened.pop_all())
    except OSError as error:
        raise StorageError(
            f"cannot claim a GPU in {folder}: {error}; see to it, or set TMPDIR to another folder,"
            " the same for all runs of this machine"
        ) from error
    return list(mine), holders


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


@contextmanager
def _visible_alone(names: Sequence[str]) -> Iterator[None]:
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = ",".join(names)
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before


def _free_memory() -> None:
    """Give back what torch keeps of a GPU's memory: in a sweep this process may live on, and
    another run have the GPU.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        with suppress(RuntimeError):  # after an error of the GPU nothing can be asked of it
            torch.cuda.empty_cache()

"""Local worker processes: one rank each, started once and kept for the whole run.

Imports no torch, so that workers are on their way while this process imports it. What they do is
`run/worker.py`.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inco.errors import InCoError, PeerLost, WorkerError

_POLL_S = 0.2
# a worker that ends by an error of its own: rank 0 mostly meets the same error, and says it better
_GRACE_S = 1.5


# one of them is there where torch may find a GPU: NVIDIA's driver, WSL 2, ROCm; torch then counts
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def under_torchrun() -> bool:
    """Tell whether torchrun (or anything that speaks its environment) has started the ranks
    already.
    """
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def available_cores() -> int:
    """Return the cores that this process may use (a batch system may give fewer than the machine
    has).
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def how_many(workers: int | str, device: str, cohort: int) -> int:
    """Return the number of local workers: as set, or one a GPU, or one a core; never more than
    clients a round.
    """
    if workers != "auto":
        return int(workers)
    gpus = 0
    if device != "cpu" and any(map(os.path.exists, _GPU_FILES)):
        import torch

        gpus = torch.cuda.device_count()
    return max(1, min(gpus or available_cores(), cohort))


def activity_file(folder: Path, rank: int) -> Path:
    """Return the file in which a worker says what it is at, for whoever finds it dead."""
    return folder / f"worker_{rank}.doing"


def note(path: Path, words: str) -> None:
    """Replace the content of a small file, at once: whoever reads it finds the old words or the
    new ones. What cannot be written is not worth a run.
    """
    new = path.with_suffix(".new")
    with suppress(OSError):
        new.write_text(words)
        os.replace(new, path)


class LocalWorkers:
    """The workers beside this process, which is rank 0. Watches them, and interrupts this process
    when one dies.

    `settings`: the run's; `world`: ranks in all; `store`: the file through which they meet.
    """

    def __init__(self, settings: Mapping[str, Any], world: int, folder: Path) -> None:
        self.world = world
        self.store = folder / "store"
        self._folder = folder
        self._processes = [self._start(rank, json.dumps(settings)) for rank in range(1, world)]
        self._closing = threading.Event()
        self.lost: WorkerError | None = None
        self._watch = threading.Thread(target=self._watch_over, daemon=True)
        self._watch.start()

    def wait_until_ready(self) -> None:
        """Wait until every worker has imported what it needs; one that dies before is told, not
        waited for.
        """
        while not all(self._ready(rank).exists() for rank in range(1, self.world)):
            if self.lost is not None:
                raise self.lost
            time.sleep(0.02)

    def _ready(self, rank: int) -> Path:
        return self._folder / f"worker_{rank}.ready"

    def _start(self, rank: int, settings: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "inco.run.worker",
            str(rank),
            str(self.world),
            str(self.store),
        ]
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(self.world),
        }
        env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
        with self._errors(rank).open("wb") as errors:
            # a session of its own: Ctrl-C reaches rank 0 alone, which then ends the workers
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        assert process.stdin is not None
        process.stdin.write(settings.encode())
        process.stdin.close()
        return process

    def _errors(self, rank: int) -> Path:
        return self._folder / f"worker_{rank}.err"

    def _watch_over(self) -> None:
        while not self._closing.wait(_POLL_S):
            for rank, process in enumerate(self._processes, start=1):
                code = process.poll()
                if code and not self._closing.wait(0 if code < 0 else _GRACE_S):
                    self.lost = self._describe(rank, process.pid, code)
                    _thread.interrupt_main()
                    return

    def _describe(self, rank: int, pid: int, code: int) -> WorkerError:
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        said = self._errors(rank).read_text(errors="replace").strip()
        place = activity_file(self._folder, rank)
        where = f", last seen at {place.read_text()}" if place.exists() else ""
        error = WorkerError(
            f"worker {rank} (pid {pid}) {how}{where}"
            + (
                f": {said.splitlines()[-1]}"
                if said
                else "; if it ran out of memory, use fewer engine.workers"
            )
            + ". Nothing of the round under way has been applied; the same command goes on from the"
            " last checkpoint"
        )
        error.detail = said
        return error

    def abandon(self, error: BaseException) -> None:
        """End all workers after an error here; where a lost peer caused it, find out which one
        first.
        """
        until = time.monotonic() + 2 * _GRACE_S
        while isinstance(error, PeerLost) and self.lost is None and time.monotonic() < until:
            time.sleep(_POLL_S)
        self.kill()

    def close(self) -> None:
        """End the workers that are still there: a moment to leave by themselves, then for good."""
        self._closing.set()
        for process in self._processes:
            try:
                process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End all workers at once."""
        self._closing.set()
        for process in self._processes:
            process.kill()


@contextmanager
def local_workers(settings: Mapping[str, Any], world: int) -> Iterator[LocalWorkers]:
    """Start ranks 1 to `world` - 1 beside this process.

    Their failure is raised here as a WorkerError.
    """
    with tempfile.TemporaryDirectory(prefix="inco-") as folder:
        workers = LocalWorkers(settings, world, Path(folder))
        try:
            yield workers
            workers.close()
        except (Exception, KeyboardInterrupt) as error:
            # the interruption by a lost worker may surface as another error, as within an import
            own = isinstance(error, InCoError) and not isinstance(error, PeerLost)
            if workers.lost is not None and not own:
                raise workers.lost from error
            raise
        finally:
            workers.kill()

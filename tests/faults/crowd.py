"""A program that starts sittings as children of its own, in a fraction of a second each, and kills
them or lets them race. It prints JSON.

`python crowd.py kills FOLDER COUNT SEED`: one run, killed COUNT times at random moments, half of
them while something is being written. `python crowd.py race FOLDER...`: one sitting a folder, all
at once. The children are forked from a process that has imported everything.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from support import settings_of  # noqa: E402

from faults.sitting import ONE, facts  # noqa: E402
from inco.assembly import assemble as _assemble  # noqa: E402, F401  # imports everything that a run needs
from inco.errors import InCoError  # noqa: E402
from inco.run.launch import lead  # noqa: E402

MANY = 100_000
STATEFUL = (
    "algorithm=scaffold",
    "local=sgd",
    "local.momentum=0",
    "sample_ratio=0.6",
    "transform=inco",
)


def child(
    folder: Path, rounds: int, words: tuple[str, ...], before: Callable[[], object] = lambda: None
) -> int:
    """Start a sitting in a process of its own, and return its number. It exits as run.py would."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(folder.parent / f"{folder.name}.{os.getpid()}.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            before()
            try:
                lead(settings_of(*ONE, *words) | {"rounds": rounds}, folder, facts(folder))
            except InCoError as error:
                print(error, flush=True)
                os._exit(error.exit_code)
            os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def slow_disk() -> None:
    """Let every step of writing take a few milliseconds, so that a kill at a random moment falls
    into one.
    """
    for name in ("fsync", "rename", "replace", "unlink", "mkdir"):
        real = getattr(os, name)

        def slowly(*args: object, _real: Callable[..., object] = real, **more: object) -> object:
            time.sleep(0.004)
            return _real(*args, **more)

        setattr(os, name, slowly)


def half_written(folder: Path) -> list[str]:
    """Name what a write under way has in the folder: checkpoints not yet in place, and files about
    to be renamed.
    """
    places = [place for place in (folder, folder / "checkpoint") if place.is_dir()]
    return [
        p.name
        for place in places
        for p in place.iterdir()
        if p.name.startswith(".") and p.name != ".hydra"
    ]


def done(folder: Path) -> tuple[int, int]:
    """Return the whole rows on the record, and the newest round whose checkpoint is in place."""
    path = folder / "metrics.jsonl"
    rows = path.read_bytes().count(b"\n") if path.exists() else 0
    names = (
        [p.name for p in (folder / "checkpoint").glob("round_[0-9]*")] if folder.exists() else []
    )
    return rows, max((int(name[6:]) for name in names), default=0)


def kill_once(folder: Path, rng: random.Random, aimed: bool) -> dict[str, object]:
    """Start the run, kill it at a random moment after a round more, and say what it has left."""
    rows_before, _ = done(folder)
    pid = child(folder, MANY, STATEFUL, slow_disk)
    until, wait = time.monotonic() + 60, rng.uniform(0, 0.4)
    while (
        done(folder)[0] <= rows_before
        and time.monotonic() < until
        and os.waitpid(pid, os.WNOHANG) == (0, 0)
    ):
        time.sleep(0.002)
    time.sleep(wait)
    while aimed and not half_written(folder) and time.monotonic() < until:
        pass
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    rows, saved = done(folder)
    return {
        "killed": os.WIFSIGNALED(status),
        "rows_before": rows_before,
        "rows": rows,
        "saved": saved,
        "half": half_written(folder),
    }


def kills(folder: Path, count: int, seed: int) -> dict[str, object]:
    """Kill a run again and again, then let it end; and run it in one sitting beside that."""
    rng = random.Random(seed)
    told = [kill_once(folder, rng, aimed=number % 2 == 0) for number in range(count)]
    rounds = done(folder)[0] + 2
    codes = []
    for place in (folder, folder.with_name("whole")):
        _, status = os.waitpid(child(place, rounds, STATEFUL), 0)
        codes.append(os.waitstatus_to_exitcode(status))
    return {"kills": told, "codes": codes, "rounds": rounds}


def race(folders: list[Path], rounds: int = 12) -> list[int]:
    """Start a sitting in each folder at once, and return their exit codes."""
    pids = [child(folder, rounds, ()) for folder in folders]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, what, first, *rest = sys.argv
    result = (
        kills(Path(first), int(rest[0]), int(rest[1]))
        if what == "kills"
        else race([Path(p) for p in (first, *rest)])
    )
    print(json.dumps(result))

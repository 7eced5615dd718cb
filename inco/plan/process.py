"""Fresh processes that look at kinds of runs: they alone import torch, as a run's worker does."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inco.errors import InCoError, WorkerError

_MARGIN = 0.85  # of the limit, within which a process tries to be done by itself
_RESULT = "result.pickle"


def ask(what: str, settings: Sequence[Mapping[str, Any]], limit: float | None = None) -> Any:
    """Return what a process has found when it ends, or after `limit` seconds. Raises InCoError.

    `what`: "survey", the sizes of each kind; "steps" or "full", `Measured` of kinds that share
    their times, on the first one's settings.
    """
    job = {"what": what, "settings": list(settings), "began": time.time(), "limit": limit}
    with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
        errors = Path(folder, "errors.txt")
        with errors.open("wb") as file:
            # a session of its own: Ctrl-C reaches this process alone, which then ends the other
            process = subprocess.Popen(
                [sys.executable, "-m", "inco.plan.process", folder],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=_environment(folder),
                start_new_session=True,
            )
        try:
            process.communicate(json.dumps(job).encode(), limit)
        except subprocess.TimeoutExpired:
            pass  # what it has found by now is there
        finally:
            process.kill()
            code = process.wait()
        result = Path(folder, _RESULT)
        found = pickle.loads(result.read_bytes()) if result.exists() else None
        if isinstance(found, InCoError):
            raise found
        if code > 0 or (code < 0 and limit is None):
            lines = errors.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it printed nothing"
            raise WorkerError(f"the measuring process ended with exit code {code}: {last}")
    if found is None:
        raise WorkerError(
            f"nothing was measured within {limit:g} s; give more time with --limit, or leave it"
            " with --no-measure"
        )
    return found


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of a run's worker; its temporary files go with `folder`."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TMPDIR": folder}
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if sys.platform == "linux":
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return env


def _answer(job: Mapping[str, Any], folder: str) -> None:
    """Do a job in the fresh process; its result is a whole file at any time."""

    def write(found: Any) -> None:
        temp = Path(folder, f"{_RESULT}.new")
        temp.write_bytes(pickle.dumps(found))
        temp.replace(Path(folder, _RESULT))

    settings = job["settings"]
    try:
        if job["what"] == "survey":
            from inco.plan.survey import survey

            write([survey(kind) for kind in settings])
            return
        from inco.engine.ranks import Ranks
        from inco.plan.measure import FewSteps, whole_rounds

        ranks = Ranks.join(0, 1, settings[0]["engine"]["device"], f"{folder}/store")
        if job["what"] == "full":
            write(whole_rounds(settings[0], ranks, job["began"]))
        else:
            until = job["began"] + _MARGIN * job["limit"]
            FewSteps(settings, ranks, until, write).measure(job["began"])
        ranks.close()
    except InCoError as error:
        write(error)


def _end_with(parent: int) -> None:
    """End this process when the planner is gone, however it ended: nobody else would."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _answer(json.load(sys.stdin), sys.argv[1])

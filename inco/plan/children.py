"""Fresh processes that look at kinds of runs, each with a limit that is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inco.errors import ConfigError, DataError, InCoError, WorkerError

_MARGIN = 0.85  # of the limit, within which a process tries to be done by itself


def survey(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sizes of each kind. Raises InCoError."""
    kinds: list[dict[str, Any]] = _ask({"what": "survey", "settings": list(settings)}, None)[
        "kinds"
    ]
    return kinds


def measure(
    settings: Sequence[Mapping[str, Any]], limit: float | None, whole: bool = False
) -> dict[str, Any]:
    """Measure kinds that share their times, on the first one's settings, in `limit` seconds at
    most. Raises InCoError.
    """
    seconds = limit * _MARGIN if limit else 1e9
    job = {
        "what": "measure",
        "settings": settings[0],
        "lines": list(settings),
        "whole": whole,
        "seconds": seconds,
    }
    found = _ask(job, limit)
    if not found.get("levels"):
        raise WorkerError(
            f"nothing was measured within {limit:g} s; give more time with --limit, or leave it"
            " with --no-measure"
        )
    return found


def _ask(job: Mapping[str, Any], limit: float | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
        result = Path(folder) / "result.json"
        errors = Path(folder) / "errors.txt"
        with errors.open("wb") as file:
            # a session of its own: Ctrl-C reaches this process alone, which then ends the other
            process = subprocess.Popen(
                [sys.executable, "-m", "inco.plan.child", str(result)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=_environment(folder),
                start_new_session=True,
            )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({**job, "began": time.time()}).encode())
            process.stdin.close()
            process.wait(timeout=limit)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass  # what it has found by now is there
        finally:
            process.kill()
            code = process.wait()
        found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
        if "error" in found:
            raise _error(found)
        if code > 0 or (code < 0 and limit is None):
            said = errors.read_text(errors="replace").strip().splitlines()
            raise WorkerError(
                f"the measuring process ended with exit code {code}:"
                f" {said[-1] if said else 'it said nothing'}"
            )
        return found


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of a run's worker; what it keeps in files goes into `folder`, and goes
    with it.
    """
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TMPDIR": folder}
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if sys.platform == "linux":
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    env["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    return env


def _error(found: Mapping[str, Any]) -> InCoError:
    kinds = {kind.exit_code: kind for kind in (ConfigError, DataError)}
    return kinds.get(found["exit_code"], WorkerError)(found["error"])

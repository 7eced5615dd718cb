"""Runs in processes of their own: started, waited for, and their workers found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import ROOT


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tmp_path, env=env, preexec_fn=heard, **pipes)


def heard() -> None:
    """Hear Ctrl-C, which a process in the background of a shell ignores, and so do those that it
    starts.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_rounds(folder: Path, count: int, timeout: float = 60) -> None:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {count} rounds within {timeout} s")


def workers_of(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in found.splitlines() if "inco.run.worker" in line]

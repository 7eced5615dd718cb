"""Sweeps through Hydra's launchers: jobs in processes of their own, requeued when their time is up,
and the table at the end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import wait_for_rounds
from support import ROOT, TINY, read_rows, read_summary, timeless

pytestmark = pytest.mark.full

SMALL = (*TINY, "tracker=none", "engine.workers=1", "checkpoint_every=50")


def needs(package: str) -> pytest.MarkDecorator:
    """Skip without a launcher's package."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


def launch(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a sweep in `folder`, where jobs find the package."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "run.py"), "-m", *SMALL, *words]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@needs("hydra_plugins.hydra_submitit_launcher")
def test_a_job_whose_time_is_up_is_requeued_and_goes_on(type_command, tmp_path: Path) -> None:
    """The signal that comes before a time limit: submitit puts the job back, and it ends with the
    bits of a run that had the time.

    Submitit's local executor stands for SLURM: the same handler of the same signal, but a new
    process in place of `scontrol requeue`.
    """
    sweep = launch(
        tmp_path,
        "hydra/launcher=submitit_local",
        "hydra.launcher.timeout_min=20",
        "name=run",
        "rounds=150",
    )
    run = tmp_path / "outputs" / "run"
    wait_for_rounds(run, 4)
    first = json.loads((run / "run.lock").read_text())["pid"]
    os.kill(first, signal.SIGUSR2)
    told, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 0 and "finished" in told, told + errors
    log = "".join(
        path.read_text() for path in (tmp_path / "outputs" / ".submitit").rglob("*_log.out")
    )
    # off the grid of checkpoints: saved as the job left
    kept = int(log.partition("going on after round ")[2].split()[0])
    assert 4 <= kept < 150
    done = type_command(*SMALL, "rounds=150", "hydra.run.dir=whole")
    assert done.returncode == 0, done.stderr
    assert read_summary(run)["weights_sha256"] == read_summary(tmp_path / "whole")["weights_sha256"]
    assert timeless(read_rows(run)) == timeless(read_rows(tmp_path / "whole"))


@needs("hydra_plugins.hydra_joblib_launcher")
def test_jobs_side_by_side_end_in_one_table(tmp_path: Path) -> None:
    """Two jobs at once, then the same sweep again with one more: what is done is not repeated."""
    for seeds in ("0,1", "0,1,2"):
        words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"seed={seeds}", "rounds=2")
        told, errors = (sweep := launch(tmp_path, *words)).communicate(timeout=200)
        assert sweep.returncode == 0, errors
        table = told.partition("Sweep in outputs")[2]
        assert table.count("finished") == len(seeds.split(",")), told
    assert told.count("already finished") == 2
    shas = {
        read_summary(path)["weights_sha256"] for path in (tmp_path / "outputs").glob("synthetic-*")
    }
    assert len(shas) == 3

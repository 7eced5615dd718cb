"""One thread for every test, and a command line to type."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the number of threads changes bits

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT

torch.set_num_threads(1)


@pytest.fixture
def type_command(tmp_path: Path):
    """Type a command line in an empty folder, as a user would; outputs/ appears there."""

    def run(
        *arguments: str,
        timeout: float = 120,
        env: dict[str, str] | None = None,
        launcher: Sequence[str] = (),
    ) -> Any:
        command = [*(launcher or [sys.executable]), str(ROOT / "run.py"), *arguments]
        clean = (
            {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
            | {"PYTHONPATH": str(ROOT)}
            | (env or {})
        )
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, env=clean
        )

    return run

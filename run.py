"""Train a federation of clients that hold models of different sizes: `python run.py`, `python
run.py --help`.

Nothing heavy is imported here, so that help, completion and error messages come at once.
"""

# ruff: noqa: E402  # Ctrl-C is heard before the imports, which take a second

from inco.run.early import leave_on_interrupt

leave_on_interrupt()

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from inco.config.naming import register
from inco.run.cli import Ledger, front_door, run_job

CONF = Path(__file__).resolve().parent / "conf"

register()
ledger: Ledger = {}


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run one job and return its last accuracy."""
    return run_job(cfg, ledger)


if __name__ == "__main__":
    sys.exit(front_door(main, CONF, sys.argv[1:], ledger))

"""One rank of a test: join a group, run many configurations in it, and write what rank 0 got.

Usage: python rank_program.py RANK WORLD FOLDER TASK, where TASK is a JSON file: a list of [name,
overrides, phases]. Phases: "whole" runs all rounds; "part" the first round, with a checkpoint;
"rest" goes on from it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from support import settings_of, timeless

from inco.assembly import assemble
from inco.callbacks import EachRound
from inco.engine.ranks import Ranks
from inco.records.checkpoint import Checkpoints
from inco.run.resume import begin, pack
from inco.run.summary import sha256

ROUNDS = 2


def run(ranks: Ranks, settings: dict[str, Any], folder: Path, phase: str) -> dict[str, Any]:
    """Run one phase; return the hash of the weights and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings | {"engine": settings["engine"] | {"state_dir": str(folder / "clients")}}
    assembly = assemble(settings, ranks)
    saved = Checkpoints(folder).load_latest() if phase == "rest" and ranks.rank == 0 else None
    state = begin(assembly, ranks, settings, saved)
    rows: list[dict[str, Any]] = []
    kept = EachRound(lambda state, metrics: rows.append(metrics))
    assembly.simulator.run(state, 1 if phase == "part" else ROUNDS, [kept])
    if phase == "part" and ranks.rank == 0:
        Checkpoints(folder).save(pack(assembly, state, settings, 0.0))
    ranks.share(None)  # the next phase may read what this one wrote
    return {"weights": sha256(state), "rows": timeless(rows)}


def main(rank: int, world: int, folder: Path, task: Path) -> None:
    """Run every configuration in every phase asked for."""
    ranks = Ranks.join(rank, world, "cpu", str(folder / f"store{world}"))
    found: dict[str, Any] = {}
    for name, overrides, phases in json.loads(task.read_text()):
        settings = settings_of(*overrides)
        for phase in phases:
            place = folder / ("resumed" if phase in ("part", "rest") else f"whole{world}") / name
            found[f"{name} {phase}"] = run(ranks, settings, place, phase)
    if rank == 0:
        (folder / f"found{world}.json").write_text(json.dumps(found))
    ranks.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))

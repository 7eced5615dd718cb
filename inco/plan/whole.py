"""`--measure full`: two whole rounds of a kind of run, on one worker."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from inco.assembly import assemble
from inco.engine.ranks import Ranks
from inco.plan.counting import count
from inco.plan.measure import Write, peak
from inco.plan.standin import prepared
from inco.records.record import plain


def whole_rounds(settings: Mapping[str, Any], ranks: Ranks, began: float, write: Write) -> None:
    """Run two rounds as they are; the second counts.

    Its time is shared out over clients by their FLOPs, to estimate other cohorts.
    """
    whole, notes = prepared(settings)
    run = assemble(
        {**whole, "engine": {**whole["engine"], "workers": 1, "state_dir": None, "profile": False}},
        ranks,
    )
    found: dict[str, Any] = {
        "fixed": time.time() - began,
        "notes": notes,
        "images": len(run.dataset.test.labels),
    }
    simulator = run.simulator
    state = simulator.start(settings["seed"])
    simulator.round(state)
    row = simulator.round(state, last=True)
    tasks = simulator.population.tasks(2)
    flops = {level: float(cost.train_flops) for level, cost in run.costs.items()}
    work = sum(flops[task.level] * simulator.images_trained(len(task.examples)) for task in tasks)
    scale = row["time/train_s"] / work
    found |= {
        "levels": {level: {"steps": [(1, scale * cost)]} for level, cost in flops.items()},
        "image": row["time/eval_s"] / found["images"],
        "watched": (
            row["time/round_s"] - row["time/train_s"] - row["time/eval_s"]
            if simulator.diagnostics.watch(2)
            else 0.0
        ),
        "lines": [{"counts": count(whole, run), "transform": 0.0, "notes": notes}],
        "measured": (
            f"{sum(map(run.trainer.steps, (len(t.examples) for t in tasks)))} steps,"
            f" {found['images']:,} images"
        ),
        "row_bytes": len(json.dumps(plain(row))),
        "memory_bytes": peak(ranks),
    }
    write(found)

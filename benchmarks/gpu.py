"""`gpu`: the paper's setting on a GPU, beside an eager loop of the same batches on one stream.

Where there is no GPU it says so.
"""

from __future__ import annotations

import argparse

from benchmarks.driver import Trial, interleave
from benchmarks.report import Row, number, sum_up
from benchmarks.systems import System, product
from benchmarks.workloads import WORKLOADS, changed

ROUNDS_OF_THE_PAPER = 500


def main(args: argparse.Namespace) -> list[Row]:
    """Measure, print and keep; on a machine without a GPU, say that it is unmeasured."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: torch sees no GPU here, so this is unmeasured; nothing has been run")
        return []
    workload = WORKLOADS["gpu"]
    settings = changed(workload.settings(args.quick), "engine", device="cuda")
    rounds = args.rounds or (1 if args.quick else 3)
    repeats = args.repeats or (1 if args.quick else 2)
    floor = System(
        "eager loop, one stream", "benchmarks.systems.floor", 1, options={"device": "cuda"}
    )
    ours = [product(workers, precision) for precision in ("fp32", "bf16") for workers in (1, 2, 4)]
    trials = interleave([floor, *ours], settings, rounds, repeats, print)
    name = torch.cuda.get_device_name()
    facts = {"gpu": name, "settings": settings, "rounds": rounds, "repeats": repeats}
    rows = sum_up("gpu", trials, floor.name, facts, args.out, f"{name}: {workload.about}")
    for row in rows:
        if row["seconds"]:
            minutes = row["seconds"]["median"] * ROUNDS_OF_THE_PAPER / 60
            print(
                f"{row['system']}: {ROUNDS_OF_THE_PAPER} rounds in {number(minutes)}"
                f" minutes{_rate(row['system'], trials)}"
            )
    return rows


def _rate(system: str, trials: list[Trial]) -> str:
    """Say how much arithmetic that is, by the product's own count (a training step is three forward
    passes).
    """
    rates = [
        r.facts["flops"] / r.train_s
        for t in trials
        if t.system == system
        for r in t.rounds
        if "flops" in r.facts
    ]
    return f", {max(rates) / 1e12:.1f} TFLOP/s in training" if rates else ""

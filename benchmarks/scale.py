"""`scale`: 1,000 and 1,000,000 clients with the same cohort, and a cohort of 10,000; how long their
partitions take.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks.driver import interleave
from benchmarks.report import Row, number, sum_up
from benchmarks.systems import System, product
from benchmarks.workloads import settings_of
from inco.config.targets import build

_BASE = (
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "model=cnn",
    "model.image_size=null",
    "model.padding=2",
    "split=none",
    "transform=none",
    "tracker=none",
    "local=sgd",
    "local.momentum=0",
    "partition=iid",
    "engine.device=cpu",
    "dataset.num_test=1000",
)


def federation(clients: int, cohort: int, examples: int, epochs: int) -> tuple[str, ...]:
    """Return the settings of one federation: `clients` clients that share `examples` tiny
    images.
    """
    sizes = (
        f"num_clients={clients}",
        f"dataset.num_train={examples}",
        f"sample_ratio={cohort / clients}",
    )
    return (*_BASE, *sizes, f"local.epochs={epochs}")


def partition_seconds(clients: int, scheme: str) -> float:
    """Time dealing one example each to so many clients (with shards: one class each)."""
    labels = np.random.default_rng(0).permutation(np.arange(clients) % 10)
    own = settings_of(f"partition={scheme}")["partition"]
    deal = build(
        "partition", own | {"classes_per_client": 1} if "classes_per_client" in own else own
    )
    began = time.perf_counter()
    deal(labels, 10, clients, np.random.default_rng(0))
    return time.perf_counter() - began


def main(args: argparse.Namespace) -> list[Row]:
    """Measure, print and keep.

    Each client holds one example, so that rounds of equal cohorts are equal work.
    """
    few, many, cohort, large, epochs = (
        (50, 500, 10, 100, 2) if args.quick else (1_000, 1_000_000, 100, 10_000, 10)
    )
    rounds = args.rounds or (2 if args.quick else 10)
    repeats = args.repeats or (1 if args.quick else 3)
    # rounds of tenths of a second where they are compared, or jitter is all that is seen
    cases = [(few, cohort, epochs), (many, cohort, epochs), (many, large, 1)]
    trials = []
    for repeat in range(repeats):
        for clients, size, steps in cases:
            system = System(
                f"{clients:,} clients, {size:,} a round",
                product(2, "fp32").module,
                0,
                options={"workers": 2},
            )
            found = interleave(
                [system], settings_of(*federation(clients, size, clients, steps)), rounds, 1, print
            )
            for trial in found:
                trial.repeat = repeat
            trials += found
    dealt = {scheme: partition_seconds(many, scheme) for scheme in ("iid", "shards")}
    facts = {"cases": cases, "rounds": rounds, "repeats": repeats, "partition_s": dealt}
    rows = sum_up(
        "scale",
        trials,
        None,
        facts,
        args.out,
        "The number of clients; the same model and one example a client",
    )
    small = rows[0]
    big = rows[1]
    if small["seconds"] and big["seconds"]:
        times = big["seconds"]["median"] / small["seconds"]["median"]
        more = big["peak_mb"] - small["peak_mb"]
        print(
            f"{many:,} against {few:,} clients: {number(times)} times the round, {more:+,.0f} MB in"
            " both processes together"
        )
    print(
        "partition of "
        + f"{many:,} clients: "
        + ", ".join(f"{scheme} {number(s)} s" for scheme, s in dealt.items())
    )
    return rows

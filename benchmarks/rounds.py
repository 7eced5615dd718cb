"""`w1` and `w2`: seconds a round of InCo beside the floor, a plain loop and, with --peers, Flower
and pfl-research.
"""

from __future__ import annotations

import argparse

from benchmarks.driver import interleave
from benchmarks.report import Row, sum_up
from benchmarks.systems import FLOOR, FLOOR_ASLEEP, OURS, PEERS, PLAIN, System
from benchmarks.workloads import WORKLOADS


def systems(peers: bool, quick: bool) -> list[System]:
    """Return what is measured, the floor first."""
    ours = [OURS[0], OURS[-1]] if quick else list(OURS)  # fp32 on one worker, bf16 on two
    return [FLOOR, *([] if quick else [FLOOR_ASLEEP]), *ours, PLAIN, *(PEERS if peers else ())]


def main(args: argparse.Namespace) -> list[Row]:
    """Measure, print and keep."""
    workload = WORKLOADS[args.what]
    settings = workload.settings(args.quick)
    rounds = args.rounds or (2 if args.quick else 3)
    repeats = args.repeats or (1 if args.quick else 3)
    trials = interleave(systems(args.peers, args.quick), settings, rounds, repeats, print)
    about = "a tiny stand-in, whose times say nothing" if args.quick else workload.about
    facts = {
        "workload": workload.name,
        "about": about,
        "settings": settings,
        "rounds": rounds,
        "repeats": repeats,
    }
    return sum_up(
        args.what, trials, FLOOR.name, facts, args.out, f"{workload.name.upper()}: {about}"
    )

"""Print what a round asks of a GPU, by line of the package: launches, synchronisations, transfers.

PYTHONPATH=tests python tests/gpu/counts.py OVERRIDES...

It is round 2 of a run of five clients on synthetic images of 32x32 pixels (as many channels as
`dataset.shape` says, one unless given), once with eager passes and once with graphs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from gpu.pretend import Counts  # noqa: E402
from gpu.runs import Outcome, plain_convolutions, run  # noqa: E402

SETTING = (
    "dataset=synthetic",
    "dataset.shape=[1,32,32]",
    "dataset.num_train=640",
    "num_clients=5",
    "sample_ratio=1.0",
    "local.epochs=1",
    "tracker=none",
    "eval_every=1",
)


def lines(counts: Counts) -> dict[str, tuple[int, int, int, int]]:
    """Return launches, synchronisations, transfers and bytes of each line, the most launches
    first.
    """
    syncs: Counter[str] = Counter()
    transfers: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for (where, _), number in counts.syncs.items():
        syncs[where] += number
    for (where, _), number in counts.transfers.items():
        transfers[where] += number
    for (where, _), number in counts.bytes.items():
        moved[where] += number
    seen = sorted(
        counts.launches.keys() | syncs.keys(), key=lambda k: (-counts.launches[k], -syncs[k], k)
    )
    return {k: (counts.launches[k], syncs[k], transfers[k], moved[k]) for k in seen}


def show(title: str, counts: Counts, most: int) -> None:
    """Print a table: lines that synchronise, and those with the most launches."""
    table = lines(counts)
    total = tuple(map(sum, zip(*table.values(), strict=True))) or (0, 0, 0, 0)
    print(f"\n{title:52}{'launches':>10}{'syncs':>7}{'transfers':>11}{'bytes':>13}")
    print(f"{'in all':52}{total[0]:10,}{total[1]:7,}{total[2]:11,}{total[3]:13,}")
    for rank, (where, (launches, syncs, transfers, moved)) in enumerate(table.items()):
        if syncs or rank < most:
            print(f"{where:52}{launches:10,}{syncs:7,}{transfers:11,}{moved:13,}")


def report(outcome: Outcome, mode: str, most: int) -> None:
    """Print round 2 of a run: its clients, and the server with its scoring."""
    for problem, number in outcome.problems.items():
        print(f"REFUSED {number} times: {problem}")
    show(f"{mode}: {outcome.trained} clients", outcome.counts["clients 2"], most)
    show(f"{mode}: server and scoring", outcome.counts["round 2"], most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=12, help="lines with the most launches")
    parser.add_argument("--mode", choices=["eager", "graph"], help="only this one")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with plain_convolutions():
        outcomes = {
            mode: run((*SETTING, *given.overrides), mode, strict=False, resume=False)
            for mode in ([given.mode] if given.mode else ["eager", "graph"])
        }
    for mode, outcome in outcomes.items():
        report(outcome, mode, given.lines)
    if len(outcomes) == 2:
        print("\ngraphs = eager to the bit:", outcomes["eager"].same_as(outcomes["graph"]))


if __name__ == "__main__":
    main()

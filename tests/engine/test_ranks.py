"""Every algorithm on every split: equal bits on one, two and four workers, and after a stop and
another number of workers.

Workers are real processes with real collectives, started once for all combinations;
`test_engine.py` and `test_interruptions.py` start them as a user does.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TINY, TINY_VIT, WIDE

SGD = ("local=sgd", "local.momentum=0", "local.weight_decay=0")
# with equal clients FedNova would be FedAvg
UNEVEN = (
    "partition=quantity",
    "partition.min_size=2",
    "sample_ratio=0.8",
)
ALGORITHMS = ("fedavg", "fedprox", "scaffold", "fednova", "moon", "feddyn")
SPLITS = ("none", "isolated", "stage", "width", "rolling", "scalefl", "inclusive")


def settings(algorithm: str, split: str) -> list[str]:
    """A tiny run; by turns with InCo and without, so that all pairs of choices are met."""
    turn = (ALGORITHMS.index(algorithm) + SPLITS.index(split)) % 2
    return [
        *TINY,
        *SGD,
        *UNEVEN,
        f"algorithm={algorithm}",
        f"split={split}",
        f"transform={('none', 'inco')[turn]}",
    ]


MATRIX = {f"{a}-{s}": settings(a, s) for a, s in itertools.product(ALGORITHMS, SPLITS)}
MATRIX |= {
    f"scaffold-{s}-vit": [*TINY_VIT, *SGD, "algorithm=scaffold", f"split={s}", "transform=inco"]
    for s in ("layer", "width", "rolling", "inclusive")
}
MATRIX |= {
    f"{a}-layer-vit": [*TINY_VIT, *SGD, *UNEVEN, f"algorithm={a}", "transform=inco"]
    for a in ALGORITHMS
    if a != "scaffold"
}
MATRIX |= {
    "random-windows": [
        *TINY,
        *SGD,
        "algorithm=scaffold",
        "split=rolling",
        "split.window=random",
        "transform=none",
    ]
}
MATRIX |= {"static": [*TINY, "split=stage", "split.bn=static", "capacity=resampled"]}


MATRIX |= {"wide": [*WIDE, *SGD, "algorithm=scaffold", "split=width", "transform=inco"]}
SHORT = ["scaffold-stage", "fednova-width", "moon-rolling", "wide"]


def start(folder: Path, world: int, phases: list[str], names: Sequence[str]) -> dict[str, Any]:
    """Run some of the matrix on `world` ranks and return what they found."""
    task = folder / f"task{world}.json"
    task.write_text(json.dumps([(name, MATRIX[name], phases) for name in names]))
    program = str(Path(__file__).parents[1] / "rank_program.py")
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, program]
    ranks = [
        subprocess.Popen(
            [*command, str(r), str(world), str(folder), str(task)], env=env, cwd=folder
        )
        for r in range(world)
    ]
    assert [rank.wait(timeout=800) for rank in ranks] == [0] * world
    return json.loads((folder / f"found{world}.json").read_text())


def compare(folder: Path, names: Sequence[str]) -> None:
    """Equal bits on one worker and two, and on two and then one."""
    two = start(folder, 2, ["whole", "part"], names)
    one = start(folder, 1, ["whole", "rest"], names)
    for name in names:
        whole = one[f"{name} whole"]
        assert two[f"{name} whole"] == whole, f"{name}: two workers are not one"
        assert one[f"{name} rest"]["weights"] == whole["weights"], (
            f"{name}: a round on two workers and one on one are not two on one"
        )
        assert two[f"{name} part"]["rows"] + one[f"{name} rest"]["rows"] == whole["rows"], name
    # with one client a size, isolated, SCAFFOLD's c is that client's c_i and corrects nothing; all
    # others are methods of their own
    weights = {name: one[f"{name} whole"]["weights"] for name in names}
    if {"scaffold-isolated", "fedavg-isolated"} <= set(names):
        assert weights.pop("scaffold-isolated") == weights["fedavg-isolated"]
    assert len(set(weights.values())) == len(weights)


def test_some_algorithms_on_one_worker_and_two(tmp_path: Path) -> None:
    compare(tmp_path, SHORT)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_algorithm_on_every_split_on_one_worker_and_two(tmp_path: Path) -> None:
    assert start(tmp_path, 2, ["whole"], list(MATRIX)) == start(
        tmp_path, 1, ["whole"], list(MATRIX)
    )


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_algorithm_on_every_split_going_on_with_other_workers(tmp_path: Path) -> None:
    compare(tmp_path, list(MATRIX))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_four_workers_are_one(tmp_path: Path) -> None:
    assert start(tmp_path, 4, ["whole"], list(MATRIX)) == start(
        tmp_path, 1, ["whole"], list(MATRIX)
    )

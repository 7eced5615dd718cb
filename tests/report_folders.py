"""Run folders made by hand, for the tests of what is made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from inco.records.arrays import ArrayStore, write_npz
from inco.records.record import RunRecord
from inco.records.runs import Run, find

CAPACITIES = ["small", "large"]


def write_folder(
    folder: Path,
    accuracies: list[list[float]],
    *,
    seed: int = 0,
    transform: str = "inco",
    status: str | None = "finished",
    about: bool = True,
    settings: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
    chosen: dict[str, Any] | None = None,
    told: dict[str, Any] | None = None,
) -> Path:
    """Write a run's folder: a row a round with the accuracies of both capacities, and what
    surrounds it.

    `more` goes into each row, `chosen` into the choices, `told` into about.json.
    """
    record = RunRecord(folder)
    for number, pair in enumerate(accuracies, 1):
        scores = {f"test/acc/{name}": value for name, value in zip(CAPACITIES, pair, strict=True)}
        row = {
            "round": number,
            "test/acc": sum(pair) / 2,
            "test/loss": 2.0 / number,
            **scores,
            "train/loss": 1.0 / number,
        }
        row |= {
            "comm/up_bytes": 1000,
            "comm/down_bytes": 3000,
            "update/norm": 0.5,
            "compute/flops": 10**9,
        }
        record.append(
            row | {"time/train_s": 2.0, "time/eval_s": 0.5, "time/round_s": 3.0} | (more or {})
        )
    choices = {
        "dataset": "digits",
        "algorithm": "fedavg",
        "transform": transform,
        "tracker": "none",
        **(chosen or {}),
    }
    options = {group: option for group, option in choices.items() if group != "tracker"}
    every = {
        "seed": seed,
        "num_clients": 4,
        "local": {"lr": 0.1, "betas": [0.9, 0.999]},
        "transform": {},
        "options": options,
    }
    every |= settings or {}
    known = {
        "name": folder.name,
        "group": "g",
        "choices": choices,
        "command": "python run.py",
        "seed": seed,
        "rounds": len(accuracies),
    }
    known |= {
        "difference": [["local.lr", 0.1, None]],
        "settings": every,
        "capacities": CAPACITIES,
        "classes": ["a", "b", "c"],
    }
    known |= {
        "params/small": 1000,
        "params/large": 2_000_000,
        "mean_params": 1_000_500,
        "mean_flops": 5e6,
    }
    known |= {
        "machine": {"system": "Linux x86_64", "cpu": "a processor", "instruction_set": "AVX2"},
        "git": {"commit": "f00d", "clean": False},
    }
    if about:
        record.write_about(known | (told or {}))
    if status:
        means = [sum(pair) / 2 for pair in accuracies]
        summary = {
            "status": status,
            "test/acc": means[-1],
            "test/acc_best": max(means),
            "rounds": len(means),
            "wall_s": 60.0 + seed,
        }
        for k, name in enumerate(CAPACITIES):
            column = [pair[k] for pair in accuracies]
            summary |= {f"test/acc/{name}": column[-1], f"test/acc/{name}_best": max(column)}
        record.write_summary(summary | {"seed": seed, "settings": every, "warnings": []})
    return folder


def sweep(root: Path, **finals: list[float]) -> list[Run]:
    """Write a run a transform and seed whose last mean accuracy is given; the first round is 10
    lower, small is 2 below large.
    """
    for transform, values in finals.items():
        for seed, value in enumerate(values):
            rounds = [[value - 11, value - 9], [value - 1, value + 1]]
            write_folder(root / f"{transform}-s{seed}", rounds, seed=seed, transform=transform)
    return find([root])


def page_data(path: Path) -> dict[str, Any]:
    """Return the data that a page draws from."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S
    )
    assert found
    return json.loads(found[1])


def similarity(models: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).uniform(0.2, 1.0, (models, models))
    found = (found + found.T) / 2
    np.fill_diagonal(found, 1.0)
    return found


def edges() -> np.ndarray:
    side = 10.0 ** (np.arange(221) / 20 - 9)
    return np.concatenate([-side[::-1], side])


def histogram(values: np.ndarray) -> np.ndarray:
    return np.histogram(values, edges())[0]


def large_run(folder: Path) -> Path:
    """Write 500 rounds of 4 taps, 10 models, 30 layers and 50 measured rounds, with 100 clients."""
    layers = [
        f"layer{stage}.{block}.conv{k}"
        for stage in (1, 2, 3, 4)
        for block in range(4)
        for k in (1, 2)
    ]
    draw = np.random.default_rng(0)
    more = {
        f"{kind}/{name}": float(draw.normal())
        for name in layers
        for kind in ("inco/theta", "inco/beta_positive")
    }
    write_folder(folder, draw.uniform(10, 90, (500, 2)).tolist(), more=more)
    store, names = (
        ArrayStore(folder),
        {"client": np.arange(10), "level": np.arange(10) // 2, "name": np.array(["resnet26"] * 10)},
    )
    for number in range(1, 501, 10):
        cka = {f"cka/layer{k}": similarity(10, number + k) for k in (1, 2, 3, 4)}
        counts = {
            f"{kind}/{name}": histogram(draw.normal(0, 0.01, 2000))
            for name in layers
            for kind in ("clients", "update")
        }
        store.keep(number, {"cka": cka | names, "gradients": {"edges": edges(), **counts}})
    levels = np.arange(100, dtype="int32") // 20
    write_npz(
        folder / "partition.npz",
        {"counts": draw.integers(0, 90, (100, 10)), "levels": levels, "clients": np.array(100)},
    )
    return folder

"""What the tests share: composing a configuration and running it in this process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from inco.callbacks import EachRound
from inco.config.naming import plain, register
from inco.types import Upload, Weighting

register()
ROOT = Path(__file__).resolve().parent.parent

TINY = (
    "debug=tiny",
    "dataset=synthetic",
    "model.widths=[2,4,4,8]",
    "dataset.shape=[1,8,8]",
    "dataset.num_train=60",
    "dataset.num_test=40",
    "dataset.num_classes=3",
    "local.batch_size=8",
)
TINY_VIT = (
    "debug=tiny",
    "dataset=synthetic",
    "model=vit_tiny",
    "model.dim=8",
    "model.heads=2",
    "model.image_size=16",
    "split=layer",
    "dataset.shape=[1,8,8]",
    "dataset.num_train=60",
    "dataset.num_test=40",
    "dataset.num_classes=3",
    "local.batch_size=8",
)


# beside each narrow model one of default width
WIDE = tuple(o for o in TINY if not o.startswith("model.widths"))
WIDE_VIT = tuple(o for o in TINY_VIT if not o.startswith(("model.dim", "model.heads")))


BASES = {"narrow": TINY, "wide": WIDE, "narrow-vit": TINY_VIT, "wide-vit": WIDE_VIT}


def uploads_of(buffers: Weighting = "examples", **weightings: Weighting) -> dict[str, Upload]:
    """Return uploads of parameters with these weightings (the delta's by examples, if it is not
    named), and that of buffers.
    """
    named = {"delta": "examples"} | weightings
    uploads = {name: Upload(weighting) for name, weighting in named.items()}
    return uploads | {"buffers": Upload(buffers, "buffers", limit=2.0**30)}


def thinned(*axes: Sequence[Any]) -> list[Any]:
    """Return all combinations; those beyond what it takes to meet each value once are for `pytest
    -m full`.
    """
    kept = {tuple(axis[i % len(axis)] for axis in axes) for i in range(max(map(len, axes)))}
    return [
        case if case in kept else pytest.param(*case, marks=pytest.mark.full)
        for case in itertools.product(*axes)
    ]


def named(value: Any) -> Any:
    """Return a short name of a base of overrides for a test's name; None leaves the naming of all
    else to pytest.
    """
    return next((name for name, base in BASES.items() if value is base), None)


def settings_of(*overrides: str) -> dict[str, Any]:
    """Compose a configuration as plain Python."""
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return plain(cfg)


def simulate(*overrides: str, rounds: int | None = None) -> tuple[Any, list[dict[str, float]], Any]:
    """Run a configuration in this process on one rank.

    Returns the last state, the rows and the assembly.
    """
    from inco.assembly import assemble
    from inco.engine.ranks import Ranks

    settings = settings_of(*overrides)
    run = assemble(settings, Ranks(0, 1, torch.device("cpu")))
    state = run.simulator.start(settings["seed"])
    rows: list[dict[str, float]] = []
    kept = EachRound(lambda state, metrics: rows.append(metrics))
    run.simulator.run(state, rounds or settings["rounds"], [kept])
    return state, rows, run


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the times, which alone may differ between equal runs."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's summary.json."""
    return json.loads((folder / "summary.json").read_text())

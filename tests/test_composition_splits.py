"""The splits by width, by windows, by exits and with lessons: with every transform, capacity and family, and what must hold for each."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import TINY, TINY_VIT, simulate
from test_composition import check_run

SPLITS = ("width", "rolling", "scalefl", "inclusive")


@pytest.mark.parametrize(("split", "transform"), list(itertools.product(SPLITS, ("none", "inco", "no_optimization", "add_noise"))))
def test_transforms(split: str, transform: str) -> None:
    check_run(*TINY, f"split={split}", f"transform={transform}")


@pytest.mark.parametrize(("split", "transform"), list(itertools.product(SPLITS, ("none", "inco"))))
def test_vit(split: str, transform: str) -> None:
    check_run(*TINY_VIT, f"split={split}", f"transform={transform}")


@pytest.mark.parametrize(("split", "capacity"), list(itertools.product(SPLITS, ("resampled", "all_small", "all_large"))))
def test_capacities(split: str, capacity: str) -> None:
    check_run(*TINY, f"split={split}", f"capacity={capacity}")


@pytest.mark.parametrize(("split", "bn"), list(itertools.product((*SPLITS, "none", "isolated"), ("aggregated", "static", "batch"))))
def test_batch_norm(split: str, bn: str) -> None:
    check_run(*TINY, f"split={split}", f"split.bn={bn}", "split.bn_images=30")


@pytest.mark.parametrize(
    "more",
    [
        "split=width split.masked_loss=minus_inf",
        "split=width split.masked_loss=off split.scaler=false",
        "split=width partition=labels partition.classes_per_client=1 algorithm=scaffold local=sgd local.momentum=0",
        "split=rolling split.window=backward",
        "split=rolling split.window=random algorithm=moon",
        "split=rolling split.overlap=0.5 split.weighting=width",
        "split=rolling capacity=resampled algorithm=feddyn",
        "split=scalefl split.gamma=0",
        "split=scalefl split.exits=[2] split.levels=[[0.5,1],[1.0,2]] split.reduction=batchmean split.detach=true",
        "split=inclusive split.beta=0 split.levels=[[1,1,1,1],[2,2,2,2]]",
        "split=width local.max_grad_norm=1",
    ],
)
def test_settings(more: str) -> None:
    check_run(*TINY, *more.split())


@pytest.mark.parametrize("split", [*SPLITS, "stage"])
def test_inco_finds_pairs_and_acts(split: str) -> None:
    with_none, _, _ = simulate(*TINY, f"split={split}", "transform=none", rounds=1)
    with_inco, rows, run = simulate(*TINY, f"split={split}", "transform=inco", rounds=1)
    assert not torch.equal(with_none.w, with_inco.w) and any(key.startswith("inco/theta/") for key in rows[0])
    for pair in run.simulator.transform.pairs:
        target, reference = (run.split.params.entries[name] for name in (pair.target, pair.reference))
        assert target.shape == reference.shape and target.axes[2:] == reference.axes[2:]


def test_a_class_that_no_sampled_client_has_keeps_its_row() -> None:
    """One class a client, one client a round: the classifier's other rows stay, those of its class move."""
    state, _, run = simulate(
        *TINY, "split=width", "transform=none", "partition=labels", "partition.classes_per_client=1", "sample_ratio=0.2", rounds=1
    )
    (task,) = run.simulator.population.tasks(1)
    assert task.classes is not None and int(task.classes.sum()) == 1
    moved = run.split.params.view(state.w != run.simulator.start(0).w, "fc.weight").any(1)
    assert torch.equal(moved, task.classes)
    off, _, _ = simulate(
        *TINY, "split=width", "split.masked_loss=off", "transform=none", "partition=labels", "partition.classes_per_client=1",
        "sample_ratio=0.2", rounds=1,
    )  # fmt: skip
    assert run.split.params.view(off.w != run.simulator.start(0).w, "fc.weight").any(1).all()


def test_costs_by_capacity_add_up() -> None:
    """Traffic of a round is the sum over capacities; BatchNorm's buffers travel where they are aggregated, and nowhere else."""
    for split, buffers in (("stage", True), ("width", False)):
        _, rows, run = simulate(*TINY, f"split={split}", rounds=1)
        for key in ("comm/up_bytes", "comm/down_bytes", "compute/flops"):
            parts = [value for name, value in rows[0].items() if name.startswith(f"{key}/")]
            assert len(parts) == 5 and sum(parts) == rows[0][key]
        assert (run.split.buffers.numel > 0) == buffers
        assert rows[0]["comm/up_bytes"] == sum(run.costs[t.level].up_bytes for t in run.simulator.population.tasks(1))

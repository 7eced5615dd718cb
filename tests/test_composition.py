"""Every split with every transform, capacity, partition and optimizer: two rounds on a tiny model,
and what must hold for each.
"""

from __future__ import annotations

import pytest
import torch
from support import TINY, TINY_VIT, WIDE, WIDE_VIT, named, simulate, thinned, timeless

SPLITS = ("none", "isolated", "stage")
TRANSFORMS = ("none", "inco", "no_normalization", "no_optimization", "neither")
RULES = ("official", "algorithm1", "theorem")


def check_run(*overrides: str) -> None:
    """Two rounds are finite, every coordinate that a sampled client holds moves, and no other
    does.
    """
    state, rows, run = simulate(*overrides, rounds=2)
    first = run.simulator.start(0)
    held = torch.zeros(run.split.params.numel, dtype=torch.bool)
    for task in [t for r in (1, 2) for t in run.simulator.population.tasks(r)]:
        held[run.split.submodel(task.level, task.round).params.index] = True
    moved = state.w != first.w
    assert not (moved & ~held).any(), "a coordinate that nobody held has moved"
    weights = [
        e
        for e in run.split.params.entries.values()
        if len(e.shape) > 1 and held[e.offset : e.offset + e.numel].all()
    ]
    still = [e.name for e in weights if not moved[e.offset : e.offset + e.numel].any()]
    assert not still, f"tensors that somebody trained have not moved: {still}"
    assert moved[held].float().mean() > 0.3, (
        "most of what clients hold moves (narrow layers may be dead)"
    )
    assert torch.isfinite(state.w).all() and torch.isfinite(state.b).all()
    assert [row["round"] for row in rows] == [1, 2]
    assert all(
        0 <= row["test/acc"] <= 100 and row["train/loss"] > 0 and row["comm/up_bytes"] > 0
        for row in rows
    )


@pytest.mark.parametrize(
    ("split", "transform", "base"), thinned(SPLITS, TRANSFORMS, (TINY, WIDE)), ids=named
)
def test_resnet_splits_and_transforms(split: str, transform: str, base: tuple[str, ...]) -> None:
    check_run(*base, f"split={split}", f"transform={transform}")


@pytest.mark.parametrize(
    ("split", "transform", "base"),
    thinned(("none", "isolated", "layer"), ("none", "inco"), (TINY_VIT, WIDE_VIT)),
    ids=named,
)
def test_vit_splits_and_transforms(split: str, transform: str, base: tuple[str, ...]) -> None:
    check_run(*base, f"split={split}", f"transform={transform}")


@pytest.mark.parametrize(("rule", "family"), thinned(RULES, (TINY, TINY_VIT)), ids=named)
def test_rules(rule: str, family: tuple[str, ...]) -> None:
    check_run(*family, "transform=inco", f"transform.rule={rule}")


@pytest.mark.parametrize(
    ("capacity", "sample_ratio"),
    thinned(("five_levels", "resampled", "all_small", "all_large"), (0.2, 1.0)),
)
def test_capacities(capacity: str, sample_ratio: float) -> None:
    check_run(*TINY, f"capacity={capacity}", f"sample_ratio={sample_ratio}")


@pytest.mark.parametrize(
    "partition",
    [
        "iid",
        "dirichlet partition.min_size=2",
        "shards partition.classes_per_client=3",
        "quantity partition.min_size=2",
        "labels",
    ],
)
def test_partitions(partition: str) -> None:
    option, *more = partition.split()
    check_run(*TINY, f"partition={option}", *more)


@pytest.mark.parametrize(
    ("local", "more"),
    thinned(
        ("adam", "sgd"),
        ("local.precision=bf16", "local.drop_last=true", "algorithm.weighting=uniform"),
    ),
)
def test_local_training(local: str, more: str) -> None:
    check_run(*TINY, f"local={local}", more)


def test_inco_without_pairs_is_the_identity_bitwise() -> None:
    with_none, rows_none, _ = simulate(*TINY, "transform=none")
    without_pairs, rows_pairs, _ = simulate(*TINY, "transform=inco", "transform.pairs=[]")
    assert torch.equal(with_none.w, without_pairs.w) and torch.equal(with_none.b, without_pairs.b)
    assert timeless(rows_none) == timeless(rows_pairs)


def test_inco_changes_a_run() -> None:
    with_none, _, _ = simulate(*TINY, "transform=none")
    with_inco, rows, _ = simulate(*TINY, "transform=inco")
    assert not torch.equal(with_none.w, with_inco.w)
    assert any(key.startswith("inco/theta/") for key in rows[0]) and any(
        key.startswith("inco/beta_positive/") for key in rows[0]
    )


def test_largest_level_for_all_is_no_split_bitwise() -> None:
    """A stage split whose clients all hold the whole model is no split at all."""
    split, rows_split, _ = simulate(*TINY, "split=stage", "capacity=all_large", "transform=none")
    none, rows_none, _ = simulate(*TINY, "split=none", "transform=none")
    assert torch.equal(split.w, none.w) and torch.equal(split.b, none.b)
    assert timeless(rows_split) == timeless(rows_none)


def test_isolated_level_is_a_run_of_its_own() -> None:
    """With isolation, what the smallest clients learn depends on the smallest clients alone."""
    state, _, run = simulate(*TINY, "split=isolated", "transform=none")
    sub = run.split.submodel(0, 1)
    other, _, again = simulate(
        *TINY,
        "split=isolated",
        "split.levels=[[1,1,1,1],[2,2,2,2]]",
        "num_clients=5",
        "transform=none",
    )
    mine = sub.params.gather(state.w, torch.empty(sub.params.layout.numel))
    start = sub.params.gather(run.simulator.start(0).w, torch.empty(sub.params.layout.numel))
    first = again.split.submodel(0, 1).params.gather(
        again.simulator.start(0).w, torch.empty(sub.params.layout.numel)
    )
    assert torch.equal(start, first), "a level starts alike whatever other levels there are"
    assert not torch.equal(mine, start)
    # five clients of five levels: client 0 alone is the smallest; of two levels, clients 0 to 2 are
    assert not torch.equal(
        mine,
        again.split.submodel(0, 1).params.gather(other.w, torch.empty(sub.params.layout.numel)),
    )


def test_pooled_state_does_not_leak_between_runs() -> None:
    """The same run twice in one process, and after another one, has the same bits."""
    first, rows, _ = simulate(*TINY)
    simulate(*TINY, "seed=5", "local=sgd")
    second, again, _ = simulate(*TINY)
    assert (
        torch.equal(first.w, second.w)
        and torch.equal(first.b, second.b)
        and timeless(rows) == timeless(again)
    )


def test_seed_changes_everything() -> None:
    first, _, run = simulate(*TINY)
    second, _, other = simulate(*TINY, "seed=1")
    assert not torch.equal(first.w, second.w)
    assert not torch.equal(run.simulator.start(0).w, other.simulator.start(1).w)


@pytest.mark.full
def test_train_loss_falls_on_learnable_data() -> None:
    """Twelve rounds on separable images: the loss halves and accuracy leaves chance (1/3) far
    behind.
    """
    _, rows, _ = simulate(
        *TINY, "dataset.num_train=300", "local.epochs=3", "local.lr=0.01", rounds=12
    )
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 2
    assert max(row["test/acc"] for row in rows) > 60

"""Every base algorithm on the real engine: what must equal FedAvg to the bit, every split and
transform, workers, and resuming.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import (
    TINY,
    TINY_VIT,
    WIDE,
    named,
    read_rows,
    read_summary,
    simulate,
    thinned,
    timeless,
)
from test_composition import check_run

SGD = ("local=sgd", "local.momentum=0", "local.weight_decay=0")
ALGORITHMS = ("fedprox", "scaffold", "fednova", "moon", "feddyn")


def same(one: tuple[str, ...], other: tuple[str, ...], rounds: int = 2) -> None:
    first, rows, _ = simulate(*TINY, *one, rounds=rounds)
    second, others, _ = simulate(*TINY, *other, rounds=rounds)
    assert torch.equal(first.w, second.w) and torch.equal(first.b, second.b)
    assert [r["test/acc"] for r in rows] == [r["test/acc"] for r in others]
    assert [r["train/loss"] for r in rows] == [r["train/loss"] for r in others]


@pytest.mark.full
@pytest.mark.parametrize(
    "local",
    [SGD, ("local=sgd", "local.momentum=0.9"), ("local=adam",)],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize(
    "null",
    [("algorithm=fedprox", "algorithm.mu=0"), ("algorithm=moon", "algorithm.mu=0")],
    ids=["fedprox", "moon"],
)
def test_without_their_term_they_are_fedavg(null: tuple[str, ...], local: tuple[str, ...]) -> None:
    same(local, (*local, *null))


@pytest.mark.full
@pytest.mark.parametrize(("option", "correction"), thinned(("I", "II"), ("grad", "post_step")))
def test_scaffolds_first_round_is_fedavg(option: str, correction: str) -> None:
    more = (
        "algorithm=scaffold",
        f"algorithm.option={option}",
        f"algorithm.correction={correction}",
    )
    same(SGD, (*SGD, *more), rounds=1)
    first, _, _ = simulate(*TINY, *SGD, rounds=2)
    second, _, _ = simulate(*TINY, *SGD, *more, rounds=2)
    assert not torch.equal(first.w, second.w), "and its second is not"


@pytest.mark.full
@pytest.mark.parametrize(("momentum", "tau"), thinned((0, 0.9), ("holders", "cohort")))
def test_fednova_with_equal_steps_is_fedavg(momentum: float, tau: str) -> None:
    # 12 examples each: six steps
    local = (
        "local=sgd",
        f"local.momentum={momentum}",
        "local.epochs=3",
    )
    same(local, (*local, "algorithm=fednova", f"algorithm.tau={tau}"))


def test_fednova_with_unequal_steps_is_not() -> None:
    uneven = (*SGD, "partition=quantity", "partition.min_size=2")
    first, _, _ = simulate(*TINY, *uneven)
    second, _, _ = simulate(*TINY, *uneven, "algorithm=fednova")
    assert not torch.equal(first.w, second.w)


@pytest.mark.full
def test_moons_first_participation_has_no_term() -> None:
    same((), ("algorithm=moon",), rounds=1)
    first, _, _ = simulate(*TINY, rounds=2)
    second, _, _ = simulate(*TINY, "algorithm=moon", rounds=2)
    assert not torch.equal(first.w, second.w)


@pytest.mark.full
@pytest.mark.parametrize("family", [TINY, TINY_VIT], ids=["resnet", "vit"])
def test_moon_with_a_projection_head(family: tuple[str, ...]) -> None:
    check_run(*family, "algorithm=moon", "model.projection_head=mlp", "transform=inco")


def test_server_sgd_with_rate_one_is_average() -> None:
    same((), ("server=sgd",))


@pytest.mark.full
def test_noise_of_scale_zero_and_a_wide_clip_are_clean() -> None:
    same((), ("uplink=noise", "uplink.scale=0"))
    same((), ("uplink=clip", "uplink.max_norm=1e9"))


@pytest.mark.parametrize(
    ("algorithm", "split", "transform", "base"),
    thinned(ALGORITHMS, ("none", "isolated", "stage"), ("none", "inco"), (TINY, WIDE)),
    ids=named,
)
def test_every_algorithm_on_every_split(
    algorithm: str, split: str, transform: str, base: tuple[str, ...]
) -> None:
    check_run(
        *base,
        *SGD,
        "sample_ratio=0.6",
        f"algorithm={algorithm}",
        f"split={split}",
        f"transform={transform}",
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_on_the_layer_split(algorithm: str) -> None:
    check_run(*TINY_VIT, *SGD, f"algorithm={algorithm}", "transform=inco")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_with_levels_that_move(algorithm: str) -> None:
    more = ("algorithm.allow_moving=true",) if algorithm == "moon" else ()
    check_run(*TINY, *SGD, f"algorithm={algorithm}", "capacity=resampled", *more)


@pytest.mark.parametrize("server", ["sgd", "adam", "yogi", "adagrad"])
def test_every_server_optimizer(server: str) -> None:
    check_run(*TINY, "sample_ratio=0.4", f"server={server}")


@pytest.mark.full
@pytest.mark.parametrize("more", ["uplink=noise", "uplink=clip", "transform=add_noise"])
def test_noise_and_clipping(more: str) -> None:
    check_run(*TINY, more)
    same((more,), (more,))  # drawn from named streams: twice the same


@pytest.mark.full
def test_a_sweep_with_clients_vectors_on_two_workers_and_then_on_one(
    type_command, tmp_path: Path
) -> None:
    """As a user types it: two rounds on two workers and two more on one, against four on one;
    `test_ranks.py` has all combinations.
    """
    common = ("-m", *TINY, *SGD, "algorithm=scaffold,moon", "sample_ratio=0.6", "transform=inco")
    for arguments in (
        ("rounds=4", "engine.workers=1", "hydra.sweep.dir=whole"),
        ("rounds=2", "engine.workers=2", "hydra.sweep.dir=parts"),
        ("rounds=4", "engine.workers=1", "hydra.sweep.dir=parts"),
    ):
        done = type_command(*common, *arguments, timeout=240)
        assert done.returncode == 0, done.stderr
    folders = sorted(
        p.name for p in (tmp_path / "whole").iterdir() if p.is_dir() and p.name != "sweeps"
    )
    assert len(folders) == 2
    for name in folders:
        whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
        assert read_summary(whole)["weights_sha256"] == read_summary(parts)["weights_sha256"], name
        assert timeless(read_rows(whole)) == timeless(read_rows(parts))
        assert list((parts / "clients").rglob("*.r*")), "clients' vectors are in the run's folder"


def test_traffic_counts_what_a_method_sends() -> None:
    """A number is four bytes; SCAFFOLD sends a second vector each way, BatchNorm's buffers travel
    once.
    """
    _, plain, run = simulate(*TINY, *SGD, rounds=1)
    tasks, costs = run.simulator.population.tasks(1), run.simulator.costs
    vectors = 4 * sum(costs[t.level].params for t in tasks)
    buffers = 4 * sum(run.split.submodel(t.level, 1).buffers.layout.numel for t in tasks)
    _, scaffold, _ = simulate(*TINY, *SGD, "algorithm=scaffold", rounds=1)
    _, nova, _ = simulate(*TINY, *SGD, "algorithm=fednova", rounds=1)
    for key in ("comm/up_bytes", "comm/down_bytes"):
        assert (
            plain[0][key] == nova[0][key] == vectors + buffers
            and scaffold[0][key] == 2 * vectors + buffers
        )

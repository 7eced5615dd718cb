"""What is known of a round before it starts: how many clients hold each level, means of numbers of
clients over the holders of each coordinate, and the share of the holders that takes part; each
against counting one by one.
"""

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from support import uploads_of
from torch import Tensor

from inco.clients.capacity import Capacity, FiveLevels, Fixed, Resampled, Table
from inco.flat import Layout, Slice
from inco.models.resnet import ResNetFamily
from inco.server.aggregate import Cohort, Holders
from inco.splits.depth import Depth
from inco.types import ClientTask, SubModel, Upload, Weighting

P, B = 30, 6
WEIGHTINGS: tuple[Weighting, ...] = ("examples", "uniform")


def no_model() -> torch.nn.Module:
    raise AssertionError("nothing here builds a model")


def sub_model(level: int, params: Tensor, buffers: Tensor) -> SubModel:
    slices = [
        Slice(Layout.of({"x": torch.zeros(len(index))}), index) for index in (params, buffers)
    ]
    return SubModel(level, f"size{level}", no_model, *slices)


# levels overlap in part, in no order; the last three coordinates are nobody's
SUBS = {
    0: sub_model(0, torch.arange(3, 11), torch.arange(2)),
    1: sub_model(
        1,
        torch.randperm(P - 3, generator=torch.Generator().manual_seed(0))[:14],
        torch.tensor([5, 1]),
    ),
    2: sub_model(2, torch.arange(6, P - 3), torch.arange(1, 5)),
}
POPULATION = {0: 40.0, 1: 25.0, 2: 12.5}


def cohort(levels: Sequence[int], examples: Sequence[int]) -> Cohort:
    tasks = [
        ClientTask(7 * k, 2, level, torch.arange(n))
        for k, (level, n) in enumerate(zip(levels, examples, strict=True))
    ]
    uploads = uploads_of(control="uniform")
    sizes = {"params": P, "buffers": B}
    return Cohort(tasks, range(len(tasks)), SUBS, uploads, sizes, Holders(POPULATION), 0.9)


def drawn(seed: int, levels: Sequence[int] = (0, 1, 2)) -> tuple[Cohort, list[float]]:
    """A cohort of up to twelve clients, and a number for each."""
    stream = np.random.default_rng(seed)
    count = int(stream.integers(1, 13))
    numbers = stream.normal(size=count) * 10.0 ** stream.integers(-3, 4, count)
    return cohort(
        stream.choice(levels, count).tolist(), stream.integers(1, 3000, count).tolist()
    ), numbers.tolist()


def holders(plan: Cohort, p: int) -> list[int]:
    return [k for k, task in enumerate(plan.tasks) if p in SUBS[task.level].params.index.tolist()]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", range(8))
def test_means_over_the_holders_one_by_one(weighting: Weighting, seed: int) -> None:
    plan, numbers = drawn(seed)
    found = plan.mean(numbers, weighting)
    assert found.dtype == torch.float32 and found.shape == (P,)
    for p, got in enumerate(found.tolist()):
        weights = {k: plan.examples[k] if weighting == "examples" else 1 for k in holders(plan, p)}
        if not weights:
            assert got == 0.0
            continue
        terms = [weight * Fraction(numbers[k]) for k, weight in weights.items()]
        # terms may cancel: float64 rounds them relative to this
        size = sum(abs(t) for t in terms) / sum(weights.values())
        mean = sum(terms) / sum(weights.values())
        assert (
            abs(Fraction(got) - mean) <= abs(mean) * Fraction(2) ** -24 + size * Fraction(2) ** -48
        )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("seed", range(8))
def test_the_mean_of_equal_numbers_is_that_number(weighting: Weighting, seed: int) -> None:
    """Bit for bit, so that an algorithm that divides by a mean of steps or norms is FedAvg where
    all clients are alike.
    """
    plan, numbers = drawn(seed)
    held = torch.tensor([bool(holders(plan, p)) for p in range(P)])
    for number in [
        1.0,
        3.0,
        0.1,
        1 / 3,
        199.0,
        2.0**24 - 1,
        1e-30,
        *numbers,
        *(float(np.float32(n)) for n in numbers),
    ]:
        expected = torch.where(held, torch.tensor(number, dtype=torch.float32), 0.0)
        assert torch.equal(plan.mean([number] * len(plan.tasks), weighting), expected)


def test_means_by_hand() -> None:
    """Weights 1 and 3, numbers 2 and 6: 5 by examples, 4 by clients where both hold; each its own
    number elsewhere.
    """
    plan = cohort([0, 2], [1, 3])
    both, small, large, nobody = (
        torch.arange(6, 11),
        torch.arange(3, 6),
        torch.arange(11, P - 3),
        torch.tensor([0, 1, 2, 27, 28, 29]),
    )
    for weighting, mean in (("examples", 5.0), ("uniform", 4.0)):
        found = plan.mean([2, 6], weighting)
        assert [found[part].unique().tolist() for part in (both, small, large, nobody)] == [
            [mean],
            [2.0],
            [6.0],
            [0.0],
        ]
    with pytest.raises(ValueError):
        plan.mean([1, 2, 3], "uniform")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("levels", [(0, 1, 2), (0, 2), (1,)])
def test_participation_one_by_one(seed: int, levels: tuple[int, ...]) -> None:
    """|S_p| / N_p: those who take part and hold it, of the population's that hold it; levels that
    nobody drew count in N_p.
    """
    plan, _ = drawn(seed, levels)
    expected = []
    for p in range(P):
        everybody = sum(
            count for level, count in POPULATION.items() if p in SUBS[level].params.index.tolist()
        )
        expected.append(len(holders(plan, p)) / everybody if everybody else 0.0)
    found = plan.participation()
    assert found.dtype == torch.float32 and torch.equal(
        found, torch.tensor(expected, dtype=torch.float32)
    )
    assert found.count_nonzero() > 0 and found[-3:].tolist() == [0.0] * 3, (
        "nobody's coordinates: zero, not NaN"
    )


@pytest.mark.parametrize("seed", range(3))
def test_coverage_one_by_one(seed: int) -> None:
    plan, _ = drawn(seed)
    for weighting in WEIGHTINGS:
        weights = [n if weighting == "examples" else 1 for n in plan.examples]
        for part, total in (("params", P), ("buffers", B)):
            held = [getattr(SUBS[task.level], part).index.tolist() for task in plan.tasks]
            expected = [
                sum(w for w, mine in zip(weights, held, strict=True) if p in mine)
                for p in range(total)
            ]
            assert plan.coverage(Upload(weighting, part)).tolist() == expected


def test_the_whole_population_takes_part() -> None:
    """Every client of a stage split: the share is one everywhere, exactly, and so is that of a
    fifth of each level a fifth.
    """
    family = ResNetFamily([2, 2], [4, 6], "small", shape=(1, 8, 8), num_classes=3)
    split, groups = (
        Depth([[1, 1], [1, 2], [2, 2]], family=family),
        FiveLevels(num_clients=45, num_levels=3, seed=0),
    )
    subs = {level: split.submodel(level, 1) for level in groups.levels}
    for clients, share in ((range(45), 1.0), (range(0, 45, 5), 0.2)):
        tasks = [ClientTask(c, 1, groups.level(c, 1), torch.arange(1)) for c in clients]
        sizes = {"params": split.params.numel, "buffers": split.buffers.numel}
        uploads = uploads_of(delta="uniform")
        holders = Holders(groups.sizes())
        plan = Cohort(tasks, [1] * len(tasks), subs, uploads, sizes, holders, 0.0)
        assert torch.equal(plan.participation(), torch.full((split.params.numel,), share))


def counted(capacity: Capacity, clients: int, round: int = 1) -> dict[int, int]:
    return dict(Counter(capacity.level(c, round) for c in range(clients)))


def test_sizes_of_groups() -> None:
    for levels in (1, 2, 3, 5, 7):
        for clients in [*range(levels, 40), 99, 100, 101, 1000]:
            groups = FiveLevels(num_clients=clients, num_levels=levels, seed=0)
            assert groups.sizes() == counted(groups, clients) and list(groups.sizes()) == list(
                groups.levels
            )
    assert FiveLevels(num_clients=10**9 + 3, num_levels=5, seed=0).sizes()[4] == 200_000_000, (
        "nothing is counted one by one"
    )


@pytest.mark.parametrize("which", ["small", "large"])
def test_sizes_where_all_are_alike(which: str) -> None:
    for levels, clients in ((1, 1), (5, 3), (5, 100)):
        capacity = Fixed(which, num_clients=clients, num_levels=levels, seed=0)
        assert capacity.sizes() == counted(capacity, clients) and set(capacity.sizes()) == set(
            capacity.levels
        )


def test_sizes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "levels.json"
    for seed in range(5):
        table = [0, 1, 2, *np.random.default_rng(seed).integers(0, 3, 20).tolist()]
        path.write_text(json.dumps(table))
        capacity = Table(str(path), num_clients=23, num_levels=3, seed=0)
        assert capacity.sizes() == counted(capacity, 23) and set(capacity.sizes()) == set(
            capacity.levels
        )


def test_sizes_in_expectation() -> None:
    """Shares of N; what a round draws differs from them by a few standard deviations at most."""
    for shares, expected in (
        ([0.1, 0.2, 0.7], {0: 200.0, 1: 400.0, 2: 1400.0}),
        ([0.5, 0, 0.5], {0: 1000.0, 2: 1000.0}),
    ):
        capacity = Resampled(shares, num_clients=2000, num_levels=3, seed=0)
        assert capacity.sizes() == pytest.approx(expected) and set(capacity.sizes()) == set(
            capacity.levels
        )
        seen = counted(capacity, 2000, round=3)
        assert all(
            abs(seen[level] - size) < 4.5 * (size * (1 - size / 2000)) ** 0.5
            for level, size in expected.items()
        )
    assert Resampled(num_clients=30, num_levels=5, seed=0).sizes() == pytest.approx(
        dict.fromkeys(range(5), 6.0)
    )
    assert sum(
        Resampled([0.3333333] * 3, num_clients=30, num_levels=3, seed=0).sizes().values()
    ) == pytest.approx(30)


def test_which_levels_move() -> None:
    """Said by `moving`, and true: the store keeps states in the server's coordinates only where it
    must.
    """
    kinds = {
        FiveLevels(num_clients=60, num_levels=3, seed=0): False,
        Fixed("large", num_clients=60, num_levels=3, seed=0): False,
        Resampled(num_clients=60, num_levels=3, seed=0): True,
    }
    for capacity, moving in kinds.items():
        tables = [[capacity.level(c, r) for c in range(60)] for r in range(1, 6)]
        assert capacity.moving == moving == any(t != tables[0] for t in tables)
    assert not Table.moving

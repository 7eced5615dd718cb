"""Exact averages: equal to rational arithmetic within the fixed-point step, the same bits for any
order and any number of workers, zero where nobody holds a coordinate, and an error that names the
place for an upload that cannot be summed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from support import uploads_of
from torch import Tensor

from inco.errors import NumericError
from inco.flat import Layout, Slice
from inco.server.aggregate import Cohort, Holders
from inco.server.optim import Average
from inco.server.sums import RoundSums
from inco.types import ClientResult, ClientTask, SubModel, Weighting

P, B = 40, 9
SIZES = {"params": P, "buffers": B}
UPLOADS: dict[str, Weighting] = {"delta": "examples", "control": "uniform"}
PARAM_STEPS = 2.0**40
BUFFER_STEPS = 2.0**32


def no_model() -> torch.nn.Module:
    raise AssertionError("aggregation builds no model")


def layout(size: int, *names: str) -> Layout:
    return Layout.of({name: torch.zeros(size // len(names)) for name in names})


def sub_model(level: int, index: Tensor, stats: Tensor) -> SubModel:
    params = Slice(layout(len(index), "conv", "fc"), index)
    return SubModel(level, f"size{level}", no_model, params, Slice(layout(len(stats), "bn"), stats))


def scattered(size: int, out_of: int, seed: int) -> Tensor:
    return torch.randperm(out_of, generator=torch.Generator().manual_seed(seed))[:size]


# level 0: a piece; level 1: scattered coordinates; level 2: all but the last four, which nobody
# holds
LEVELS = {
    0: sub_model(0, torch.arange(4, 14), torch.arange(3)),
    1: sub_model(1, scattered(18, P - 4, 1), scattered(4, B - 1, 2)),
    2: sub_model(2, torch.arange(P - 4), torch.arange(B - 1)),
}


def clients(count: int, seed: int = 0, levels: Sequence[int] = (0, 1, 2)) -> list[ClientResult]:
    stream = torch.Generator().manual_seed(seed)
    out = []
    for c in range(count):
        level = levels[c % len(levels)]
        sub = LEVELS[level]
        examples = int(torch.randint(1, 500, (), generator=stream))
        scale = 10.0 ** float(torch.randint(-4, 3, (), generator=stream))
        vectors = {
            name: torch.randn(len(sub.params.index), generator=stream) * scale for name in UPLOADS
        }
        vectors["buffers"] = torch.rand(len(sub.buffers.index), generator=stream) * 100
        out.append(
            ClientResult(
                ClientTask(3 * c, 5, level, torch.arange(examples)),
                vectors,
                float(scale) / 3,
                c + 1,
            )
        )
    return out


def cohort_of(
    results: Sequence[ClientResult],
    subs: Mapping[int, SubModel] = LEVELS,
    buffers: Weighting = "examples",
) -> Cohort:
    return Cohort(
        [r.task for r in results],
        [r.steps for r in results],
        subs,
        uploads_of(buffers, **UPLOADS),
        SIZES,
        Holders(dict.fromkeys(subs, 9)),
        0.0,
    )


def add(sums: RoundSums, cohort: Cohort, position: int, result: ClientResult) -> None:
    task = result.task
    sums.add(position, result, cohort.submodels[task.level], cohort.shares(task))


def summed(
    cohort: Cohort, results: Sequence[ClientResult], positions: Sequence[int] | None = None
) -> RoundSums:
    sums = RoundSums(cohort.uploads, SIZES, len(results))
    for position in range(len(results)) if positions is None else positions:
        add(sums, cohort, position, results[position])
    return sums


def exact_mean(
    pairs: Sequence[tuple[Slice, Tensor, int]], size: int
) -> tuple[list[Fraction], list[int], list[int]]:
    """The weighted mean of the holders of each coordinate in rational arithmetic; their number;
    their weight.
    """
    total, count, weight = [Fraction(0)] * size, [0] * size, [0] * size
    for held, values, share in pairs:
        for coordinate, value in zip(held.index.tolist(), values.tolist(), strict=True):
            total[coordinate] += share * Fraction(value)
            count[coordinate] += 1
            weight[coordinate] += share
    return [t / w if w else Fraction(0) for t, w in zip(total, weight, strict=True)], count, weight


def close(found: Tensor, pairs: Sequence[tuple[Slice, Tensor, int]], steps: float) -> None:
    """Half a step a holder (scaled from the cohort to the holders), and one rounding of the mean to
    float32.
    """
    whole = sum(share for _, _, share in pairs)
    for got, mean, count, weight in zip(
        found.tolist(), *exact_mean(pairs, len(found)), strict=True
    ):
        bound = (
            0.0
            if not count
            else (0.5 + 1e-6) * count / steps * whole / weight + abs(float(mean)) * 2.0**-23
        )
        assert abs(Fraction(got) - mean) <= bound
        assert count or got == 0.0


def nearest(sums: Tensor, pairs: Sequence[tuple[Slice, Tensor, int]], steps: float) -> None:
    """Each upload was rounded once, to the nearest step: half a step a holder, and the last bits of
    the float64 product.
    """
    whole = sum(share for _, _, share in pairs)
    for got, mean, count, weight in zip(sums.tolist(), *exact_mean(pairs, len(sums)), strict=True):
        assert abs(got - mean * weight / whole * int(steps)) <= 0.5 * count + 0.3


@pytest.mark.parametrize("count", [1, 2, 7, 25])
@pytest.mark.parametrize("buffers", ["examples", "uniform"])
def test_means_are_those_of_rational_arithmetic(count: int, buffers: Weighting) -> None:
    results = clients(count, seed=count)
    cohort = cohort_of(results, buffers=buffers)
    sums = summed(cohort, results)
    found, subs = cohort.average(sums), [LEVELS[r.task.level] for r in results]
    weights = {"examples": [len(r.task.examples) for r in results], "uniform": [1] * count}
    for name, weighting in UPLOADS.items():
        holders = [
            (s.params, r.vectors[name], n)
            for s, r, n in zip(subs, results, weights[weighting], strict=True)
        ]
        close(found.mean[name], holders, PARAM_STEPS)
        nearest(sums.vectors[name], holders, PARAM_STEPS)
        assert found.covered.tolist() == [c > 0 for c in exact_mean(holders, P)[1]]
    holders = [
        (s.buffers, r.vectors["buffers"], n)
        for s, r, n in zip(subs, results, weights[buffers], strict=True)
    ]
    close(found.mean["buffers"], holders, BUFFER_STEPS)
    assert found.buffers_covered.tolist() == [c > 0 for c in exact_mean(holders, B)[1]]


def test_what_nobody_holds_is_zero_and_stays() -> None:
    cohort = cohort_of(results := clients(6, levels=(0, 1)))
    found = cohort.average(summed(cohort, results))
    nobody = torch.ones(P, dtype=torch.bool)
    for level in (0, 1):
        nobody[LEVELS[level].params.index] = False
    assert 4 < nobody.sum() < P and torch.equal(found.covered, ~nobody)
    assert all(
        torch.equal(found.mean[name][nobody], torch.zeros(int(nobody.sum()))) for name in UPLOADS
    )
    w = torch.randn(P)
    moved = w.clone()
    Average().step(moved, found.mean["delta"], found.covered, {})
    assert (
        torch.equal(moved[nobody], w[nobody])
        and torch.equal(moved, w + found.mean["delta"])
        and not torch.equal(moved, w)
    )


@pytest.mark.parametrize(
    "index", [torch.arange(70_000) + 11, scattered(70_000, 90_000, 3)], ids=["run", "scattered"]
)
def test_long_slices_are_summed_whole(index: Tensor) -> None:
    """Longer than what is worked on at once, on the path of runs and on that of an index."""
    sub = SubModel(0, "long", no_model, Slice(layout(len(index), "w"), index), LEVELS[0].buffers)
    assert (sub.params.runs is None) == (index[0] != 11)
    sums = RoundSums(uploads_of(), {"params": 90_000, "buffers": 3}, 1)
    values = torch.randint(-1000, 1000, (len(index),)).float()
    sent = {"delta": values, "buffers": torch.zeros(3)}
    shares = {"delta": 0.25, "buffers": 1.0}
    sums.add(0, ClientResult(clients(1)[0].task, sent, 0.0, 1), sub, shares)
    expected = torch.zeros(90_000, dtype=torch.float64).index_copy_(0, index, values.double() / 4)
    assert torch.equal(sums.vectors["delta"].double() / PARAM_STEPS, expected)


def test_any_order_gives_the_same_bits() -> None:
    """Sums of the same uploads in float32 do depend on their order."""
    results = clients(13, levels=(2, 1, 2))
    cohort = cohort_of(results)
    first, floats = summed(cohort, results), set()
    for seed in range(20):
        order = torch.randperm(13, generator=torch.Generator().manual_seed(seed)).tolist()
        assert torch.equal(summed(cohort, results, order).total, first.total)
        floats.add(sum((results[i].vectors["delta"][0] for i in order), torch.zeros(())).item())
    assert len(floats) > 1


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_any_division_gives_the_same_bits(workers: int) -> None:
    """Partial sums of up to four workers, some of them idle, added in any order: totals, means and
    rows.
    """
    cohort = cohort_of(results := clients(11))
    alone = cohort.average(summed(cohort, results))
    for seed in range(8):
        stream = torch.Generator().manual_seed(seed)
        place = torch.randint(workers, (11,), generator=stream).tolist()
        parts = [
            summed(cohort, results, [i for i in range(11) if place[i] == k]) for k in range(workers)
        ]
        whole = parts[0]
        for part in reversed(parts[1:]):
            whole.total += part.total
        found = cohort.average(whole)
        assert all(torch.equal(found.mean[n], alone.mean[n]) for n in cohort.uploads)
        assert found.clients == alone.clients and torch.equal(found.covered, alone.covered)


def test_large_cohort() -> None:
    """Ten thousand clients: the error stays below half a step each, and far below (it grows like a
    random walk) in fact.
    """
    n = 10_000
    index = torch.arange(4)
    sub = SubModel(
        0,
        "tiny",
        no_model,
        Slice(layout(4, "w"), index),
        Slice(layout(0, "bn"), torch.empty(0, dtype=torch.int64)),
    )
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    tasks = [ClientTask(c, 1, 0, torch.empty(1 + c % 7)) for c in range(n)]
    sizes = {"params": 4, "buffers": 0}
    cohort = Cohort(tasks, [1] * n, {0: sub}, uploads_of(), sizes, Holders({0: n}), 0.0)
    sums = RoundSums(cohort.uploads, sizes, n)
    for c, task in enumerate(tasks):
        sent = {"delta": values[c], "buffers": torch.empty(0)}
        sums.add(c, ClientResult(task, sent, 0.0, 1), sub, cohort.shares(task))
    weights = torch.tensor([len(t.examples) for t in tasks], dtype=torch.float64)
    exact = [
        math.fsum((weights * values[:, k].double()).tolist()) / weights.sum().item()
        for k in range(4)
    ]
    raw = sums.vectors["delta"].double() / PARAM_STEPS
    assert (
        (raw - torch.tensor(exact, dtype=torch.float64)).abs().max()
        < 5 * n**0.5 / PARAM_STEPS
        < n / 2 / PARAM_STEPS
    )
    assert torch.allclose(
        cohort.average(sums).mean["delta"].double(),
        torch.tensor(exact, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-9,
    )


def test_published_vector_t3() -> None:
    """{a: (1,3), n: 5} and {a: (3,5), n: 8, b: 2} -> a = (2,4), b = 2, n = 6.5 -> 6 (reference,
    section 7).
    """
    server = Layout.of({"n": torch.tensor(0), "var": torch.zeros(1)})
    small = SubModel(
        0, "s", no_model, Slice(layout(2, "a"), torch.arange(2)), Slice(server, torch.arange(2))
    )
    large = SubModel(
        1,
        "l",
        no_model,
        Slice(Layout.of({"a": torch.zeros(2), "b": torch.zeros(1)}), torch.arange(3)),
        small.buffers,
    )
    tasks = [ClientTask(0, 1, 0, torch.arange(9)), ClientTask(1, 1, 1, torch.arange(4))]
    sizes = {"params": 4, "buffers": 2}
    uploads = uploads_of("uniform", delta="uniform")
    holders = Holders({0: 1, 1: 1})
    cohort = Cohort(tasks, [1, 1], {0: small, 1: large}, uploads, sizes, holders, 0.0)
    sums = RoundSums(uploads, sizes, 2)
    for k, (values, stats) in enumerate((([1.0, 3], [5.0, 1.5]), ([3.0, 5, 2], [8.0, 2.5]))):
        sent = {"delta": torch.tensor(values), "buffers": torch.tensor(stats)}
        result = ClientResult(tasks[k], sent, 0.0, 1)
        sums.add(k, result, cohort.submodels[k], cohort.shares(tasks[k]))
    found = cohort.average(sums)
    assert found.mean["delta"].tolist() == [2, 4, 2, 0] and found.covered.tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert found.mean["buffers"].tolist() == [6.5, 2.0]
    server.truncate_counters(found.mean["buffers"])
    assert found.mean["buffers"].tolist() == [6.0, 2.0]


def test_published_vector_t7() -> None:
    """Width slices of a 4x4 matrix: 4x4 of 1, 2x2 of 3, 1x1 of 8, with and without the largest."""
    grid = torch.arange(16).view(4, 4)
    subs = {
        level: SubModel(
            level,
            f"w{side}",
            no_model,
            Slice(layout(side * side, "W"), grid[:side, :side].flatten()),
            LEVELS[0].buffers,
        )
        for level, side in enumerate((1, 2, 4))
    }
    expected = {
        3: [[4, 2, 1, 1], [2, 2, 1, 1], [1] * 4, [1] * 4],
        2: [[5.5, 3, 0, 0], [3, 3, 0, 0], [0] * 4, [0] * 4],
    }
    for number, table in expected.items():
        tasks = [ClientTask(level, 1, level, torch.arange(2)) for level in range(number)]
        sizes = {"params": 16, "buffers": 3}
        uploads = uploads_of("uniform", delta="uniform")
        holders = Holders(dict.fromkeys(subs, 1))
        cohort = Cohort(tasks, [1] * number, subs, uploads, sizes, holders, 0.0)
        sums = RoundSums(uploads, sizes, number)
        for k, value in enumerate((8.0, 3.0, 1.0)[:number]):
            delta = torch.full((len(subs[k].params.index),), value)
            result = ClientResult(tasks[k], {"delta": delta, "buffers": torch.zeros(3)}, 0.0, 1)
            sums.add(k, result, subs[k], cohort.shares(tasks[k]))
        found = cohort.average(sums)
        assert torch.allclose(
            found.mean["delta"].view(4, 4), torch.tensor(table, dtype=torch.float32), rtol=1e-6
        )
        assert torch.equal(found.covered.view(4, 4), torch.tensor(table) > 0)


def test_equal_counters_stay_in_a_large_cohort() -> None:
    n, stats = 1000, Layout.of({"n": torch.tensor(0)})
    sub = SubModel(
        0, "tiny", no_model, Slice(layout(1, "w"), torch.arange(1)), Slice(stats, torch.arange(1))
    )
    tasks = [ClientTask(c, 1, 0, torch.arange(1)) for c in range(n)]
    sizes = {"params": 1, "buffers": 1}
    uploads = uploads_of("uniform", delta="uniform")
    cohort = Cohort(tasks, [1] * n, {0: sub}, uploads, sizes, Holders({0: n}), 0.0)
    sums = RoundSums(uploads, sizes, n)
    for c, task in enumerate(cohort.tasks):
        sent = {"delta": torch.zeros(1), "buffers": torch.ones(1)}
        sums.add(c, ClientResult(task, sent, 0.0, 1), sub, cohort.shares(task))
    found = cohort.average(sums).mean["buffers"]
    stats.truncate_counters(found)
    assert found.tolist() == [1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**22, -1e30])
@pytest.mark.parametrize("level", [0, 1])
def test_uploads_that_cannot_be_summed_are_named(bad: float, level: int) -> None:
    """Nothing of the bad vector enters the sums, and a reset makes them fit for the round anew."""
    results = clients(3, levels=(level,))
    cohort = cohort_of(results)
    expected = summed(cohort, results).total.clone()
    sums = summed(cohort, results, [0])
    before, name = sums.vectors["control"].clone(), "control"
    good = results[1].vectors[name].clone()
    results[1].vectors[name][-1] = bad
    text = (
        rf"round 5, client 3: its upload 'control' has 1 of {len(good) // 2} values of fc \(first:"
        r" .*nothing of this round has been applied"
    )
    with pytest.raises(NumericError, match=text):
        add(sums, cohort, 1, results[1])
    assert torch.equal(sums.vectors[name], before)
    results[1].vectors[name].copy_(good)
    sums.reset()
    for position in range(3):
        add(sums, cohort, position, results[position])
    assert torch.equal(sums.total, expected)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_is_added(loss: float) -> None:
    results = clients(3)
    cohort = cohort_of(results)
    sums = summed(cohort, results, [0])
    before = sums.total.clone()
    with pytest.raises(
        NumericError,
        match=rf"round 5, client 3: its mean training loss is {loss}; .*uplink.nonfinite=skip",
    ):
        add(sums, cohort, 1, replace(results[1], loss=loss))
    assert torch.equal(sums.total, before)


def test_skipped_clients_are_as_if_they_had_not_been_there() -> None:
    """Means, coverage, participation and rows are those of the others alone, but for a last bit;
    with none left nothing moves.
    """
    results = clients(9, seed=4)
    cohort = cohort_of(results)
    sums = summed(cohort, results, [0, 2, 3, 5, 6, 7, 8])
    for out in (1, 4):
        sums.skip(out)
    left = [r for k, r in enumerate(results) if k not in (1, 4)]
    found, expected = cohort.average(sums), (alone := cohort_of(left)).average(summed(alone, left))
    for name in cohort.uploads:
        assert torch.allclose(found.mean[name], expected.mean[name], rtol=1e-6, atol=1e-9)
    assert found.clients == expected.clients
    assert torch.equal(found.covered, expected.covered) and torch.equal(
        found.participation(), expected.participation()
    )
    none = RoundSums(cohort.uploads, SIZES, 9)
    for position in range(9):
        none.skip(position)
    nobody = cohort.average(none)
    assert not nobody.covered.any() and not nobody.mean["delta"].any() and nobody.clients == ()


def test_bad_buffers_are_named_and_large_good_ones_are_not() -> None:
    results = clients(2, levels=(2,))
    for result in results:
        result.vectors["buffers"][0] = 2.0**29
    cohort = cohort_of(results)
    found = cohort.average(summed(cohort, results)).mean["buffers"]
    assert found[0].item() == pytest.approx(2.0**29, rel=1e-7)
    results[1].vectors["buffers"][4] = 2.0**30
    with pytest.raises(
        NumericError,
        match=(
            r"round 5, client 3: its upload 'buffers' has 1 of 8 values of bn \(first: 1073741824"
        ),
    ):
        summed(cohort, results)


def test_largest_uploads_do_not_overflow() -> None:
    results = clients(9, levels=(2,))
    for v in (v for r in results for v in r.vectors.values()):
        v.fill_(2.0**22 - 1)
    cohort = cohort_of(results)
    held = cohort.average(summed(cohort, results)).mean["delta"][: P - 4]
    assert torch.allclose(held, torch.full_like(held, 2.0**22 - 1), rtol=1e-7)


def test_numbers_of_a_client_keep_every_bit() -> None:
    losses = [-0.0, 0.0, 1e300, -1e-310, 0.1, 1 / 3, 2.5]
    steps = [0, 1, 2**40, 3, 4, 5, 6]
    results = [
        replace(r, loss=loss, steps=n) for r, loss, n in zip(clients(7), losses, steps, strict=True)
    ]
    cohort = cohort_of(results)
    sums, other = summed(cohort, results, [4, 0, 2]), summed(cohort, results, [6, 1, 5, 3])
    sums.total += other.total
    rows = cohort.average(sums).clients
    assert [row.loss.hex() for row in rows] == [loss.hex() for loss in losses]
    assert [row.steps for row in rows] == steps
    assert [(row.client, row.level, row.examples) for row in rows] == [
        (r.task.client, r.task.level, len(r.task.examples)) for r in results
    ]

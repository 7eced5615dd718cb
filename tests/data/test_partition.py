"""Partition schemes: every example once, sizes, skew, the published rules, and errors that say what
to change.
"""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inco.data.partition import IID, Dirichlet, Labels, Partition, Quantity, Scheme, Shards
from inco.data.picture import draw_partition
from inco.errors import ConfigError
from inco.seeding import numpy_rng

BALANCED = np.repeat(np.arange(10), 600)
SKEWED = np.repeat(np.arange(10), [900, 100, 300, 50, 700, 400, 650, 250, 500, 150])


def rng(seed: int = 0) -> np.random.Generator:
    return numpy_rng(seed, "partition")


def deal(
    scheme: Scheme, labels: np.ndarray = BALANCED, clients: int = 20, seed: int = 0
) -> Partition:
    return scheme(labels, 10, clients, rng(seed))


def skew(partition: Partition, labels: np.ndarray) -> float:
    """Mean total-variation distance of the clients' label mixes to the global one."""
    counts = partition.class_counts(labels, 10)
    mix = counts / counts.sum(1, keepdims=True)
    return float(np.abs(mix - np.bincount(labels, minlength=10) / len(labels)).sum(1).mean() / 2)


COMPLETE = [IID(), Dirichlet(0.5), Dirichlet(0.5, min_size=1), Quantity(0.5), Labels(10)]


@pytest.mark.parametrize("scheme", COMPLETE, ids=lambda s: s.name)
@pytest.mark.parametrize(
    "labels",
    [BALANCED, SKEWED, np.random.default_rng(0).permutation(SKEWED)],
    ids=["even", "skewed", "mixed"],
)
def test_every_example_is_held_exactly_once(scheme: Scheme, labels: np.ndarray) -> None:
    partition = deal(scheme, labels)
    assert np.array_equal(np.sort(partition.order), np.arange(len(labels)))
    assert partition.order.dtype == partition.offsets.dtype == np.int64
    assert (
        partition.num_clients == 20
        and partition.sizes.sum() == len(labels)
        and partition.sizes.min() >= 1
    )


@pytest.mark.parametrize("scheme", [*COMPLETE, Shards(2), Labels(3)], ids=lambda s: s.name)
def test_same_seed_same_split_and_another_seed_another(scheme: Scheme) -> None:
    assert deal(scheme).digest == deal(scheme).digest
    assert deal(scheme).digest != deal(scheme, seed=1).digest


def test_examples_and_class_counts_agree_with_a_loop() -> None:
    partition = deal(Dirichlet(0.3), SKEWED, 7)
    counts = partition.class_counts(SKEWED, 10)
    for i in range(7):
        assert np.array_equal(counts[i], np.bincount(SKEWED[partition.examples(i)], minlength=10))
        assert len(partition.examples(i)) == partition.sizes[i]
    with pytest.raises(IndexError):
        partition.examples(7)


def test_iid_sizes_are_those_of_array_split() -> None:
    partition = deal(IID(), BALANCED, 37)
    assert partition.sizes.tolist() == [len(part) for part in np.array_split(np.arange(6000), 37)]
    assert skew(deal(IID()), BALANCED) < 0.07


def test_a_million_clients_is_quick() -> None:
    labels = np.zeros(1_200_000, np.int64)
    start = time.perf_counter()
    partition = IID()(labels, 10, 1_000_000, rng())
    assert time.perf_counter() - start < 3
    assert partition.sizes.min() == 1 and partition.sizes.max() == 2


def test_dirichlet_skew_falls_with_alpha_and_large_alpha_is_nearly_iid() -> None:
    skews = [
        np.mean([skew(deal(Dirichlet(alpha, min_size=1), seed=s), BALANCED) for s in range(5)])
        for alpha in (0.1, 0.5, 1, 100)
    ]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.6 and 0.35 < skews[1] < 0.6 and skews[3] < 0.06


def test_dirichlet_soft_cap_gives_no_further_class_to_a_full_client() -> None:
    full_clients = 0
    for seed in range(10):
        partition = deal(Dirichlet(0.2, min_size=1), seed=seed)
        counts = partition.class_counts(BALANCED, 10)
        # before each class
        held = np.concatenate([np.zeros((20, 1), np.int64), counts.cumsum(1)], axis=1)[:, :-1]
        full = held >= 6000 / 20
        # rounding down the cuts leaves at most one example, and it goes to the last client
        assert counts[:-1][full[:-1]].sum() == 0 and counts[-1][full[-1]].max(initial=0) <= 1
        full_clients += full[:, -1].sum()
        assert partition.sizes.max() > 300  # looked at before adding, so sizes may exceed it
    assert full_clients > 20


def test_dirichlet_equals_a_plain_transcription_of_the_rule_with_the_same_draws() -> None:
    """The published procedure, one class and one client at a time; only the sizes, since shuffles
    are drawn elsewhere.
    """
    draws, n = rng(3), 20
    while True:
        counts = np.zeros((n, 10), int)
        for k in range(10):
            q = draws.dirichlet([0.5] * n)
            q = np.array([p if counts[j].sum() < len(SKEWED) / n else 0.0 for j, p in enumerate(q)])
            q = q / q.sum()
            size = int((k == SKEWED).sum())
            cuts = [0, *[int(np.floor(c * size)) for c in np.cumsum(q)[:-1]], size]
            counts[:, k] = np.diff(cuts)
        if counts.sum(1).min() >= 10:
            break
    assert np.array_equal(deal(Dirichlet(0.5), SKEWED, n, seed=3).class_counts(SKEWED, 10), counts)


def test_dirichlet_honours_min_size_and_gives_up_with_the_fix() -> None:
    assert deal(Dirichlet(0.5, min_size=60)).sizes.min() >= 60
    for scheme, clients in (
        (Dirichlet(0.05, min_size=250, max_tries=20), 20),
        (Dirichlet(0.5, min_size=10), 601),
    ):
        with pytest.raises(ConfigError, match="partition=dirichlet") as error:
            deal(scheme, clients=clients)
        for word in (
            "alpha=",
            f"num_clients={clients}",
            "min_size=",
            "fewer clients",
            "smaller partition.min_size",
        ):
            assert word in str(error.value)


def test_dirichlet_with_a_tiny_alpha_ends() -> None:
    partition = deal(Dirichlet(0.001, min_size=1, max_tries=3000), clients=5)
    assert np.array_equal(np.sort(partition.order), np.arange(6000))


def test_shards_are_those_of_the_published_rule() -> None:
    labels = np.random.default_rng(1).permutation(SKEWED)  # 900 .. 50 of a class
    clients, shards = 50, 10
    partition = Shards(2)(labels, 10, clients, rng())
    counts = partition.class_counts(labels, 10)
    sizes = np.bincount(labels, minlength=10)
    assert set((counts > 0).sum(1).tolist()) == {1, 2}  # a label drawn twice collapses to one shard
    assert len(np.unique(partition.order)) == len(partition.order) < len(labels)
    for k in range(10):
        members = np.flatnonzero(labels == k)
        cuts = [len(part) for part in np.array_split(np.arange(sizes[k]), shards)]
        assert set(counts[:, k].tolist()) - {0} <= set(cuts)
        for i in np.flatnonzero(counts[:, k]):  # one shard: contiguous in dataset order
            place = np.searchsorted(
                members, np.sort(partition.examples(i)[labels[partition.examples(i)] == k])
            )
            assert np.array_equal(place, np.arange(place[0], place[0] + len(place)))


def test_shards_with_every_class_is_complete_when_no_label_repeats() -> None:
    partition = Shards(1)(BALANCED, 10, 10, rng())
    assert np.array_equal(np.sort(partition.order), np.arange(6000)) and set(partition.sizes) == {
        600
    }


def test_shards_are_popped_at_random() -> None:
    first_owner_holds_first_shard = 0
    for seed in range(20):
        partition = Shards(1)(BALANCED, 10, 40, rng(seed))
        owner = np.flatnonzero(partition.class_counts(BALANCED, 10)[:, 0])[0]
        first_owner_holds_first_shard += int(0 in partition.examples(owner))
    assert 1 <= first_owner_holds_first_shard <= 12  # one of four shards


def test_shards_that_do_not_divide_or_are_too_many_say_so() -> None:
    with pytest.raises(ConfigError, match="multiple of the 10 classes; use num_clients=10"):
        deal(Shards(2), clients=12)
    with pytest.raises(ConfigError, match="fewer clients"):
        deal(Shards(2), np.arange(100) % 10, clients=100)
    with pytest.raises(ConfigError, match="classes_per_client=11"):
        deal(Shards(11))


def test_quantity_varies_sizes_and_keeps_labels_mixed() -> None:
    partition = deal(Quantity(0.5))
    assert partition.sizes.min() >= 10 and partition.sizes.max() > 3 * partition.sizes.min()
    large = partition.sizes > 200
    counts = partition.class_counts(BALANCED, 10)[large]
    assert np.abs(counts / counts.sum(1, keepdims=True) - 0.1).max() < 0.1
    with pytest.raises(ConfigError, match=r"beta=0\.05.*larger partition\.beta"):
        deal(Quantity(0.05, min_size=200, max_tries=5))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_labels_gives_k_classes_and_shares_each_evenly(k: int) -> None:
    partition = deal(Labels(k), SKEWED, 20)
    counts = partition.class_counts(SKEWED, 10)
    assert ((counts > 0).sum(1) == k).all()
    assert all(counts[i, i % 10] > 0 for i in range(20))
    for c in range(10):
        owned = counts[counts[:, c] > 0, c]
        assert owned.sum() == (c == SKEWED).sum() and owned.max() - owned.min() <= 1
        # the longer parts go to the first owners
        assert np.array_equal(owned, np.sort(owned)[::-1])


def test_labels_draws_the_other_classes_uniformly() -> None:
    counts = (
        deal(Labels(2), np.repeat(np.arange(10), 2000), 5000).class_counts(
            np.repeat(np.arange(10), 2000), 10
        )
        > 0
    )
    second = counts.sum(0) - 500  # each class is first for 500 clients
    assert abs(second - 500).max() < 100  # five standard deviations


def test_labels_says_which_classes_nobody_drew(caplog: pytest.LogCaptureFixture) -> None:
    partition = deal(Labels(1), clients=4)
    assert set(BALANCED[partition.order]) == {0, 1, 2, 3} and "[4, 5, 6, 7, 8, 9]" in caplog.text
    with pytest.raises(ConfigError, match="classes_per_client=11"):
        deal(Labels(11))


@pytest.mark.parametrize(
    "scheme", [IID(), Dirichlet(), Quantity(), Labels(2), Shards(2)], ids=lambda s: s.name
)
def test_more_clients_than_examples_is_an_error(scheme: Scheme) -> None:
    with pytest.raises(ConfigError, match=r"num_clients=6001.*6000 examples"):
        deal(scheme, clients=6001)
    with pytest.raises(ConfigError, match="at least 1"):
        deal(scheme, clients=0)


def test_an_empty_client_is_an_error() -> None:
    labels = np.concatenate([np.zeros(90, int), np.arange(1, 10)])
    with pytest.raises(ConfigError, match="would be empty"):
        deal(Labels(1), labels, 60)


def test_parameters_that_make_no_sense_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Dirichlet(alpha=0, min_size=0, max_tries=0)
    assert len(error.value.problems) == 3
    for wrong in (lambda: Quantity(beta=float("nan")), lambda: Shards(0), lambda: Labels(0)):
        with pytest.raises(ConfigError):
            wrong()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    clients=st.integers(1, 30),
    which=st.sampled_from(
        [
            IID(),
            Dirichlet(0.5, min_size=1),
            Labels(1),
            Labels(2),
            Quantity(1.0, min_size=1),
            Shards(1),
        ]
    ),
    seed=st.integers(0, 99),
)
def test_any_split_is_disjoint_and_leaves_nobody_out(
    sizes: list[int], clients: int, which: Scheme, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    try:
        partition = which(labels, len(sizes), clients, rng(seed))
    except ConfigError:
        return
    assert partition.num_clients == clients and partition.sizes.min() >= 1
    assert len(np.unique(partition.order)) == len(partition.order)
    assert partition.order.min() >= 0 and partition.order.max() < len(labels)


@pytest.mark.parametrize("clients", [1, 10, 300])
def test_the_picture_is_a_png_of_bounded_size(tmp_path, clients: int) -> None:
    from PIL import Image

    partition = deal(Dirichlet(0.5, min_size=1), clients=clients)
    path = tmp_path / "partition.png"
    draw_partition(partition.class_counts(BALANCED, 10), [f"c{k}" for k in range(10)], path)
    with Image.open(path) as picture:
        assert (
            picture.format == "PNG" and 500 < picture.width < 2000 and 300 < picture.height < 1500
        )
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (
        np.abs(colours.astype(int) - [51, 142, 193]).max(1) < 40
    ).sum() > 100  # there are blue bubbles

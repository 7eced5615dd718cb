"""Who holds which coordinates and which clients hold what: nested and isolated sub-models, levels
of clients, cohorts.

Contents are checked against tensor names and the published holder table; random assignments against
their stated distribution and against being pure functions of (seed, round, client).
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support import uploads_of

from inco.clients.capacity import Capacity, FiveLevels, Fixed, Resampled, Table
from inco.clients.population import Population
from inco.data.dealing import Partition, even_offsets
from inco.errors import ConfigError
from inco.flat import layouts_of
from inco.models.base import fresh
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.seeding import seed_for
from inco.server.aggregate import Cohort, Holders
from inco.splits.base import Split, Whole
from inco.splits.depth import Depth
from inco.splits.isolated import Isolated
from inco.types import ClientTask

STAGES = [[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2], [2, 2, 3, 3], [3, 3, 3, 3]]
RESNET = ResNetFamily([3, 3, 3, 3], [2, 3, 4, 5], "small", shape=(3, 8, 8), num_classes=4)
VIT = ViTFamily(12, 8, 2, 4, 8, 2.0, shape=(3, 8, 8), num_classes=4)
SPLITS: dict[str, Split] = {
    "stage": Depth(STAGES, family=RESNET),
    "layer": Depth([8, 9, 10, 11, 12], family=VIT),
    "none": Whole(family=RESNET),
    "isolated": Isolated(family=RESNET),
    "isolated, layer": Isolated([1, 3], family=VIT),
}


def held(split: Split, level: int, part: str = "params") -> set[int]:
    return set(getattr(split.submodel(level, 1), part).index.tolist())


@pytest.mark.parametrize("name", SPLITS)
def test_sub_models_are_what_they_say(name: str) -> None:
    """Unique coordinates, tensor for tensor the global one of the same name, and the layout of the
    model that is built.
    """
    split = SPLITS[name]
    w, b = (
        torch.arange(split.params.numel, dtype=torch.float32),
        torch.arange(split.buffers.numel, dtype=torch.float32),
    )
    assert w.numel() < 2**24, "coordinates are exact in float32"
    for level in range(len(split.names)):
        sub = split.submodel(level, round=3)
        assert (sub.level, sub.name) == (level, split.names[level])
        built = layouts_of(sub.build())
        prefix = f"{level}-{sub.name}/" if name.startswith("isolated") else ""
        for vector, server, part, real in zip(
            (w, b), (split.params, split.buffers), (sub.params, sub.buffers), built, strict=True
        ):
            assert part.layout.numel == len(part.index) == len(part.index.unique()) == real.numel
            assert [(e.name, e.shape, e.offset) for e in part.layout.entries.values()] == [
                (e.name, e.shape, e.offset) for e in real.entries.values()
            ]
            mine = part.gather(vector, torch.empty(real.numel))
            for tensor in real.entries:
                assert torch.equal(real.view(mine, tensor), server.view(vector, prefix + tensor)), (
                    tensor
                )


@pytest.mark.parametrize("name", ["stage", "layer"])
def test_each_level_is_part_of_the_next_and_the_last_is_all(name: str) -> None:
    split = SPLITS[name]
    for part, total in (("params", split.params.numel), ("buffers", split.buffers.numel)):
        levels = [held(split, level, part) for level in range(5)]
        assert all(small <= large for small, large in pairwise(levels)) and levels[-1] == set(
            range(total)
        )
        assert total == 0 or len(levels[0]) < total


def test_published_holders() -> None:
    """Chan et al., Appendix H.4, of 100 clients; every tensor of a block has the holders of its
    block, stem and head have all.
    """
    blocks = {
        "layer3.1": 80,
        "layer4.1": 80,
        "layer1.1": 60,
        "layer2.1": 60,
        "layer3.2": 40,
        "layer4.2": 40,
        "layer1.2": 20,
        "layer2.2": 20,
    }
    tables = {
        "stage": blocks,
        "layer": {"blocks.8": 80, "blocks.9": 60, "blocks.10": 40, "blocks.11": 20},
    }
    groups = FiveLevels(num_clients=100, num_levels=5, seed=0)
    tasks = [ClientTask(c, 1, groups.level(c, 1), torch.arange(1)) for c in range(100)]
    for name, table in tables.items():
        split = SPLITS[name]
        subs = {level: split.submodel(level, 1) for level in range(5)}
        sizes = {"params": split.params.numel, "buffers": split.buffers.numel}
        uploads = uploads_of("uniform", delta="uniform")
        cohort = Cohort(tasks, [1] * 100, subs, uploads, sizes, Holders(groups.sizes()), 0.0)
        for name, layout in (("delta", split.params), ("buffers", split.buffers)):
            count = cohort.coverage(uploads[name])
            for tensor in layout.entries:
                expected = table.get(".".join(tensor.split(".")[:2]), 100)
                assert layout.view(count, tensor).unique().tolist() == [expected], tensor


def test_whole_holds_all_and_starts_as_the_model() -> None:
    split = SPLITS["none"]
    assert split.names == ("resnet26",) and held(split, 0) == set(range(split.params.numel))
    net = fresh(RESNET, 7)
    w, b = split.initial(7)
    assert all(torch.equal(split.params.view(w, n), p) for n, p in net.named_parameters())
    assert all(torch.equal(split.buffers.view(b, n), t) for n, t in net.named_buffers())
    again, other = split.initial(7)[0], split.initial(8)[0]
    assert torch.equal(w, again) and not torch.equal(w, other)
    assert torch.equal(SPLITS["stage"].initial(7)[0], w), (
        "the global model starts alike under every split of it"
    )


@pytest.mark.parametrize("name", ["isolated", "isolated, layer"])
def test_isolated_levels_share_nothing(name: str) -> None:
    split = SPLITS[name]
    levels = range(len(split.names))
    for part, total in (("params", split.params.numel), ("buffers", split.buffers.numel)):
        everything = [c for level in levels for c in held(split, level, part)]
        assert sorted(everything) == list(range(total)), "disjoint, and together all"
    for style in ("official", "paper"):
        pairs = split.pairs(style)
        places = {(p.target.split("/")[0], p.reference.split("/")[0]) for p in pairs}
        assert all(a == b for a, b in places) and len(pairs) == len(set(pairs))
        for level in levels:
            prefix, sub = f"{level}-{split.names[level]}/", split.submodel(level, 1)
            own = {p.target.removeprefix(prefix) for p in pairs if p.target.startswith(prefix)}
            family = VIT if "layer" in name else RESNET
            wanted = {p.target for p in family.pairs(style)} & set(sub.params.layout.entries)
            assert own == wanted, "the pairs of a model of its own size"


@pytest.mark.parametrize("name", ["isolated", "isolated, layer"])
def test_isolated_starts(name: str) -> None:
    """Each size starts from weights of its own: those of a global model drawn for its level,
    cut.
    """
    split = SPLITS[name]
    family = VIT if "layer" in name else RESNET
    w, b = split.initial(3)
    for level, short in enumerate(split.names):
        donor = fresh(family, seed_for(3, "init", level)).state_dict()
        for layout, vector in ((split.params, w), (split.buffers, b)):
            own = [n for n in layout.entries if n.startswith(f"{level}-{short}/")]
            assert all(
                torch.equal(layout.view(vector, n), donor[n.split("/")[1]].float()) for n in own
            )
    head = "head.weight" if family is VIT else "fc.weight"
    first, last = (
        split.params.view(w, f"{level}-{split.names[level]}/{head}")
        for level in (0, len(split.names) - 1)
    )
    assert not torch.equal(first, last)


def test_names_tell_levels_apart() -> None:
    assert SPLITS["stage"].names == ("resnet10", "resnet14", "resnet18", "resnet22", "resnet26")
    assert SPLITS["layer"].names == ("vit8", "vit9", "vit10", "vit11", "vit12")
    clash = Depth([[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 1, 1], [3, 3, 3, 3]], family=RESNET)
    assert clash.names == ("resnet10", "resnet14(1-1-2-2)", "resnet14(2-2-1-1)", "resnet26")


@pytest.mark.parametrize(
    "make", [lambda: Depth([1, 1, 2], family=VIT), lambda: Isolated([1, 1, 2], family=VIT)]
)
def test_equal_levels_are_refused_or_told_apart(make: type) -> None:
    try:
        names = make().names
    except ConfigError:
        return
    assert len(set(names)) == 3


def test_tables_that_do_not_fit_are_explained() -> None:
    for levels, family, message in (
        ([], VIT, r"split\.levels=\[\]: must be a list with one entry a level"),
        ([2, 1], VIT, r"split\.levels=\[\[2\], \[1\]\]: list the levels smallest first"),
        ([[1, 1]], VIT, r"entry \[1, 1\] for model=vit12: .*1 groups \(blocks\); use split=layer"),
        (
            [3],
            RESNET,
            (
                r"entry \[3\] for model=resnet26: .*4 groups \(layer1, layer2, layer3, layer4\);"
                r" use split=stage"
            ),
        ),
        (
            [[1, 1, 1, 4]],
            RESNET,
            r"entry \[1, 1, 1, 4\] for model=resnet26: each group keeps 1 to \[3, 3, 3, 3\] blocks",
        ),
        ([0], VIT, r"split\.levels=\[0\]: must be a list with one entry a level"),
        ([13], VIT, r"each group keeps 1 to \[12\] blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            Depth(levels, family=family)
    with pytest.raises(
        ConfigError,
        match=r"split\.levels=null: the paper gives sizes for 12 blocks, model\.depth=2; list them",
    ):
        Isolated(family=ViTFamily(2, 8, 2, 4, 8, shape=(3, 8, 8), num_classes=4))


def levels_of(capacity: Capacity, clients: int, round: int = 1) -> list[int]:
    return [capacity.level(c, round) for c in range(clients)]


def test_five_levels_are_contiguous_and_even() -> None:
    paper = FiveLevels(num_clients=100, num_levels=5, seed=0)
    assert (
        levels_of(paper, 100)
        == [level for level in range(5) for _ in range(20)]
        == levels_of(paper, 100, round=9)
    )
    assert levels_of(FiveLevels(num_clients=7, num_levels=5, seed=0), 7) == [0, 0, 1, 2, 2, 3, 4]
    for clients in range(5, 40):
        sizes = Counter(levels_of(FiveLevels(num_clients=clients, num_levels=5, seed=0), clients))
        assert sorted(sizes) == [0, 1, 2, 3, 4] and max(sizes.values()) - min(sizes.values()) <= 1
    with pytest.raises(ConfigError, match=r"num_clients=4 .*5 sizes.*num_clients=5 or more"):
        FiveLevels(num_clients=4, num_levels=5, seed=0)


def test_a_million_clients_cost_nothing() -> None:
    groups = FiveLevels(num_clients=10**6, num_levels=5, seed=0)
    edges = {199_999: 0, 200_000: 1, 399_999: 1, 400_000: 2, 799_999: 3, 800_000: 4, 999_999: 4}
    assert {c: groups.level(c, 1) for c in edges} == edges
    tables = [
        groups,
        Resampled(num_clients=10**6, num_levels=5, seed=0),
        Fixed("small", num_clients=10**6, num_levels=5, seed=0),
    ]
    assert all(len(str(vars(t))) < 200 for t in tables), "no table of clients"


def test_resampled_follows_its_shares() -> None:
    """Chi-squared with 3 degrees of freedom stays below 16.3 (p = 0.001) for each of three
    seeds.
    """
    shares = [0.1, 0.2, 0.3, 0.4]
    for seed in range(3):
        capacity = Resampled(shares, num_clients=2000, num_levels=4, seed=seed)
        seen = np.bincount(levels_of(capacity, 2000), minlength=4)
        expected = 2000 * np.array(shares)
        assert ((seen - expected) ** 2 / expected).sum() < 16.3
    assert Resampled([0.5, 0, 0.5], num_clients=9, num_levels=3, seed=0).levels == (0, 2)
    assert 1 not in levels_of(Resampled([0.5, 0, 0.5], num_clients=9, num_levels=3, seed=0), 200)


def test_resampled_is_a_pure_function() -> None:
    capacity = Resampled(num_clients=300, num_levels=5, seed=4)
    first = {(c, r): capacity.level(c, r) for r in (1, 2) for c in range(300)}
    again = Resampled(num_clients=300, num_levels=5, seed=4)
    assert all(again.level(c, r) == level for (c, r), level in reversed(first.items())), (
        "whatever the order of the calls"
    )
    later, elsewhere = (
        levels_of(capacity, 300, round=2),
        levels_of(Resampled(num_clients=300, num_levels=5, seed=5), 300),
    )
    for other in (dict(enumerate(later)), dict(enumerate(elsewhere))):
        assert 0.6 < np.mean([first[c, 1] != level for c, level in other.items()]) < 0.97, (
            "rounds and seeds are independent (4/5 differ)"
        )


def test_shares_that_cannot_be() -> None:
    for wrong in ([0.5, 0.5], [0.5, 0.2, 0.2]):
        with pytest.raises(
            ConfigError,
            match=r"capacity\.shares=\[.*give 3 probabilities, one a level, that sum to 1",
        ):
            Resampled(wrong, num_clients=9, num_levels=3, seed=0)
    with pytest.raises(
        ConfigError, match=r"^capacity\.shares=\[.*: must be null, or a list, each at least 0$"
    ):
        Resampled([0.5, 0.6, -0.1], num_clients=9, num_levels=3, seed=0)


def test_rounded_shares_work() -> None:
    assert Resampled([0.3333333] * 3, num_clients=9, num_levels=3, seed=0).level(0, 1) in (0, 1, 2)


def test_all_alike() -> None:
    for which, level in (("small", 0), ("large", 4)):
        capacity = Fixed(which, num_clients=100, num_levels=5, seed=0)
        assert capacity.levels == (level,) and set(levels_of(capacity, 100)) == {level}


def test_levels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "levels.json"
    path.write_text("[2, 0, 1, 1]")
    assert levels_of(Table(str(path), num_clients=4, num_levels=3, seed=0), 4) == [2, 0, 1, 1]
    for content, message in (
        ("[0, 1, 2]", r"it holds 3 entries; give a JSON list of num_clients=4 levels"),
        ('{"0": 1}', r"it holds no list; give a JSON list of num_clients=4"),
        ("[0, 1, 3, 2]", r"client 2 has level 3; levels are 0 to 2"),
        ("[0, 1, true, 2]", r"client 2 has level True; levels are 0 to 2"),
        ("[0, -1, 1, 2]", r"client 1 has level -1"),
        ("[0, 0, 0, 2]", r"no client has level 1; each of the split's 3 sizes needs a client"),
        ("[0, 1", r"cannot read it .*give a JSON list"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"capacity\.path=.*" + message):
            Table(str(path), num_clients=4, num_levels=3, seed=0)
    with pytest.raises(ConfigError, match=r"capacity\.path=/nowhere: no such file"):
        Table("/nowhere", num_clients=4, num_levels=3, seed=0)


def population(clients: int, ratio: float, seed: int = 0) -> Population:
    examples = 2 * clients + 1
    partition = Partition(
        np.random.default_rng(0).permutation(examples), even_offsets(examples, clients)
    )
    return Population(
        clients,
        ratio,
        partition,
        FiveLevels(num_clients=clients, num_levels=5, seed=seed),
        SPLITS["layer"],
        seed,
    )


@pytest.mark.parametrize(
    ("clients", "ratio", "size"),
    [(100, 0.1, 10), (100, 0.29, 29), (100, 0.57, 57), (7, 0.5, 3), (50, 0.001, 1), (20, 1.0, 20)],
)
def test_cohort_sizes(clients: int, ratio: float, size: int) -> None:
    """floor(N * ratio) of the numbers as written, not of their binary neighbours; at least one.

    Where all hold: |S| / N.
    """
    people = population(clients, ratio)
    cohort = people.cohort(1)
    assert people.cohort_size == len(cohort) == len(set(cohort)) == size
    subs = people.submodels(1)
    sizes = {"params": people.split.params.numel, "buffers": people.split.buffers.numel}
    plan = Cohort(people.tasks(1), [1] * size, subs, {}, sizes, people.holders(), 0.0)
    assert plan.participation()[subs[0].params.index].unique().tolist() == [
        torch.tensor(size / clients).item()
    ]
    assert cohort == sorted(cohort) and set(cohort) <= set(range(clients))


def test_cohorts_are_named_draws() -> None:
    people = population(100, 0.1)
    cohorts = [people.cohort(r) for r in range(1, 6)]
    again = population(100, 0.1)
    assert [again.cohort(r) for r in (5, 3, 1)] == [cohorts[4], cohorts[2], cohorts[0]]
    assert (
        len({tuple(c) for c in cohorts}) == 5
        and population(100, 0.1, seed=1).cohort(1) != cohorts[0]
    )
    seen = np.bincount([c for r in range(600) for c in people.cohort(r)], minlength=100)
    assert ((seen - 60) ** 2 / (60 * 0.9)).sum() < 149, (
        "every client as often as any other (chi-squared, p = 0.001)"
    )


def test_tasks_say_what_each_client_has() -> None:
    people = population(100, 0.1)
    for task in people.tasks(4):
        assert (task.round, task.level) == (4, task.client // 20)
        assert (
            task.examples.tolist() == people.partition.examples(task.client).tolist()
            and task.examples.dtype == torch.int64
        )
    assert [t.client for t in people.tasks(4)] == people.cohort(4)
    assert list(people.submodels(4)) == [0, 1, 2, 3, 4] and list(people.submodels(4, [1])) == [1]
    assert json.dumps(people.cohort(1)), "plain integers, that a record can hold"

"""InclusiveFL: what each level shares and what is its own; the momentum of a round and where it
goes, against numbers worked out from what each client sent; what happens where a level is not
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from support import TINY, TINY_VIT, simulate
from torch import Tensor

from inco.callbacks import EachRound
from inco.errors import ConfigError
from inco.flat import Layout, layouts_of
from inco.models.base import fresh
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.splits.inclusive import Inclusive, Momentum, averaged_in, blocks_of, distilled

STAGES = [[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2], [2, 2, 3, 3], [3, 3, 3, 3]]
NAMES = ("resnet10", "resnet14", "resnet18", "resnet22", "resnet26")
RESNET = ResNetFamily([3, 3, 3, 3], [2, 3, 4, 5], "small", shape=(3, 8, 8), num_classes=4)
VIT = ViTFamily(12, 8, 2, 4, 8, 2.0, shape=(3, 8, 8), num_classes=4)
MODEL = (
    *TINY,
    "split=inclusive",
    "model.blocks=[3,3,3,3]",
    "transform=none",
    "eval_every=9",
    "dataset.num_test=9",
)
# a level or two are missing in either round
SOME = (
    "num_clients=10",
    "sample_ratio=0.5",
    "seed=3",
)

# Of each block: which levels (0 to 4) share one copy, and which have one of their own, as STAGES
# says.
BLOCKS = {
    "layer1.0": ({2, 3, 4}, {0, 1}),
    "layer1.1": ({4}, {2, 3}),
    "layer1.2": (set(), {4}),
    "layer2.0": ({2, 3, 4}, {0, 1}),
    "layer2.1": ({4}, {2, 3}),
    "layer2.2": (set(), {4}),
    "layer3.0": ({1, 2, 3, 4}, {0}),
    "layer3.1": ({3, 4}, {1, 2}),
    "layer3.2": (set(), {3, 4}),
    "layer4.0": ({1, 2, 3, 4}, {0}),
    "layer4.1": ({3, 4}, {1, 2}),
    "layer4.2": (set(), {3, 4}),
    "conv1": ({0, 1, 2, 3, 4}, set()),
    "bn1": ({0, 1, 2, 3, 4}, set()),
    "fc": (set(), {0, 1, 2, 3, 4}),
}


def part_of(name: str) -> str:
    """The block of a tensor, or the module before or after all blocks."""
    bare = name.rpartition("/")[2]
    return (
        ".".join(bare.split(".")[:2])
        if bare.startswith(("layer", "blocks"))
        else bare.split(".")[0]
    )


def holders(split: Inclusive, part: str = "params") -> dict[str, set[int]]:
    """Levels that hold each of the server's tensors, which they hold whole or not at all."""
    layout: Layout = getattr(split, part)
    out: dict[str, set[int]] = {name: set() for name in layout.entries}
    for level in range(len(split.names)):
        held = torch.zeros(layout.numel)
        held[getattr(split.submodel(level, 1), part).index] = 1
        for name in layout.entries:
            share = layout.view(held, name).mean().item()
            assert share in (0, 1)
            if share:
                out[name].add(level)
    return out


def test_which_tensors_are_shared() -> None:
    """A level's last block of each stage and its classifier are its own, statistics included; the
    rest is shared.
    """
    split = Inclusive(family=RESNET)
    assert split.names == NAMES and split.pairs("official")
    for part in ("params", "buffers"):
        seen: dict[str, list[set[int]]] = {}
        for name, who in holders(split, part).items():
            shared, own = BLOCKS[part_of(name)]
            if "/" in name:
                (level,) = who
                assert level in own and name.startswith(f"{level}-{NAMES[level]}/")
            else:
                assert who == shared
            seen.setdefault(name.rpartition("/")[2], []).append(who)
        for bare, groups in seen.items():
            shared, own = BLOCKS[part_of(bare)]
            assert sorted(map(sorted, groups)) == sorted(
                [[level] for level in own] + ([sorted(shared)] if shared else [])
            ), bare


def test_which_blocks_of_a_vit_are_shared() -> None:
    split = Inclusive(family=VIT)
    for name, who in holders(split).items():
        part = part_of(name)
        if part in ("norm", "head"):
            assert len(who) == 1 and "/" in name
        elif part.startswith("blocks."):
            number = int(part.split(".")[1])
            first = max(number - 7, 0)  # the smallest level that has it before its last block
            assert who == ({number - 7} if "/" in name else set(range(first + (number >= 7), 5)))
        else:
            assert who == {0, 1, 2, 3, 4} and "/" not in name


@pytest.mark.parametrize("family", [RESNET, VIT], ids=["resnet", "vit"])
def test_sub_models_are_what_they_say(family: ResNetFamily | ViTFamily) -> None:
    """The layout of the model that is built; every coordinate somebody's; all start as the global
    model's namesakes.
    """
    split = Inclusive(family=family)
    w, b = split.initial(7)
    donor = fresh(family, 7).state_dict()
    held = {"params": set(), "buffers": set()}
    for level in range(5):
        sub = split.submodel(level, 3)
        for part, vector, real in zip(
            ("params", "buffers"), (w, b), layouts_of(sub.build()), strict=True
        ):
            mine = getattr(sub, part)
            assert [(e.name, e.shape, e.offset) for e in mine.layout.entries.values()] == [
                (e.name, e.shape, e.offset) for e in real.entries.values()
            ]
            own = mine.gather(vector, torch.empty(real.numel))
            assert all(torch.equal(real.view(own, n), donor[n].float()) for n in real.entries)
            held[part] |= set(mine.index.tolist())
    assert held["params"] == set(range(split.params.numel)) and held["buffers"] == set(
        range(split.buffers.numel)
    )
    assert split.submodel(0, 1) is split.submodel(0, 9)


def test_pairs_stay_within_a_level() -> None:
    """Each level's own tensors are mixed with what that level holds; a shared tensor is mixed
    once.
    """
    split = Inclusive(family=RESNET)
    held = [split.submodel(level, 1).params.layout.entries for level in range(5)]
    who_holds = holders(split)
    for style in ("official", "paper"):
        pairs = split.pairs(style)
        assert len({p.target for p in pairs}) == len(pairs)
        for p in pairs:
            who = who_holds[p.target]
            assert who <= who_holds[p.reference] or max(who) in who_holds[p.reference]
            assert (
                split.params.entries[p.target].shape == split.params.entries[p.reference].shape
                and p.target != p.reference
            )
        wanted = {
            (p.target, level)
            for p in RESNET.pairs(style)
            for level in range(5)
            if p.target in held[level]
        }
        found = {
            (p.target.rpartition("/")[2], level) for p in pairs for level in who_holds[p.target]
        }
        assert found == wanted


# --- the rule


def test_momentum_distillation() -> None:
    """Vector T11."""
    larger = torch.tensor([[3.0, 0.0], [5.0, 2.0]])
    torch.testing.assert_close(
        distilled(torch.tensor([1.0, 2.0]), larger.mean(0), 0.2), torch.tensor([1.6, 1.8])
    )


def test_what_a_level_is_told() -> None:
    """Which tensors of the next larger level enter m, and with which weight: this block's and those
    beyond it, where shapes are equal.
    """
    split = Inclusive(family=RESNET)
    taught: dict[str, list[str]] = {}
    by_place = {e.offset: name for name, e in split.params.entries.items()}
    for level in range(5):
        sub = split.submodel(level, 1)
        names = {e.offset: name for name, e in sub.params.layout.entries.items()}
        held = sub.holds["m"].index.tolist()
        for each in split.momenta:
            if each.start in held:
                target = by_place[each.place]
                assert target.startswith(f"{level - 1}-")
                assert each.numel == split.params.entries[target].numel
                taught[target] = [names[start] for start in each.blocks]
    assert not len(split.submodel(0, 1).holds["m"].index), "nobody learns from the smallest"
    assert len(taught) == len(split.momenta)
    assert split.init_server()["m"].shape == (sum(each.numel for each in split.momenta),)
    assert taught.keys() == {
        n for n in split.params.entries if "/" in n and "fc." not in n and not n.startswith("4-")
    }
    for target, sources in taught.items():
        level, bare = int(target[0]), target.rpartition("/")[2]
        stage, _, role = bare.split(".", 2)
        first, last = (
            STAGES[level][int(stage[-1]) - 1] - 1,
            STAGES[level + 1][int(stage[-1]) - 1] - 1,
        )
        expected = [f"{stage}.{b}.{role}" for b in range(first, last + 1)]
        if role == "conv1.weight" and first == 0 and stage != "layer1":
            # a stage's first convolution takes the channels of the stage before it
            expected = expected[:1]
        if role.startswith("downsample"):
            expected = expected[:1]
        assert sources == expected


def test_what_is_kept_of_a_delta() -> None:
    """The mean over the blocks of each momentum, which may overlap."""
    delta = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    momenta = [Momentum(place=0, start=0, numel=2, blocks=(0, 3)), Momentum(9, 2, 1, (1,))]
    kept, where = blocks_of(momenta, {"delta": delta})["m"], averaged_in(momenta)
    assert kept.tolist() == [1.0, 2.0, 8.0, 16.0, 2.0]
    total = torch.zeros(3, dtype=torch.float64)
    total.index_add_(0, where.index, kept * where.weight)
    assert total.tolist() == [4.5, 9.0, 2.0]
    count = torch.zeros(3, dtype=torch.float64)
    where.add(count, 7.0)
    assert count.tolist() == [7.0, 7.0, 7.0]
    assert blocks_of([], {"delta": delta})["m"].shape == averaged_in([]).index.shape == (0,)


# --- real rounds


def sent(run: Any, number: int, w: Tensor, b: Tensor) -> dict[int, dict[str, Tensor]]:
    """The mean update of each level in a round, by tensor name: every client trained again,
    weighted by its examples.
    """
    people, trainer = run.simulator.population, run.trainer
    sums: dict[int, Tensor] = {}
    weights: dict[int, int] = {}
    for task in people.tasks(number):
        sub = run.split.submodel(task.level, number)
        delta = trainer(task, sub, w, b, {}).vectors["delta"].double() * len(task.examples)
        sums[task.level] = sums[task.level] + delta if task.level in sums else delta
        weights[task.level] = weights.get(task.level, 0) + len(task.examples)
    return {
        level: run.split.submodel(level, number).params.layout.views(sums[level] / weights[level])
        for level in sums
    }


def momentum(updates: Mapping[int, Mapping[str, Tensor]], level: int, name: str) -> Tensor:
    """What a level's own tensor learns from the next level's update; zero where nobody of that
    level was there.
    """
    stage, block, role = name.split(".", 2)
    if level + 1 not in updates:
        return torch.tensor(0.0)
    theirs = updates[level + 1]
    larger = STAGES[level + 1][int(stage[-1]) - 1]
    layers = [
        theirs[f"{stage}.{b}.{role}"]
        for b in range(int(block), larger)
        if f"{stage}.{b}.{role}" in theirs
    ]
    layers = [t for t in layers if t.shape == layers[0].shape]
    return torch.stack(layers).mean(0)


class Story:
    """Two real rounds: weights, buffers and m after each, and the run."""

    def __init__(self, *overrides: str) -> None:
        self.run = simulate(*MODEL, *overrides, rounds=0)[2]
        state = self.run.simulator.start(0)
        self.w, self.b, self.m = [state.w.clone()], [state.b.clone()], [state.split["m"].clone()]

        def listen(state: Any, _: object) -> None:
            self.w.append(state.w.clone())
            self.b.append(state.b.clone())
            self.m.append(state.split["m"].clone())

        self.run.simulator.run(state, 2, [EachRound(listen)])

    def levels(self, number: int) -> set[int]:
        return {t.level for t in self.run.simulator.population.tasks(number)}


@cache
def story(*overrides: str) -> Story:
    return Story(*overrides)


def own_blocks(split: Inclusive, level: int) -> list[str]:
    """A level's own tensors but for its classifier."""
    prefix = f"{level}-{split.names[level]}/"
    return [
        n.removeprefix(prefix)
        for n in split.params.entries
        if n.startswith(prefix) and "fc." not in n
    ]


@pytest.mark.parametrize("overrides", [SOME, ("split.beta=0.5",)])
def test_momentum_is_the_next_levels_update_of_the_round_before(overrides: tuple[str, ...]) -> None:
    """m of rounds 1 and 2, and what each level's own blocks move by in both: G, then beta m + (1 -
    beta) G.
    """
    tale = story(*overrides)
    split, beta = tale.run.split, 0.5 if "split.beta=0.5" in overrides else 0.2
    by_place = {each.place: each for each in split.momenta}
    assert not tale.m[0].any() and tale.m[1].any()
    former: dict[int, dict[str, Tensor]] = {}
    seen = 0
    for number in (1, 2):
        updates = sent(tale.run, number, tale.w[number - 1], tale.b[number - 1])
        assert set(updates) == tale.levels(number)
        step = tale.w[number] - tale.w[number - 1]
        for level in range(5):
            for name in own_blocks(split, level):
                place = f"{level}-{split.names[level]}/{name}"
                each = by_place.get(split.params.entries[place].offset)
                assert (each is None) == (level == 4), "the largest learns from nobody"
                if each is not None:
                    expected = momentum(updates, level, name).expand(
                        split.params.entries[place].shape
                    )
                    m = tale.m[number].narrow(0, each.start, each.numel)
                    e = split.submodel(level, 1).params.layout.entries[name]
                    # as vectors store them
                    mine = (
                        expected.permute(0, 2, 3, 1).flatten()
                        if len(e.shape) == 4
                        else expected.flatten()
                    )
                    torch.testing.assert_close(m.double(), mine.double(), rtol=1e-5, atol=1e-9)
                moved = split.params.view(step, place)
                if level not in updates:
                    assert not moved.any(), (
                        "a level that is not there does not move, whoever could teach it"
                    )
                    continue
                wanted = updates[level][name]
                if level < 4:
                    wanted = beta * momentum(former, level, name) + (1 - beta) * wanted
                torch.testing.assert_close(moved.double(), wanted.double(), rtol=1e-3, atol=1e-6)
                seen += 1
        former = updates
    assert seen > 100


def test_a_level_that_was_not_there_teaches_nothing() -> None:
    """Its m is zero, though it had one before; its own tensors and statistics stay; the shared ones
    go on.
    """
    tale = story(*SOME)
    split: Inclusive = tale.run.split
    checked = 0
    for number in (1, 2):
        away = set(range(5)) - tale.levels(number)
        assert away
        for level in away:
            assert not tale.m[number][split.submodel(level, 1).holds["m"].index].any()
            prefix = f"{level}-{split.names[level]}/"
            for layout, vectors in ((split.params, tale.w), (split.buffers, tale.b)):
                for name in layout.entries:
                    if name.startswith(prefix):
                        assert torch.equal(
                            layout.view(vectors[number], name),
                            layout.view(vectors[number - 1], name),
                        ), name
                        checked += 1
        for level in tale.levels(number) - {0}:
            assert tale.m[number][split.submodel(level, 1).holds["m"].index].any()
        assert not torch.equal(
            split.params.view(tale.w[number], "conv1.weight"),
            split.params.view(tale.w[number - 1], "conv1.weight"),
        )
    assert checked and tale.levels(1) != tale.levels(2)


def test_beta_weighs_what_is_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """In round 1 m is zero: (1 - beta) of the plain update, and all of it elsewhere. With beta=0,
    to the bit the run of a split that leaves the update alone.
    """
    taught, plain = story("split.beta=0.5"), Story("split.beta=0.0")
    split: Inclusive = taught.run.split
    learning = torch.zeros(split.params.numel, dtype=torch.bool)
    for each in split.momenta:
        learning[each.place : each.place + each.numel] = True
    one, other = taught.w[1] - taught.w[0], plain.w[1] - plain.w[0]
    assert torch.equal(taught.w[1][~learning], plain.w[1][~learning])
    torch.testing.assert_close(one[learning], other[learning] / 2, rtol=1e-3, atol=1e-6)
    assert torch.equal(taught.m[1], plain.m[1]) and not torch.equal(taught.w[2], plain.w[2])

    monkeypatch.setattr(Inclusive, "server_update", lambda self, server, update, aggregate: update)
    untouched = Story("split.beta=0.0")
    assert all(
        torch.equal(a, b) for a, b in zip(plain.w + plain.b, untouched.w + untouched.b, strict=True)
    )
    assert plain.m[2].any() and not untouched.m[2].any()


def test_shared_tensors_are_means_over_all_their_holders() -> None:
    """And never taught: a shared block is some larger level's, not this one's last."""
    tale = story(*SOME)
    split: Inclusive = tale.run.split
    updates = sent(tale.run, 1, tale.w[0], tale.b[0])
    weights = {
        level: sum(
            len(t.examples) for t in tale.run.simulator.population.tasks(1) if t.level == level
        )
        for level in range(5)
    }
    several = set()
    for name in (
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer3.0.bn2.weight",
        "layer4.1.conv2.weight",
    ):
        who = BLOCKS[part_of(name)][0] & updates.keys()
        assert who
        several.add(len(who) > 1)
        mean = sum(updates[level][name] * weights[level] for level in who) / sum(
            weights[level] for level in who
        )
        moved = split.params.view(tale.w[1] - tale.w[0], name)
        torch.testing.assert_close(moved.double(), torch.as_tensor(mean), rtol=1e-3, atol=1e-6)
    assert True in several


def test_a_vit_learns_too() -> None:
    state, rows, run = simulate(
        *TINY_VIT, "split=inclusive", "split.levels=[1,3,4]", "model.depth=4", rounds=2
    )
    block = sum(
        e.numel for n, e in run.split.params.entries.items() if n.startswith("0-vit1/blocks.0")
    )
    assert len(rows) == 2
    assert state.split["m"].shape == (2 * block,) and state.split["m"].any()
    assert sum(each.numel for each in run.split.momenta) == 2 * block
    assert {len(each.blocks) for each in run.split.momenta} == {3, 2}


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.0}, r"split\.beta=1\.0: must be in \[0, 1\)"),
        ({"beta": -0.1}, r"split\.beta=-0\.1: must be in \[0, 1\)"),
        ({"beta": float("nan")}, r"split\.beta=nan: must be in \[0, 1\)"),
        ({"levels": []}, r"split\.levels=\[\]: must be null, or a list with one entry a level"),
        (
            {"levels": [[2, 1, 1, 1], [1, 2, 2, 2]]},
            (
                r"split\.levels=\[\[2, 1, 1, 1\], \[1, 2, 2, 2\]\]: with split=inclusive each level"
                r" has at least the blocks of the one before"
            ),
        ),
        (
            {"levels": [[1, 1, 1, 1], [1, 1, 1, 1]]},
            r"split\.levels=.*: a level is listed twice; list each size once",
        ),
        (
            {"levels": [[2, 2, 2, 2], [1, 1, 1, 1]]},
            r"split\.levels=.*: list the levels smallest first",
        ),
        (
            {"levels": [[1, 1, 1, 4]]},
            r"entry \[1, 1, 1, 4\] for model=resnet26: each group keeps 1 to \[3, 3, 3, 3\] blocks",
        ),
        ({"bn": "frozen"}, r"split\.bn=frozen: must be one of aggregated, static, batch"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inclusive(**settings, family=RESNET)


@pytest.mark.parametrize("levels", [[[1, 1, 2, 2]], [[1, 1, 1, 1], [1, 1, 1, 2]]])
def test_few_levels_work(levels: Sequence[Sequence[int]]) -> None:
    """One level learns from nobody; equal depth in a stage still makes two last blocks."""
    split = Inclusive(levels, family=RESNET)
    assert bool(split.momenta) == (len(levels) > 1) == bool(len(split.init_server()["m"]))
    assert [n for n in split.params.entries if n.endswith("/layer1.0.conv1.weight")] == [
        f"{level}-{name}/layer1.0.conv1.weight" for level, name in enumerate(split.names)
    ]

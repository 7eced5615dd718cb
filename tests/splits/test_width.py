"""Width splits: which coordinates a level holds, against positions worked out from tensor names and
shapes alone; what they average to, against a loop over coordinates; narrowed models against the
whole one with the other channels silenced; published counts and vectors.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from support import TINY, simulate, timeless, uploads_of
from torch import Tensor, nn

from inco.clients.capacity import Fixed
from inco.errors import ConfigError
from inco.fast.bound import BoundModel
from inco.flat import ClassRows, Layout, Slice, layouts_of
from inco.models.base import Scaler, relative
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.server.aggregate import Cohort, Holders
from inco.server.sums import RoundSums
from inco.splits.base import BlockSplit, Relatives
from inco.splits.depth import Depth
from inco.splits.objectives import MaskedCrossEntropy
from inco.splits.width import Rolling, Width, narrowed, rolling
from inco.types import (
    Aggregate,
    ClientResult,
    ClientTask,
    Output,
    SubModel,
    Weighting,
    cross_entropy,
)

PAPER_RATES = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]
RATES = [0.3, 0.5, 1.0]
RESNET = ResNetFamily([2, 2], [5, 8], "small", shape=(3, 8, 8), num_classes=4)
VIT = ViTFamily(2, 12, 4, 4, 8, 1.5, shape=(3, 8, 8), num_classes=4)
FAMILIES: dict[str, ResNetFamily | ViTFamily] = {"resnet": RESNET, "vit": VIT}


def make(
    kind: str,
    family: ResNetFamily | ViTFamily = RESNET,
    levels: Sequence[float] = RATES,
    **settings: object,
) -> Width | Rolling:
    """Width, or Rolling with the window that `kind` names; BatchNorm's statistics travel unless
    `settings` say otherwise.
    """
    settings = {"bn": "aggregated", **settings}
    return (
        Width(levels, family=family, **settings)
        if kind == "width"
        else Rolling(levels, window=kind, family=family, **settings)
    )


# --- where a tensor's channels come from, read off its name


def resnet_groups(name: str) -> list[str | None]:
    """The channel group of each dimension of a ResNet's tensor; None where nothing is cut."""
    if name.endswith("num_batches_tracked"):
        return []
    if name.startswith("fc."):
        return [None, "layer2"] if name.endswith("weight") else [None]
    if name == "conv1.weight":
        return ["layer1", None, None, None]
    if name.startswith("bn1."):
        return ["layer1"]
    stage, block, module = name.split(".")[:3]
    before = "layer1" if (stage, block) in (("layer1", "0"), ("layer2", "0")) else stage
    made = f"{stage}.{block}" if module in ("conv1", "bn1") else stage
    if module.startswith("conv") or "downsample.0" in name:
        return [made, f"{stage}.{block}" if module == "conv2" else before, None, None]
    return [made]


def vit_groups(name: str) -> list[str | None] | None:
    """The same for a ViT; None where the whole tensor is held."""
    if "attn" not in name and "mlp" not in name:
        return None
    block, role = ".".join(name.split(".")[:2]), ".".join(name.split(".")[2:])
    return {
        "attn.qkv.weight": [f"{block}.qkv", None],
        "attn.qkv.bias": [f"{block}.qkv"],
        "attn.proj.weight": [None, f"{block}.heads"],
        "attn.proj.bias": [None],
        "mlp.fc1.weight": [f"{block}.mlp", None],
        "mlp.fc1.bias": [f"{block}.mlp"],
        "mlp.fc2.weight": [None, f"{block}.mlp"],
        "mlp.fc2.bias": [None],
    }[role]


def window(kind: str, n: int, rate: float, round: int) -> list[int]:
    """The units of n that are held, in order: the first, or those from t on (forward) or from -t on
    (backward), t = round - 1.
    """
    length = max(1, math.ceil(rate * n))
    start = {"width": 0, "forward": round - 1, "backward": 1 - round}[kind]
    return list(range(n)) if length == n else [(start + j) % n for j in range(length)]


def positions(
    kind: str, name: str, shape: Sequence[int], rate: float, round: int, vit: bool
) -> list[list[int]]:
    """The positions along each dimension that a level holds."""
    groups = (vit_groups(name) or [None] * len(shape)) if vit else resnet_groups(name)
    out = []
    for group, size in zip(groups, shape, strict=True):
        if group is None:
            out.append(list(range(size)))
        elif vit and not group.endswith("mlp"):
            heads, each = window(kind, 4, rate, round), 3  # four heads of three channels
            one = [h * each + c for h in heads for c in range(each)]
            # q, k and v one after the other
            out.append([part * 12 + c for part in range(size // 12) for c in one])
        else:
            out.append(window(kind, size, rate, round))
    return out


def numbered(layout: Layout) -> tuple[Tensor, dict[str, np.ndarray]]:
    """A vector in which every tensor holds its own numbers in C order, and these tensors."""
    tensors, base = {}, 0
    for e in layout.entries.values():
        tensors[e.name] = torch.arange(base, base + e.numel).view(e.shape)
        base += e.numel
    assert base < 2**24, "whole numbers are exact in float32"
    return layout.pack(tensors), {name: t.numpy() for name, t in tensors.items()}


def taken(part: Slice, vector: Tensor) -> dict[str, np.ndarray]:
    """The tensors that a sub-model gets from a server's vector."""
    own = part.gather(vector, torch.empty(part.layout.numel))
    return {name: part.layout.view(own, name).numpy() for name in part.layout.entries}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["width", "forward", "backward"])
def test_a_level_holds_the_channels_that_names_and_shapes_say(kind: str, family: str) -> None:
    split = make(kind, FAMILIES[family])
    for whole, part in ((split.params, "params"), (split.buffers, "buffers")):
        vector, tensors = numbered(whole)
        for level, round in product(range(len(RATES)), (1, 2, 3, 9, 20)):
            held: Slice = getattr(split.submodel(level, round), part)
            assert len(held.index.unique()) == len(held.index) == held.layout.numel
            own = taken(held, vector)
            assert own.keys() == tensors.keys(), "a narrower model has every tensor"
            for name, full in tensors.items():
                at = positions(kind, name, full.shape, RATES[level], round, family == "vit")
                np.testing.assert_array_equal(
                    own[name], full[np.ix_(*at)] if at else full, err_msg=f"{name}, round {round}"
                )


@pytest.mark.parametrize("family", FAMILIES)
def test_random_windows_are_draws_that_all_tensors_of_a_group_share(family: str) -> None:
    """Channels are read off one tensor of each group; every other tensor must follow them."""
    split = make("random", FAMILIES[family])
    split.initial(seed=3)
    vector, tensors = numbered(split.params)
    seen: dict[str, set[tuple[int, ...]]] = {}
    for round in range(1, 9):
        own = taken(split.submodel(1, round).params, vector)
        channels: dict[str, list[int]] = {}
        for name, full in tensors.items():
            groups = vit_groups(name) if family == "vit" else resnet_groups(name)
            for dim, group in enumerate(groups or []):
                if group is not None and group not in channels:
                    first = [0 if d != dim else slice(None) for d in range(full.ndim)]
                    lines = [
                        np.moveaxis(full, dim, 0)[c].ravel().tolist()
                        for c in range(full.shape[dim])
                    ]
                    chosen = [
                        next(c for c, line in enumerate(lines) if n in line)
                        for n in own[name][tuple(first)].tolist()
                    ]
                    channels[group] = chosen
                    seen.setdefault(group, set()).add(tuple(chosen))
        for name, full in tensors.items():
            groups = (vit_groups(name) if family == "vit" else resnet_groups(name)) or [
                None
            ] * full.ndim
            at = [
                list(range(n)) if g is None else channels[g]
                for g, n in zip(groups, full.shape, strict=True)
            ]
            np.testing.assert_array_equal(
                own[name], full[np.ix_(*at)], err_msg=f"{name}, round {round}"
            )
        for group, chosen in channels.items():
            of = [c for c in chosen if c < 12] if group.endswith("qkv") else chosen
            assert len(set(chosen)) == len(chosen)
            if group.endswith("qkv"):
                assert of == channels[group.replace("qkv", "heads")], (
                    "the queries are those of the heads that are held"
                )
    assert all(len(drawn) > 2 for drawn in seen.values()), "drawn anew each round"
    if family == "resnet":
        assert len({tuple(sorted(drawn)) for drawn in (seen["layer1.0"], seen["layer1.1"])}) == 2, (
            "and for each layer"
        )


def test_random_windows_are_named_draws() -> None:
    """A function of seed and round, whatever was asked for before."""

    def held(split: Rolling | Width, round: int) -> list[int]:
        return split.submodel(0, round).params.index.tolist()

    first, again, other = (make("random") for _ in range(3))
    for split, seed in ((first, 1), (again, 1), (other, 2)):
        split.initial(seed)
    forwards, backwards = (
        {r: held(first, r) for r in (1, 2, 3, 4)},
        {r: held(again, r) for r in (4, 3, 2, 1)},
    )
    assert forwards == backwards and len({tuple(h) for h in forwards.values()}) == 4
    assert [held(other, r) for r in forwards] != list(forwards.values())
    other.initial(1)
    assert held(other, 4) == forwards[4], "a new seed is not answered from what was kept"


@pytest.mark.parametrize(
    ("n", "rate", "t", "paper", "code"),
    [
        (8, 0.5, 1, [1, 2, 3, 4], [7, 0, 1, 2]),
        (8, 0.5, 3, [3, 4, 5, 6], [5, 6, 7, 0]),
        (8, 0.5, 6, [6, 7, 0, 1], [2, 3, 4, 5]),
        (8, 0.5, 8, [0, 1, 2, 3], [0, 1, 2, 3]),
        (64, 1 / 16, 62, [62, 63, 0, 1], [2, 3, 4, 5]),
    ],
)
def test_published_windows(n: int, rate: float, t: int, paper: list[int], code: list[int]) -> None:
    """Vector T8, of the function and of the channels that a client really holds in round t + 1 (t
    counts from 0).
    """
    length = len(paper)
    assert rolling(n, length, t).tolist() == paper and rolling(n, length, -t).tolist() == code
    family = ResNetFamily([1], [n], "small", shape=(1, 4, 4), num_classes=2)
    for kind, expected in (("forward", paper), ("backward", code)):
        split = make(kind, family, [rate, 1.0])
        held = split.submodel(0, t + 1).params
        mine = (
            held.layout.view(held.index, "bn1.weight") - split.params.entries["bn1.weight"].offset
        )
        assert mine.tolist() == expected
        assert split.submodel(1, t + 1).params.index.tolist() == list(range(split.params.numel)), (
            "all n stay in their order"
        )


@pytest.mark.parametrize(("overlap", "step"), [(None, 1), (1.0, 1), (0.5, 3), (0.0, 5), (0.3, 3)])
def test_overlap(overlap: float | None, step: int) -> None:
    """The published option: the window of L = 4 of 8 channels moves by floor(L (1 - o)) + 1."""
    family = ResNetFamily([1], [8], "small", shape=(1, 4, 4), num_classes=2)
    for kind, way in (("forward", 1), ("backward", -1)):
        split = make(kind, family, [0.5, 1.0], overlap=overlap)
        offset = split.params.entries["bn1.weight"].offset
        for round in (1, 2, 4):
            held = split.submodel(0, round).params
            start = int(held.layout.view(held.index, "bn1.weight")[0]) - offset
            assert start == way * step * (round - 1) % 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_the_first_window_is_heterofls_and_all_come_round(kind: str, family: str) -> None:
    moving, still = make(kind, FAMILIES[family]), make("width", FAMILIES[family])
    for level in range(len(RATES)):
        for part in ("params", "buffers"):
            one, other = (
                getattr(split.submodel(level, 1), part).index for split in (moving, still)
            )
            assert torch.equal(one, other)
        assert moving.submodel(level, 0).params.index.equal(
            moving.submodel(level, 1).params.index
        ), "0 stands for the first"
    lines = [n for n, e in moving.params.entries.items() if len(e.shape) == 1]
    counts = torch.zeros(moving.params.numel)
    windows = {
        n: (e.shape[0], moving.submodel(0, 1).params.layout.entries[n].shape[0])
        for n, e in moving.params.entries.items()
    }
    for round in range(1, 30):
        counts[moving.submodel(0, round).params.index] += 1
        for name in lines:
            n, length = windows[name]
            units = (
                {12: (4, 2), 36: (4, 2)}.get(n, (n, length))
                if family == "vit" and n != length
                else (n, length)
            )
            done = round >= units[0] - units[1] + 1  # it moves by one a round
            assert bool((moving.params.view(counts, name) > 0).all()) == done, (name, round)


def test_windows_of_heads_move_by_whole_heads() -> None:
    assert [g.unit for n, g in VIT.groups().items() if n.endswith("heads")] == [3, 3]
    assert {
        n: (g.size, g.unit, g.of) for n, g in VIT.groups().items() if n.startswith("blocks.1")
    } == {
        "blocks.1.heads": (12, 3, None),
        "blocks.1.qkv": (36, 1, "blocks.1.heads"),
        "blocks.1.mlp": (18, 1, None),
    }
    assert "embed" not in VIT.groups(), "the residual stream is never cut"
    assert narrowed(VIT.groups(), 0.01)["blocks.0.qkv"] == 9, (
        "at least one head, its queries, keys and values"
    )
    for rate, held in ((0.26, 2), (0.25, 1), (0.75, 3), (0.76, 4)):
        sizes = narrowed(VIT.groups(), rate)
        assert (sizes["blocks.0.heads"], sizes["blocks.0.qkv"]) == (3 * held, 9 * held)


def test_ceilings_are_of_the_rates_as_written() -> None:
    """0.7 x 10 is 7.000000000000001 in binary; 1/3 of 9 is 3; no group is ever empty."""
    for rate, size, expected in (
        (0.7, 10, 7),
        (1 / 3, 9, 3),
        (0.55, 20, 11),
        (0.1, 30, 3),
        (0.01, 8, 1),
        (0.51, 8, 5),
        (1.0, 7, 7),
    ):
        family = ResNetFamily([1], [size], "small", shape=(1, 4, 4), num_classes=2)
        assert set(narrowed(family.groups(), rate).values()) == {expected}, (rate, size)


# --- averages


def task(
    level: int, examples: int, classes: Sequence[int] | None = None, of: int = 4, client: int = 0
) -> ClientTask:
    has = None if classes is None else torch.tensor([c in classes for c in range(of)])
    return ClientTask(client, 1, level, torch.arange(examples), has)


def averaged(
    sizes: tuple[int, int],
    subs: Mapping[int, SubModel],
    tasks: Sequence[ClientTask],
    deltas: Sequence[Tensor],
    weighting: Weighting = "uniform",
    buffers: Sequence[Tensor] | None = None,
) -> tuple[RoundSums, Aggregate]:
    """A round of the product's aggregation.

    `sizes`: of the server's parameters and buffers; the latter count alike.
    """
    uploads = uploads_of("uniform", delta=weighting)
    lengths = {"params": sizes[0], "buffers": sizes[1]}
    cohort = Cohort(tasks, [1] * len(tasks), subs, uploads, lengths, Holders({}), 0.0)
    sums = RoundSums(uploads, lengths, len(tasks))
    for position, (t, delta, stats) in enumerate(
        zip(tasks, deltas, buffers or [torch.empty(0)] * len(tasks), strict=True)
    ):
        result = ClientResult(t, {"delta": delta, "buffers": stats}, 0.0, 1)
        sums.add(position, result, subs[t.level], cohort.shares(t))
    return sums, cohort.average(sums)


def no_model() -> nn.Module:
    raise AssertionError("aggregation builds no model")


def corner(level: int, whole: Layout, shape: tuple[int, ...]) -> SubModel:
    """The leading corner of the one tensor of a layout."""
    names = ("rows", "columns")[: len(shape)]
    part = Layout.of({"w": torch.zeros(shape)}, {"w": names})
    nothing = Slice(Layout([]), torch.empty(0, dtype=torch.int64))
    held = Slice.by_axes(
        whole, part, {n: torch.arange(k) for n, k in zip(names, shape, strict=True)}
    )
    return SubModel(level, f"{shape}", no_model, held, nothing)


def test_heterofl_average_of_corners() -> None:
    """Vector T7, with and without the client that holds everything."""
    whole = Layout.of({"w": torch.zeros(4, 4)}, {"w": ("rows", "columns")})
    subs = {level: corner(level, whole, (k, k)) for level, k in enumerate((1, 2, 4))}
    values, start = {0: 8.0, 1: 3.0, 2: 1.0}, torch.full((16,), -1.0)
    for levels, expected in (
        ((2, 1, 0), [[4, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
        ((1, 0), [[5.5, 3, -1, -1], [3, 3, -1, -1], [-1, -1, -1, -1], [-1, -1, -1, -1]]),
    ):
        tasks = [task(level, 5 + level) for level in levels]
        deltas = [
            torch.full((subs[level].params.layout.numel,), values[level] - -1.0) for level in levels
        ]
        _, aggregate = averaged((16, 0), subs, tasks, deltas)
        np.testing.assert_allclose(
            (start + aggregate.mean["delta"]).view(4, 4), expected, atol=1e-6
        )
        assert aggregate.covered.view(4, 4).tolist() == (np.array(expected) != -1).tolist()


def test_heterofl_average_of_a_classifier() -> None:
    """Vector T7, the head: rows of classes that a client has no example of do not count."""
    whole = Layout.of({"w": torch.zeros(3)}, {"w": ("rows",)})
    every = torch.arange(3)
    sub = corner(0, whole, (3,))
    sub = replace(sub, params=sub.params.counting(rows=ClassRows(every, every, every)))
    tasks = [task(0, 7, [0, 1], of=3), task(0, 2, [1, 2], of=3)]
    start = torch.full((3,), 10.0)
    _, aggregate = averaged(
        (3, 0), {0: sub}, tasks, [torch.tensor([1.0, 2, 3]) - 10, torch.tensor([4.0, 6, 8]) - 10]
    )
    np.testing.assert_allclose(start + aggregate.mean["delta"], [1, 4, 8], atol=1e-6)
    _, aggregate = averaged((3, 0), {0: sub}, tasks[:1], [torch.tensor([1.0, 2, 3]) - 10])
    np.testing.assert_allclose(start + aggregate.mean["delta"], [1, 2, 10], atol=1e-6)
    assert aggregate.covered.tolist() == [True, True, False]
    _, aggregate = averaged(
        (3, 0),
        {0: sub},
        tasks,
        [torch.tensor([1.0, 2, 3]) - 10, torch.tensor([4.0, 6, 8]) - 10],
        "examples",
    )
    np.testing.assert_allclose(
        start + aggregate.mean["delta"], [1, (7 * 2 + 2 * 6) / 9, 8], atol=1e-6
    )


def test_clients_count_alike_whatever_their_order() -> None:
    """Vector T9: FedRolex's published code counts the first client c times and the next c + 1 times
    for 1-D parameters; we do not.
    """
    whole = Layout.of({"w": torch.zeros(1)}, {"w": ("rows",)})
    sub = corner(0, whole, (1,))
    weighted = sub.params.counting(weight=torch.ones(1, dtype=torch.float64))
    for sub_ in (sub, replace(sub, params=weighted)):
        for values in ((1.0, 3.0), (3.0, 1.0)):
            _, aggregate = averaged(
                (1, 0), {0: sub_}, [task(0, 4), task(0, 9)], [torch.tensor([v]) for v in values]
            )
            assert aggregate.mean["delta"].item() == pytest.approx(2.0, abs=1e-6)
    count, total, weight = 1, 0.0, 0
    for value in (1.0, 3.0):
        total, weight, count = total + count * value, weight + count, count + 1
    assert total / weight == pytest.approx(2.3333, abs=1e-4), "the published formula"


COHORT = (  # level, examples, classes: class 3 is nobody's, class 2 only a small client's
    (0, 3, [0, 2]),
    (1, 11, [0]),
    (0, 6, [0, 1]),
    (2, 5, [1]),
    (1, 8, [0, 1]),
)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize(
    ("kind", "family", "settings"),
    [
        ("width", "resnet", {}),
        ("width", "resnet", {"masked_loss": "off"}),
        ("width", "vit", {}),
        ("forward", "resnet", {}),
        ("backward", "vit", {"weighting": "width"}),
        ("forward", "resnet", {"weighting": "width"}),
    ],
)
def test_averages_equal_a_loop_over_coordinates(
    kind: str, family: str, settings: dict[str, str], weighting: Weighting
) -> None:
    """Sums to the bit, means to the rounding of float32; buffers are averaged alike, whoever has
    which class.
    """
    split, round, stream = make(kind, FAMILIES[family], **settings), 4, np.random.default_rng(1)
    masked, by_width = settings.get("masked_loss") != "off", settings.get("weighting") == "width"
    subs = {level: split.submodel(level, round) for level in range(3)}
    tasks = [task(level, n, classes if masked else None) for level, n, classes in COHORT]
    deltas = [
        torch.from_numpy(stream.normal(size=subs[t.level].params.layout.numel).astype(np.float32))
        for t in tasks
    ]
    stats = [
        torch.from_numpy(stream.random(subs[t.level].buffers.layout.numel).astype(np.float32)) * 9
        for t in tasks
    ]
    sums, aggregate = averaged(
        (split.params.numel, split.buffers.numel), subs, tasks, deltas, weighting, stats
    )

    def check(
        part: str,
        weights: list[int],
        steps: float,
        uploads: list[Tensor],
        total: Tensor,
        mean: Tensor,
        covered: Tensor,
    ) -> None:
        layout: Layout = getattr(split, part)
        for name, e in layout.entries.items():
            whole, above, below = (
                np.zeros(e.shape, dtype=np.int64),
                np.zeros(e.shape),
                np.zeros(e.shape),
            )
            cut = (
                len(e.shape) > 1
                and name.startswith(("conv1", "layer", "blocks"))
                and "proj" not in name
                and "fc2" not in name
            )
            for (level, _, classes), weight, upload in zip(COHORT, weights, uploads, strict=True):
                held: Slice = getattr(subs[level], part)
                own = held.layout.view(upload, name).numpy().astype(np.float64)
                at = positions(kind, name, e.shape, RATES[level], round, family == "vit")
                counts = len(at[0]) / e.shape[0] if by_width and cut else 1.0
                for local in np.ndindex(own.shape):
                    place = tuple(axis[k] for axis, k in zip(at, local, strict=True))
                    if masked and name.startswith(("fc.", "head.")) and place[0] not in classes:
                        continue
                    whole[place] += int(
                        np.rint(own[local] * (weight / sum(weights) * steps) * counts)
                    )
                    above[place] += weight * counts * own[local]
                    below[place] += weight * counts
            np.testing.assert_array_equal(layout.view(total, name).numpy(), whole, err_msg=name)
            np.testing.assert_array_equal(
                layout.view(covered, name).numpy(), below > 0, err_msg=name
            )
            expected = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
            np.testing.assert_allclose(
                layout.view(mean, name).numpy(),
                expected,
                rtol=1.3e-7,
                atol=2e-10 * 2.0**40 / steps,
                err_msg=name,
            )
            if name in ("fc.weight", "head.weight"):
                assert bool((below[3] == 0).all()) == masked, (
                    "a class that nobody has leaves its row alone"
                )

    counts = [n if weighting == "examples" else 1 for _, n, _ in COHORT]
    check(
        "params",
        counts,
        2.0**40,
        deltas,
        sums.vectors["delta"],
        aggregate.mean["delta"],
        aggregate.covered,
    )
    check(
        "buffers",
        [1] * len(COHORT),
        2.0**32,
        stats,
        sums.vectors["buffers"],
        aggregate.mean["buffers"],
        aggregate.buffers_covered,
    )


def test_a_row_moves_only_if_a_client_of_the_round_has_its_class() -> None:
    """In a real round: two of five clients, each with one of three classes."""
    overrides = (
        "split=width",
        "split.bn=batch",
        "sample_ratio=0.4",
        "partition=labels",
        "partition.classes_per_client=1",
    )
    state, _, run = simulate(*TINY, *overrides, rounds=1)
    people = run.simulator.population
    tasks = people.tasks(1)
    labels = run.dataset.train.labels
    there = set(torch.cat([labels[t.examples] for t in tasks]).tolist())
    assert 0 < len(there) < 3, "the draw leaves a class out"
    assert all(
        t.classes.nonzero().flatten().tolist() == labels[t.examples].unique().tolist()
        for t in tasks
    )
    first = run.simulator.start(0)
    for name in ("fc.weight", "fc.bias"):
        moved = (
            (run.split.params.view(state.w, name) != run.split.params.view(first.w, name))
            .view(3, -1)
            .any(1)
        )
        assert moved.nonzero().flatten().tolist() == sorted(there), name


# --- the objective


def test_masked_cross_entropy() -> None:
    """Vector T6b."""
    output = Output(torch.tensor([[2.0, 1.0, -1.0]]), torch.empty(1, 0))
    labels, absent, all_there = (
        torch.tensor([0]),
        task(0, 1, [0, 2], of=3),
        task(0, 1, [0, 1, 2], of=3),
    )
    for objective, expected in (
        (MaskedCrossEntropy("zero"), 0.16984604),
        (MaskedCrossEntropy("minus_inf"), 0.04858733),
        (cross_entropy, 0.34901217),
    ):
        assert objective(output, labels, absent).item() == pytest.approx(expected, abs=1e-7)
        assert objective(output, labels, all_there).item() == pytest.approx(0.34901217, abs=1e-7)
    assert [make("width", masked_loss=m).submodel(0, 1).objective for m in ("off",)] == [
        cross_entropy
    ]
    for name, fill in (("zero", 0.0), ("minus_inf", -math.inf)):
        sub = make("width", masked_loss=name).submodel(1, 1)
        assert sub.objective.fill == fill and sub.params.rows is not None  # type: ignore[attr-defined]
    assert make("width", masked_loss="off").submodel(0, 1).params.rows is None


@pytest.mark.parametrize("fill", ["zero", "minus_inf"])
def test_masked_classes_get_no_gradient(fill: str) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    MaskedCrossEntropy(fill)(
        Output(logits, logits), torch.tensor([0, 2, 0, 2, 2]), task(0, 5, [0, 2])
    ).backward()  # type: ignore[arg-type]
    assert (
        logits.grad is not None
        and logits.grad[:, [1, 3]].eq(0).all()
        and logits.grad[:, [0, 2]].ne(0).all()
    )


# --- sizes


@cache
def paper_counts() -> tuple[list[int], list[int]]:
    """Parameters of the real ResNet26's levels: width and stage."""
    family = ResNetFamily(
        [3, 3, 3, 3], [64, 128, 256, 512], "imagenet", shape=(3, 32, 32), num_classes=10
    )
    splits: list[Relatives] = [
        Width(PAPER_RATES, family=family),
        Depth(family.depth_levels(), family=family),
    ]
    counts = []
    for split in splits:
        with torch.device("meta"):
            counts.append(
                [
                    layouts_of(relative(family, spec.keep, spec.variant))[0].numel
                    for spec in split.specs
                ]
            )
    return counts[0], counts[1]


def test_published_sizes() -> None:
    """Chan et al., Tables 3 and 9: parameters of each width, and the mean over the five groups of
    clients, in millions.
    """
    width, stage = paper_counts()
    assert width == [69_822, 275_762, 1_096_026, 4_370_090, 17_452_362]
    assert stage == [4_910_922, 10_812_234, 11_181_642, 17_082_954, 17_452_362]
    assert (round(sum(width) / 5e6, 2), round(sum(stage) / 5e6, 2)) == (4.65, 12.29)
    ends = {
        which: Fixed(which, num_clients=100, num_levels=5, seed=0).levels
        for which in ("small", "large")
    }
    assert [
        round(width[level] / 1e6, 2) for which in ("small", "large") for level in ends[which]
    ] == [0.07, 17.45]
    assert Width(PAPER_RATES, family=RESNET).names == ("w1/16", "w1/8", "w1/4", "w1/2", "w1")
    assert Width([0.3, 0.7], family=RESNET).names == ("w0.3", "w0.7")


# --- narrowed models


def loaded(split: Relatives, level: int, round: int, w: Tensor, b: Tensor) -> nn.Module:
    """A level's model with its slice of the server's vectors, in evaluation mode."""
    sub = split.submodel(level, round)
    bound = BoundModel(sub.build(), sub.params.layout, sub.buffers.layout)
    bound.load(w, b, sub.params, sub.buffers)
    return bound.model.eval()


def drawn(split: Relatives, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Parameters and buffers that have nothing in common with one another; variances are above
    zero.
    """
    stream = torch.Generator().manual_seed(seed)
    w, b = (
        torch.randn(split.params.numel, generator=stream) * 0.3,
        torch.rand(split.buffers.numel, generator=stream) + 0.5,
    )
    return w, b


def whole_of(split: Relatives, w: Tensor, b: Tensor) -> nn.Module:
    """The global model with the server's vectors."""
    model = split.family.build()
    state = {**split.params.views(w), **split.buffers.views(b)}
    model.load_state_dict({n: state[n].to(t.dtype) for n, t in model.state_dict().items()})
    return model.eval()


def silence(model: nn.Module, keep: Callable[[str, int], list[int]]) -> nn.Module:
    """Make the output of every BatchNorm zero in all channels but those to keep."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            off = torch.ones(module.num_features, dtype=torch.bool)
            off[keep(name, module.num_features)] = False
            module.weight.data[off] = module.bias.data[off] = 0.0
    return model


@pytest.mark.parametrize("kind", ["width", "forward", "backward"])
def test_a_narrow_resnet_is_the_whole_one_with_the_other_channels_silent(kind: str) -> None:
    split = make(kind, scaler=False)
    w, b = drawn(split)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for level, round in product(range(3), (1, 4)):
        narrow = loaded(split, level, round, w, b)
        whole = silence(whole_of(split, w, b), lambda name, n: window(kind, n, RATES[level], round))  # noqa: B023
        with torch.no_grad():
            small, large = narrow(images), whole(images)
        held = window(kind, 8, RATES[level], round)
        torch.testing.assert_close(small.features, large.features[:, held], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(small.logits, large.logits, rtol=1e-4, atol=1e-5)
        assert level == 2 or not torch.allclose(
            small.logits, whole_of(split, w, b)(images).logits, rtol=1e-2
        )
        for name, t in narrow.state_dict().items():  # and tensor by tensor
            full = {**split.params.views(w), **split.buffers.views(b)}[name].numpy()
            at = positions(kind, name, full.shape, RATES[level], round, vit=False)
            np.testing.assert_array_equal(
                t.numpy(), (full[np.ix_(*at)] if at else full).astype(t.numpy().dtype), err_msg=name
            )


@pytest.mark.parametrize("kind", ["width", "forward", "backward"])
def test_a_narrow_vit_is_the_whole_one_with_the_other_heads_silent(kind: str) -> None:
    """One attention alone, then the whole model; without the scaler, which the whole one has
    not.
    """
    split = make(kind, VIT, scaler=False)
    w, b = drawn(split)
    stream = torch.Generator().manual_seed(1)
    images, tokens = (
        torch.randn(4, 3, 8, 8, generator=stream),
        torch.randn(2, 5, 12, generator=stream),
    )
    for level, round in product(range(3), (1, 3)):
        narrow = loaded(split, level, round, w, b)
        whole, heads = whole_of(split, w, b), window(kind, 4, RATES[level], round)
        for full in whole.blocks:
            off = [h * 3 + c for h in range(4) if h not in heads for c in range(3)]
            full.attn.proj.weight.data[:, off] = 0.0
            hidden = window(kind, 18, RATES[level], round)
            full.mlp.fc2.weight.data[:, [c for c in range(18) if c not in hidden]] = 0.0
        with torch.no_grad():
            for small, large in zip(narrow.blocks, whole.blocks, strict=True):
                assert small.attn.num_heads == len(heads) and small.attn.head_dim == 3
                torch.testing.assert_close(
                    small.attn(tokens), large.attn(tokens), rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(
                    small.mlp(tokens), large.mlp(tokens), rtol=1e-4, atol=1e-5
                )
            torch.testing.assert_close(
                narrow(images).logits, whole(images).logits, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                narrow(images).features, whole(images).features, rtol=1e-4, atol=1e-5
            )
        uncut = [n for n in narrow.state_dict() if "attn" not in n and "mlp" not in n]
        assert uncut and all(
            narrow.state_dict()[n].shape == whole.state_dict()[n].shape for n in uncut
        )


@pytest.mark.parametrize(("kind", "rate"), [("width", 0.3), ("forward", 0.5)])
def test_scaler_divides_by_the_rate_in_training_and_in_scoring(kind: str, rate: float) -> None:
    """What reaches each norm of a ResNet, over what its convolution has made; what reaches the
    second layer of a ViT's narrowed parts.
    """
    level = RATES.index(rate)
    model = make(kind).submodel(level, 1).build()
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, i, o, name=name: seen.__setitem__(name, o.clone())
            )
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda m, i, name=name: seen.__setitem__(name, i[0].clone())
            )
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        model.train(training)(images)
        for conv, norm in [("conv1", "bn1")] + [
            (f"layer{s}.{b}.conv{k}", f"layer{s}.{b}.bn{k}")
            for s, b, k in product((1, 2), (0, 1), (1, 2))
        ]:
            assert torch.equal(seen[norm], seen[conv] / rate), (norm, training)

    vit = make(kind, VIT).submodel(level, 1).build()
    tokens = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    for part, last in (
        (vit.blocks[0].attn, vit.blocks[0].attn.proj),
        (vit.blocks[1].mlp, vit.blocks[1].mlp.fc2),
    ):
        given: list[Tensor] = []
        last.register_forward_pre_hook(lambda m, i, given=given: given.append(i[0].clone()))
        for training in (True, False):
            part.train(training)(tokens)
        part.norm = nn.Identity()  # where the scaler stands
        part(tokens)
        torch.testing.assert_close(given[0], given[2] / rate, rtol=1e-6, atol=1e-6)
        assert torch.equal(given[0], given[1])
    for silent in (
        make(kind, scaler=False).submodel(level, 1),
        make(kind).submodel(2, 1),
        make(kind, VIT, scaler=False).submodel(level, 1),
    ):
        assert not [m for m in silent.build().modules() if isinstance(m, Scaler)], (
            "none where there is nothing to divide"
        )


# --- runs


@cache
def undivided() -> tuple[Tensor, Tensor, list[dict[str, float]]]:
    state, rows, run = simulate(*TINY, "split=none", "transform=none", rounds=2)
    return state.w, state.b, nameless(rows, run.split.names[0])


def nameless(rows: Sequence[dict[str, float]], level: str) -> list[dict[str, float]]:
    """Rows without times, and without the name of the one level."""
    return [
        {key.removesuffix(level): value for key, value in row.items()} for row in timeless(rows)
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ("split=rolling", "split.levels=[1.0]"),
        ("split=rolling", "split.window=random", "split.weighting=width", "capacity=all_large"),
        ("split=width", "capacity=all_large"),
    ],
)
def test_full_width_is_no_split_at_all(overrides: tuple[str, ...]) -> None:
    """To the bit, over two rounds."""
    state, rows, run = simulate(
        *TINY,
        *overrides,
        "split.masked_loss=off",
        "split.bn=aggregated",
        "transform=none",
        rounds=2,
    )
    w, b, plain = undivided()
    assert torch.equal(state.w, w) and torch.equal(state.b, b)
    assert nameless(rows, run.split.names[-1]) == plain


@pytest.mark.parametrize("kind", ["width", "rolling"])
def test_only_what_was_held_moves(kind: str) -> None:
    """Two rounds of the small levels alone: rolling windows reach what leading channels never
    do.
    """
    state, _, run = simulate(
        *TINY,
        f"split={kind}",
        "capacity=all_small",
        "split.bn=batch",
        "split.masked_loss=off",
        rounds=2,
    )
    moved = state.w != run.simulator.start(0).w
    held = torch.zeros(run.split.params.numel, dtype=torch.bool)
    firsts = run.split.submodel(0, 1).params.index
    for round in (1, 2):
        held[run.split.submodel(0, round).params.index] = True
    assert not (moved & ~held).any() and moved.any()
    fresh_places = held.clone()
    fresh_places[firsts] = False
    assert bool(moved[fresh_places].any()) == (kind == "rolling")


# --- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"levels": []},
            r"split\.levels=\[\]: must be a list, each in \(0, 1\]",
        ),
        ({"levels": [0.5, 0.25]}, r"split\.levels=\[0\.5, 0\.25\]: list the widths smallest first"),
        ({"levels": [0.5, 0.5]}, r"split\.levels=\[0\.5, 0\.5\]: list the widths smallest first"),
        ({"levels": [0.0, 1.0]}, r"split\.levels=\[0\.0, 1\.0\]: must be a list, each in \(0, 1\]"),
        ({"levels": [0.5, 1.5]}, r"split\.levels=\[0\.5, 1\.5\]: must be a list, each in \(0, 1\]"),
        ({"masked_loss": "one"}, r"split\.masked_loss=one: must be one of zero, minus_inf, off"),
        ({"bn": "frozen"}, r"split\.bn=frozen: must be one of aggregated, static, batch"),
        (
            {"window": "sideways"},
            r"split\.window=sideways: must be one of forward, backward, random",
        ),
        ({"weighting": "height"}, r"split\.weighting=height: must be one of clients, width"),
        ({"overlap": 1.5}, r"split\.overlap=1\.5: must be null, or in \[0, 1\]"),
        (
            {"overlap": 0.5, "window": "random"},
            r"split\.overlap=0\.5 with split\.window=random: an overlap is of windows that move",
        ),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    kinds: list[type[Width] | type[Rolling]] = (
        [Rolling] if {"window", "weighting", "overlap"} & set(settings) else [Width, Rolling]
    )
    for kind in kinds:
        with pytest.raises(ConfigError, match=message):
            kind(**{"levels": RATES, **settings}, family=RESNET)  # type: ignore[arg-type]


def test_a_model_without_channels_to_cut_is_explained() -> None:
    class Bare:
        name, blocks = "bare", {"layer": 2}

    for kind in (Width, Rolling):
        with pytest.raises(
            ConfigError,
            match=(
                rf"split={kind.title} with model=bare: .*use split=stage or isolated, or give its"
                r" family `groups`"
            ),
        ):
            kind(RATES, family=Bare())  # type: ignore[arg-type]
    assert issubclass(Width, Relatives) and not issubclass(Width, BlockSplit)

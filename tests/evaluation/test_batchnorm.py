"""BatchNorm statistics measured before scoring: those that torch's own BatchNorm keeps of the same
images, in whole numbers that workers can share, gone again afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inco.clients.local import SGD
from inco.clients.pool import ModelPool
from inco.data.dataset import Images
from inco.errors import ConfigError
from inco.evaluation.batchnorm import BATCH, StaticNorm
from inco.evaluation.evaluator import Evaluator
from inco.fast.bound import BoundModel
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.splits.base import Relatives, Whole
from inco.splits.depth import Depth
from inco.splits.inclusive import Inclusive
from inco.splits.isolated import Isolated
from inco.splits.scalefl import ScaleFL
from inco.splits.width import Rolling, Width
from inco.types import SubModel

FAMILY = ResNetFamily([1, 1], [4, 6], "small", shape=(3, 8, 8), num_classes=4)
DEEP = ResNetFamily([2, 2, 2], [4, 6, 6], "small", shape=(3, 16, 16), num_classes=4)
VIT = ViTFamily(2, 8, 2, 4, 8, 2.0, shape=(3, 8, 8), num_classes=4)
WHOLE = Whole(bn="static", family=FAMILY)


def plain(x: Tensor, stream: torch.Generator) -> Tensor:
    return x


def noisy(x: Tensor, stream: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=stream)


def pictures(count: int, side: int = 8, seed: int = 0) -> Images:
    stream = torch.Generator().manual_seed(seed)
    shift = torch.linspace(-1, 2, count)[:, None, None, None]  # batches differ
    return Images(
        torch.randn(count, 3, side, side, generator=stream) + shift,
        torch.randint(4, (count,), generator=stream),
    )


def measuring(
    split: Relatives,
    count: int,
    images: int | None = None,
    transform: Callable[[Tensor, torch.Generator], Tensor] = plain,
    side: int = 8,
) -> tuple[StaticNorm, ModelPool, Images]:
    pool, train = ModelPool(SGD(1, 8, 0.1), "cpu", split.params.numel), pictures(count, side)
    return StaticNorm(pool, train, transform, images, seed=5), pool, train


def holding(pool: ModelPool, split: Relatives, sub: SubModel, seed: int = 0) -> BoundModel:
    """The pool's model of a level, with its slice of the server's first weights and of norms that
    are not 1 and 0.
    """
    w, b = split.initial(seed)
    stream = torch.Generator().manual_seed(seed)
    for name in split.params.entries:
        if len(split.params.entries[name].shape) == 1:
            split.params.view(w, name).copy_(
                torch.rand(split.params.entries[name].shape, generator=stream) + 0.5
            )
    bound = pool.get(sub).bound
    bound.load(w, b, sub.params, sub.buffers)
    return bound


def tracking(model: nn.Module, momentum: float | None) -> nn.Module:
    """A copy whose BatchNorm layers are torch's, with running statistics."""
    model = copy.deepcopy(model)
    for name, old in list(model.named_modules()):
        if isinstance(old, nn.BatchNorm2d):
            new = nn.BatchNorm2d(old.num_features, momentum=momentum)
            new.weight.data.copy_(old.weight)
            new.bias.data.copy_(old.bias)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, new)
    return model.train()


def statistics(model: nn.Module) -> list[Tensor]:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    return [t.clone() for m in norms for t in (m.running_mean, m.running_var)]


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@torch.no_grad()
def test_one_batch_is_torchs_batch_norm() -> None:
    """momentum=1 keeps the last batch's statistics."""
    norm, pool, train = measuring(WHOLE, 40)
    model = holding(pool, WHOLE, WHOLE.submodel(0, 1)).model
    reference = tracking(model, momentum=1.0)
    reference(train.images)
    assert norm.batches() == 1
    norm.install(model, norm.measure(model, 0, round=1))
    close(statistics(model), statistics(reference))
    torch.testing.assert_close(
        model.eval()(train.images).logits,
        reference.eval()(train.images).logits,
        rtol=1e-4,
        atol=1e-4,
    )


@torch.no_grad()
def test_several_batches_count_alike() -> None:
    """momentum=None keeps the cumulative mean over batches, a short last one counting as much as
    the others.
    """
    norm, pool, train = measuring(WHOLE, 2 * BATCH + 30)
    model = holding(pool, WHOLE, WHOLE.submodel(0, 1)).model
    reference = tracking(model, momentum=None)
    for start in (0, BATCH, 2 * BATCH):
        reference(train.images[norm.examples[start : start + BATCH]])
    assert norm.batches() == 3
    parts = [norm.measure(model, number, round=1) for number in (2, 0, 1)]
    norm.install(model, parts[0] + parts[1] + parts[2])
    close(statistics(model), statistics(reference))
    weighted = tracking(model, momentum=1.0)
    weighted(train.images)
    assert not torch.allclose(statistics(weighted)[1], statistics(model)[1], rtol=1e-3), (
        "not the statistics of all at once"
    )


@torch.no_grad()
def test_one_image_left_over_joins_the_batch_before_it() -> None:
    norm, pool, train = measuring(WHOLE, BATCH + 1)
    model = holding(pool, WHOLE, WHOLE.submodel(0, 1)).model
    reference = tracking(model, momentum=1.0)
    reference(train.images)
    assert norm.batches() == 1
    norm.install(model, norm.measure(model, 0, round=1))
    close(statistics(model), statistics(reference))


@torch.no_grad()
def test_images_are_evenly_spaced() -> None:
    norm, pool, train = measuring(WHOLE, 100, images=8)
    assert sorted(norm.examples.tolist()) == [0, 12, 25, 37, 50, 62, 75, 87]
    model = holding(pool, WHOLE, WHOLE.submodel(0, 1)).model
    reference = tracking(model, momentum=1.0)
    reference(train.images[norm.examples])
    norm.install(model, norm.measure(model, 0, round=1))
    close(statistics(model), statistics(reference))
    all_of_them = measuring(WHOLE, 20, images=99)[0].examples.tolist()
    assert sorted(all_of_them) == list(range(20)) != all_of_them, (
        "no more than there are, mixed: a set may be sorted by class"
    )


def test_preparation_is_a_named_draw() -> None:
    """Of round and batch, whatever was measured before; and nothing of the model changes but the
    mode.
    """
    norm, pool, _ = measuring(WHOLE, 2 * BATCH, transform=noisy)
    bound = holding(pool, WHOLE, WHOLE.submodel(0, 1))
    before = bound.w.clone()
    first = norm.measure(bound.model, 1, round=1)
    norm.measure(bound.model, 0, round=1)
    torch.rand(3)
    assert torch.equal(norm.measure(bound.model, 1, round=1), first)
    assert not torch.equal(norm.measure(bound.model, 1, round=2), first)
    norm.train.images.zero_()  # all images alike: what differs is the draw
    assert not torch.equal(
        norm.measure(bound.model, 0, round=1), norm.measure(bound.model, 1, round=1)
    )
    assert (
        torch.equal(bound.w, before)
        and first.dtype == torch.int64
        and first.shape == (norm.size(bound.model),)
    )
    assert not any(m._forward_pre_hooks for m in bound.model.modules()), "nothing is left listening"


@torch.no_grad()
def test_statistics_are_taken_away_again() -> None:
    """A model that is to train on keeps nothing: no buffers, no statistics, the same training as
    before.
    """
    norm, pool, train = measuring(WHOLE, 40)
    bound = holding(pool, WHOLE, WHOLE.submodel(0, 1))
    model = bound.model
    batch = model.eval()(train.images[:9]).logits
    norm.install(model, norm.measure(model, 0, round=1))
    measured = model.eval()(train.images[:9]).logits
    assert not torch.allclose(batch, measured, atol=1e-3)
    norm.remove(model)
    assert all(
        m.running_mean is None and m.running_var is None
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    )
    assert not list(model.buffers()) and set(model.state_dict()) == set(
        dict(model.named_parameters())
    )
    assert torch.equal(model.eval()(train.images[:9]).logits, batch), "again the batch at hand"


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_measuring_and_the_scoring(workers: int) -> None:
    """Two workers with a part of the units each get the sums, and so the scores, of one with all:
    to the bit.
    """
    split = Width([0.5, 1.0], family=FAMILY)
    w, b = split.initial(0)
    subs = {level: split.submodel(level, 1) for level in (0, 1)}
    test = pictures(BATCH * 2 + 20, seed=1)

    def worker() -> Evaluator:
        norm, pool, _ = measuring(split, BATCH * 3, transform=noisy)
        return Evaluator(pool, test, plain, (0, 1), 5, norm)

    def run(count: int) -> tuple[Tensor, Tensor]:
        people = [worker() for _ in range(count)]
        costs = {0: 1.0, 1: 2.0}
        to_measure, to_score = people[0].norm_units(costs)[0], people[0].units(costs)[0]
        assert len(to_measure) == 6 and len(to_score) == 6
        sums = sum(p.measure(to_measure[k::count], subs, w, b, 1) for k, p in enumerate(people))
        assert isinstance(sums, Tensor)
        table = sum(p.score(to_score[k::count], subs, w, b, 1, sums) for k, p in enumerate(people))
        assert isinstance(table, Tensor)
        return sums, table

    alone, together = run(1), run(workers)
    assert torch.equal(alone[0], together[0]) and torch.equal(alone[1], together[1])
    scores = worker().scores(alone[1])
    assert all(s.count == len(test.labels) and s.loss > 0 for s in scores.values())


def scored(split: Relatives, level: int, side: int = 8) -> tuple[Tensor, Tensor]:
    """Logits of images by the statistics measured on these very images, and by those of the batch
    at hand.
    """
    norm, pool, train = measuring(split, 200, side=side)
    model = holding(pool, split, split.submodel(level, 1)).model
    measured = norm.measure(model, 0, round=1)
    with torch.no_grad():
        batch = model.eval()(train.images).logits
        norm.install(model, measured)
        return model(train.images).logits, batch


@pytest.mark.parametrize(
    "case",
    [
        "whole",
        "width, no scaler",
        "width, widest",
        "scalefl",
        "scalefl, last",
        "width",
        "rolling",
    ],
)
def test_a_level_is_measured_as_it_is_scored(case: str) -> None:
    """On the images that it was measured on, a level scores as by the batch at hand (but for n - 1
    in the variance, and whole numbers).
    """
    split, level, side = {
        "whole": lambda: (WHOLE, 0, 8),
        "width, no scaler": lambda: (Width([0.25, 1.0], scaler=False, family=FAMILY), 0, 8),
        "width, widest": lambda: (Width([0.25, 1.0], family=FAMILY), 1, 8),
        "scalefl": lambda: (ScaleFL(bn="static", family=DEEP), 1, 16),
        "scalefl, last": lambda: (ScaleFL(bn="static", family=DEEP), 3, 16),
        "width": lambda: (Width([0.25, 1.0], family=FAMILY), 0, 8),
        "rolling": lambda: (Rolling([0.25, 1.0], bn="static", family=FAMILY), 0, 8),
    }[case]()
    measured, batch = scored(split, level, side)
    torch.testing.assert_close(measured, batch, rtol=0.02, atol=0.02 * float(batch.abs().max()))


def test_models_without_batch_norm_have_nothing_to_measure() -> None:
    split = Width([0.5, 1.0], family=VIT)
    norm, pool, train = measuring(split, 30)
    evaluator = Evaluator(pool, train, plain, (0, 1), 5, norm)
    w, b = split.initial(0)
    subs = {level: split.submodel(level, 1) for level in (0, 1)}
    model = pool.get(subs[0]).bound.model
    assert norm.size(model) == 0 and norm.measure(model, 0, 1).numel() == 0
    sums = evaluator.measure(evaluator.norm_units({0: 1.0, 1: 1.0})[0], subs, w, b, 1)
    units = evaluator.units({0: 1.0, 1: 1.0})[0]
    without = Evaluator(pool, train, plain, (0, 1), 5)
    assert torch.equal(
        evaluator.score(units, subs, w, b, 1, sums), without.score(units, subs, w, b, 1)
    )


@pytest.mark.parametrize("kind", ["static", "batch"])
def test_nothing_travels_where_nothing_is_kept(kind: str) -> None:
    """Every split keeps no buffers then, and has them with bn=aggregated."""
    levels = [[1, 1, 1], [2, 2, 2]]
    for make in (
        lambda bn: Whole(bn=bn, family=DEEP),
        lambda bn: Depth(levels, bn=bn, family=DEEP),
        lambda bn: Isolated(levels, bn=bn, family=DEEP),
        lambda bn: Inclusive(levels, bn=bn, family=DEEP),
        lambda bn: Width([0.5, 1.0], bn=bn, family=DEEP),
        lambda bn: Rolling([0.5, 1.0], bn=bn, family=DEEP),
        lambda bn: ScaleFL(bn=bn, family=DEEP),
    ):
        still, aggregated = make(kind), make("aggregated")
        assert still.buffers.numel == 0 and aggregated.buffers.numel > 0
        assert still.norm.kind == kind and still.params.numel == aggregated.params.numel
        assert torch.equal(still.initial(2)[0], aggregated.initial(2)[0])
        for level in range(len(still.names)):
            sub = still.submodel(level, 1)
            with torch.device("meta"):
                assert sub.buffers.layout.numel == 0 and not list(sub.build().buffers())
            assert aggregated.submodel(level, 1).buffers.layout.numel > 0


def test_kinds_that_are_not() -> None:
    for make in (
        lambda: Whole(bn="on", family=FAMILY),
        lambda: Depth([[1, 1]], bn="on", family=FAMILY),
    ):
        with pytest.raises(
            ConfigError, match=r"split\.bn=on: must be one of aggregated, static, batch"
        ):
            make()

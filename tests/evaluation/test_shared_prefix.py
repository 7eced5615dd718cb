"""Scoring levels that begin alike: the steps that they share are taken once, and every score has
the bits of scoring each level alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from support import TINY, TINY_VIT, settings_of
from torch import Tensor

import inco.assembly as wiring
import inco.evaluation.evaluator as evaluate
from inco.engine.ranks import Ranks
from inco.evaluation.shared_prefix import Nested, nested, steps_of
from inco.flat import Layout, Slice
from inco.models.base import PLAIN, Variant
from inco.models.resnet import ResNetFamily
from inco.models.vit import ViTFamily
from inco.splits.depth import Depth
from inco.types import Output

IMAGES = "dataset.num_test=40"


def scorer(monkeypatch: pytest.MonkeyPatch, *overrides: str):
    """A run's evaluator, its sub-models, and a server whose BatchNorm statistics matter; ten test
    images a batch.
    """
    monkeypatch.setattr(evaluate, "BATCH", 10)
    run = wiring.assemble(settings_of(*overrides, IMAGES), Ranks(0, 1, torch.device("cpu")))
    state = run.simulator.start(0)
    noise = torch.Generator().manual_seed(1)
    w = state.w + 0.05 * torch.randn(state.w.shape, generator=noise)
    b = state.b + 0.02 * torch.rand(state.b.shape, generator=noise)
    return run.evaluator, run.simulator.population.submodels(1), w, b


def alone(scorer: evaluate.Evaluator, *args: object) -> Tensor:
    """The table by one call a level, which has nothing to share."""
    units, _ = scorer.units(dict.fromkeys(scorer.levels, 1.0))
    return sum(
        scorer.score([unit for unit in units if unit[0] == level], *args) for level in scorer.levels
    )  # type: ignore[arg-type, return-value]


SHARING = [
    "split=stage",
    "split=stage model.projection_head=mlp",
    "split=stage local.precision=bf16",
    "split=stage split.bn=batch",
]


@pytest.mark.parametrize("base", [TINY, TINY_VIT])
@pytest.mark.parametrize("more", SHARING)
def test_same_bits_as_each_level_alone(
    monkeypatch: pytest.MonkeyPatch, base: Sequence[str], more: str
) -> None:
    if base is TINY_VIT and "bn" in more:
        pytest.skip("a ViT has no BatchNorm")
    words = more.replace("stage", "stage" if base is TINY else "layer").split()
    found, subs, w, b = scorer(monkeypatch, *base, *words)
    shared = found._shared(subs)
    assert shared is not None and sorted(shared.paths) == found.levels and len(found.levels) == 5
    units, _ = found.units(dict.fromkeys(found.levels, 1.0))
    table = found.score(units, subs, w, b, 1)
    assert torch.equal(table, alone(found, subs, w, b, 1)) and table[:, 1].tolist() == [40] * 5
    assert len(set(table[:, 2].tolist())) > 1, "levels differ"


def test_shared_steps_are_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, subs, w, b = scorer(monkeypatch, *TINY_VIT)
    shared, taken = found._shared(subs), Counter[str]()
    assert shared is not None
    model = found.pool.get(subs[shared.host]).bound.model
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: taken.update([name]))
    found.score(found.units(dict.fromkeys(found.levels, 1.0))[0], subs, w, b, 1)
    depths = sorted(len(path) - 2 for path in shared.paths.values())
    assert len(depths) == 5, "levels of five depths"
    assert {taken[f"blocks.{k}"] for k in range(depths[-1])} == {4} and taken["patch_embed"] == 4, (
        "four batches, each block once"
    )
    assert taken["head"] == 4 * 5, "and a classifier for each level"


@pytest.mark.full
@pytest.mark.parametrize(
    "more",
    ["split=none transform=none", "split=width", "split=rolling", "split=scalefl", "split=isolated", "split=inclusive",
     "split=stage split.bn=static", "split=stage capacity=all_large"],
)  # fmt: skip
def test_levels_with_other_weights_are_scored_alone(
    monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """Where weights, statistics or steps differ from the first step on, nothing is shared."""
    found, subs, _, _ = scorer(monkeypatch, *TINY, *more.split())
    assert found._shared(subs) is None


def test_levels_of_which_some_are_nested() -> None:
    """[1,1] is a path through [2,1]; [1,2] is not."""
    family = ResNetFamily([2, 2], [4, 8], stem="small", shape=(1, 8, 8), num_classes=3)
    split = Depth([[1, 1], [1, 2], [2, 1]], family=family)
    subs = {level: split.submodel(level, 0) for level in range(3)}
    for order in ((0, 1, 2), (0, 2, 1)):
        chosen = {level: subs[level] for level in order}
        found = nested(chosen, {level: sub.build() for level, sub in chosen.items()})
        assert found is not None and found.host == order[1] and set(found.paths) == {0, order[1]}


def test_frozen_parameters_are_each_models_own() -> None:
    split = Depth(
        [[1, 1], [2, 2]],
        family=ResNetFamily([2, 2], [4, 8], stem="small", shape=(1, 8, 8), num_classes=3),
    )
    subs = {level: split.submodel(level, 0) for level in range(2)}
    models = {level: sub.build() for level, sub in subs.items()}
    assert nested(subs, models) is not None
    for model in models.values():
        model.register_parameter("frozen", torch.nn.Parameter(torch.randn(3), requires_grad=False))
    assert nested(subs, models) is None


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_plan_gives_every_unit_to_one_worker(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    found, subs, w, b = scorer(monkeypatch, *TINY, "split=stage", "dataset.num_test=40")
    costs = {level: level + 1.0 for level in found.levels}
    plan = found.assignment(subs, costs, workers)
    units, _ = found.units(costs)
    assert sorted(unit for mine in plan for unit in mine) == sorted(units) and len(plan) == workers
    if workers == 8:
        assert all(plan), "four batches are too few for eight workers: levels are dealt out too"
    tables = [found.score(mine, subs, w, b, 1) for mine in plan]
    assert torch.equal(sum(tables), found.score(units, subs, w, b, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", [PLAIN, Variant(exits=(1,))])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_steps_one_after_the_other_are_the_forward_pass(kind: str, variant: Variant) -> None:
    family = (
        ResNetFamily([2, 2], [4, 8], shape=(3, 16, 16), num_classes=5)
        if kind == "resnet"
        else ViTFamily(3, 12, 3, 4, 16, 2.0, shape=(3, 16, 16), num_classes=5)
    )
    model, x = family.build(None, variant).eval(), torch.randn(4, 3, 16, 16)
    steps = steps_of(model)
    assert bool(steps) == (not variant.exits), (
        "early heads speak in training: such a model names no steps"
    )
    if steps:
        (_, walked), direct = next(Nested(0, {0: tuple(steps)}).outputs(steps, x, [0])), model(x)
        assert (
            isinstance(walked, Output)
            and torch.equal(direct.logits, walked.logits)
            and torch.equal(direct.features, walked.features)
        )


def test_where_a_tensor_starts() -> None:
    part = Layout.of({"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(2)})
    held = Slice(part, torch.tensor([4, 5, 6, 7, 8, 1, 12]))
    assert [held.start_of(e) for e in part.entries.values()] == [4, 7, None]
    moved = Slice(part, torch.tensor([4, 5, 9, 0, 1, 2, 3]))
    assert [moved.start_of(e) for e in part.entries.values()] == [None, 0, 2]

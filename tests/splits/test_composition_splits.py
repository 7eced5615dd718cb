"""The splits by width, by windows, by exits and with lessons: with every transform, capacity and
family, and what must hold for each.
"""

from __future__ import annotations

import pytest
import torch
from support import TINY, TINY_VIT, WIDE, WIDE_VIT, named, settings_of, simulate, thinned
from test_composition import check_run

from inco.assembly import assemble
from inco.data.dataset import Images
from inco.engine.ranks import Ranks
from inco.parts import problems as problems_of
from inco.run.summary import sizes

SPLITS = ("width", "rolling", "scalefl", "inclusive")


@pytest.mark.parametrize(
    ("split", "transform"), thinned(SPLITS, ("none", "inco", "no_optimization", "add_noise"))
)
def test_transforms(split: str, transform: str) -> None:
    check_run(*TINY, f"split={split}", f"transform={transform}")


@pytest.mark.parametrize(
    ("split", "transform", "base"),
    thinned(SPLITS, ("none", "inco"), (TINY_VIT, WIDE_VIT)),
    ids=named,
)
def test_vit(split: str, transform: str, base: tuple[str, ...]) -> None:
    check_run(*base, f"split={split}", f"transform={transform}")


@pytest.mark.parametrize(
    ("split", "capacity"), thinned(SPLITS, ("resampled", "all_small", "all_large"))
)
def test_capacities(split: str, capacity: str) -> None:
    check_run(*TINY, f"split={split}", f"capacity={capacity}")


@pytest.mark.parametrize(
    ("split", "bn"), thinned((*SPLITS, "none", "isolated"), ("aggregated", "static", "batch"))
)
def test_batch_norm(split: str, bn: str) -> None:
    check_run(
        *TINY,
        f"split={split}",
        f"split.bn={bn}",
        *(["split.bn_images=30"] if bn == "static" else []),
    )


@pytest.mark.full
@pytest.mark.parametrize(
    "more",
    [
        "split=width split.masked_loss=minus_inf",
        "split=width split.masked_loss=off split.scaler=false",
        (
            "split=width partition=labels partition.classes_per_client=1 algorithm=scaffold"
            " local=sgd local.momentum=0"
        ),
        "split=rolling split.window=backward",
        "split=rolling split.window=random algorithm=moon",
        "split=rolling split.overlap=0.5 split.weighting=width",
        "split=rolling capacity=resampled algorithm=feddyn",
        "split=scalefl split.gamma=0",
        (
            "split=scalefl split.exits=[2] split.levels=[[0.5,1],[1.0,2]] split.reduction=batchmean"
            " split.detach=true"
        ),
        "split=inclusive split.beta=0 split.levels=[[1,1,1,1],[2,2,2,2]]",
        "split=width local.max_grad_norm=1",
    ],
)
def test_settings(more: str) -> None:
    check_run(*TINY, *more.split())


@pytest.mark.parametrize("split", [*SPLITS, "stage"])
def test_inco_finds_pairs_and_acts(split: str) -> None:
    with_none, _, _ = simulate(*TINY, f"split={split}", "transform=none", rounds=1)
    with_inco, rows, run = simulate(*TINY, f"split={split}", "transform=inco", rounds=1)
    assert not torch.equal(with_none.w, with_inco.w) and any(
        key.startswith("inco/theta/") for key in rows[0]
    )
    for pair in run.simulator.transform.pairs:
        target, reference = (
            run.split.params.entries[name] for name in (pair.target, pair.reference)
        )
        assert target.shape == reference.shape and target.axes[2:] == reference.axes[2:]


def test_a_class_that_no_sampled_client_has_keeps_its_row() -> None:
    """One class a client, one client a round: the classifier's other rows stay, those of its class
    move.
    """
    state, _, run = simulate(
        *TINY,
        "split=width",
        "transform=none",
        "partition=labels",
        "partition.classes_per_client=1",
        "sample_ratio=0.2",
        rounds=1,
    )
    (task,) = run.simulator.population.tasks(1)
    assert task.classes is not None and int(task.classes.sum()) == 1
    moved = run.split.params.view(state.w != run.simulator.start(0).w, "fc.weight").any(1)
    assert torch.equal(moved, task.classes)
    off, _, _ = simulate(
        *TINY, "split=width", "split.masked_loss=off", "transform=none", "partition=labels", "partition.classes_per_client=1",
        "sample_ratio=0.2", rounds=1,
    )  # fmt: skip
    assert run.split.params.view(off.w != run.simulator.start(0).w, "fc.weight").any(1).all()


def test_costs_by_capacity_add_up() -> None:
    """Traffic of a round is the sum over capacities; BatchNorm's buffers travel where they are
    aggregated, and nowhere else.
    """
    for split, buffers in (("stage", True), ("width", False)):
        _, rows, run = simulate(*TINY, f"split={split}", rounds=1)
        for key in ("comm/up_bytes", "comm/down_bytes", "compute/flops"):
            parts = [value for name, value in rows[0].items() if name.startswith(f"{key}/")]
            assert len(parts) == 5 and sum(parts) == rows[0][key]
        assert (run.split.buffers.numel > 0) == buffers
        assert rows[0]["comm/up_bytes"] == sum(
            run.costs[t.level].up_bytes for t in run.simulator.population.tasks(1)
        )


@pytest.mark.parametrize(
    ("algorithm", "split", "transform", "base"),
    thinned(
        ("fedprox", "scaffold", "fednova", "moon", "feddyn"), SPLITS, ("none", "inco"), (TINY, WIDE)
    ),
    ids=named,
)
def test_every_algorithm(algorithm: str, split: str, transform: str, base: tuple[str, ...]) -> None:
    sgd = ("local=sgd", "local.momentum=0", "local.weight_decay=0", "local.lr=0.05")
    check_run(
        *base,
        *sgd,
        "sample_ratio=0.6",
        f"algorithm={algorithm}",
        f"split={split}",
        f"transform={transform}",
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            "split=width split.levels=[0.5,0.25]",
            "split.levels=[0.5, 0.25]: list the widths smallest first",
        ),
        ("split=rolling split.window=random split.overlap=0.5", "use split.overlap=null"),
        (
            "split=scalefl split.exits=[2,4]",
            "the published levels need three early exits; give split.levels",
        ),
        (
            "split=scalefl split.levels=[[1.0,4],[0.5,1]]",
            "list the levels smallest first, by exits",
        ),
        (
            "split=scalefl split.levels=[[0.5,1],[0.9,4]]",
            "the last level is the whole model; end with [1.0, 4]",
        ),
        (
            "split=inclusive split.levels=[[2,2,2,2],[1,1,3,3]]",
            "each level has at least the blocks of the one before it",
        ),
        ("split=isolated num_clients=3", "the split has 5 sizes"),
        ("split=scalefl num_clients=3", "the split has 4 sizes"),
        ("split=stage split.bn_images=100", "only split.bn=static measures images"),
        ("split=rolling split.weighting=width algorithm=feddyn", "use split.weighting=clients"),
        ("algorithm=moon capacity=resampled", "algorithm.allow_moving=true"),
        ("model=cnn split=inclusive", "use split=none, width or rolling"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(overrides: str, told: str) -> None:
    problems = problems_of(settings_of(*overrides.split()))
    assert len(problems) == 1 and told in problems[0]


@pytest.mark.full
def test_columns_of_the_papers_table() -> None:
    """Mean parameters a client, in millions, from a run's own summary; FLOPs are two a
    multiply-add, of images of 3x32x32.
    """
    shape = (
        "dataset=synthetic",
        "dataset.shape=[3,32,32]",
        "dataset.num_classes=10",
        "dataset.num_train=200",
        "dataset.num_test=50",
    )
    common = (*shape, "model=resnet26", "num_clients=20", "partition=iid", "transform=none")
    wanted = {
        "split=stage": (12.29, 74.0),
        "split=width": (4.65, None),
        "split=none": (17.45, 111.8),
        "split=width capacity=all_small": (0.07, None),
    }
    for split, (millions, flops) in wanted.items():
        found = sizes(
            assemble(settings_of(*common, *split.split()), Ranks(0, 1, torch.device("cpu")))
        )
        assert round(found["mean_params"] / 1e6, 2) == millions, split
        assert flops is None or round(found["mean_flops"] / 1e6, 1) == flops
        assert found["mean_up_bytes"] >= 4 * found["mean_params"]


@pytest.mark.full
def test_batch_statistics_do_not_depend_on_the_order_of_the_test_set() -> None:
    """Sorted by class, consecutive batches would show BatchNorm one class at a time."""
    settings = (
        "split=rolling",
        "dataset.num_test=600",
        "dataset.num_train=300",
        "local.epochs=3",
        "local.lr=0.01",
    )
    state, _, run = simulate(*TINY, *settings, rounds=6)
    evaluator, subs = run.evaluator, run.simulator.population.submodels(6)
    mixed = run.simulator.engine.evaluate(subs, state.w, state.b, 6)[4].accuracy
    order = evaluator.test.labels.argsort(stable=True)
    evaluator.test = Images(evaluator.test.images[order], evaluator.test.labels[order])
    by_class = run.simulator.engine.evaluate(subs, state.w, state.b, 6)[4].accuracy
    assert mixed > 50 and abs(by_class - mixed) < 5


def test_control_variates_of_absent_classes() -> None:
    """With everybody in every round, c is the mean of c_i over the clients that have the class,
    windows or none.
    """
    data = (
        "partition=labels",
        "partition.classes_per_client=1",
        "capacity=all_large",
        "sample_ratio=1",
        "transform=none",
    )
    for split in ("width", "rolling"):
        sgd = ("local=sgd", "local.momentum=0", "local.weight_decay=0")
        state, _, run = simulate(
            *TINY, *data, *sgd, "algorithm=scaffold", f"split={split}", rounds=1
        )
        tasks, subs = run.simulator.population.tasks(2), run.simulator.population.submodels(2)
        own = [(t, run.trainer.store.load(t, subs[t.level])["c_i"]) for t in tasks]
        rows = run.split.params.view(state.algorithm["c"], "fc.weight")
        for label in range(3):
            mine = [
                subs[4].params.layout.view(c, "fc.weight")[label]
                for t, c in own
                if t.classes[label]
            ]
            torch.testing.assert_close(rows[label], torch.stack(mine).mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("split", ["width", "rolling", "scalefl split.levels=[[0.5,4],[1.0,4]]"])
def test_projection_heads_of_narrow_models(split: str) -> None:
    check_run(*TINY, "model.projection_head=mlp", *f"split={split}".split())

"""docs/add_your_own.md: its files are written to a folder, its commands are run, and what it says
of each example is looked at.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, read_rows, settings_of, simulate, timeless
from torch import Tensor

from inco.assembly import assemble
from inco.engine.ranks import Ranks
from inco.errors import ConfigError, DataError, WorkerError
from inco.run.front import check

PAGE = (ROOT / "docs" / "add_your_own.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
FILES = {text.splitlines()[0].removeprefix("# "): text for language, text in BLOCKS if language}
COMMANDS = [
    line
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    if line.startswith("python run.py")
]
SYNTHETIC = (
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "dataset.num_classes=3",
    "dataset.num_train=60",
    "dataset.num_test=40",
)
NARROW = ("model.widths=[2,4,4,8]",)
CNN = ("model=small_cnn", "model.width=4")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder, with all files of the page."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def in_the_lab(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two variables of the page, and a working directory for `make_scans.py`."""
    monkeypatch.syspath_prepend(str(lab))
    monkeypatch.setenv("INCO_ALLOW_TARGETS", "mine")
    monkeypatch.chdir(lab)
    _forget()  # other tests have a `mine` of their own
    yield
    _forget()


def _forget() -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("mine", "make_scans", "test_sign")
    ]:
        del sys.modules[name]


def tiny(lab: Path, *overrides: str) -> tuple[str, ...]:
    """A command of the page, made small: two rounds of five clients."""
    own = [o for o in overrides if o.startswith(("dataset=", "model="))]
    made = SYNTHETIC if not any(o.startswith("dataset=") for o in own) else ()
    model = NARROW if not any(o.startswith("model=") for o in own) else ("model.width=4",)
    return (
        f"hydra.searchpath=[file://{lab}/conf]",
        "debug=tiny",
        *made,
        *model,
        "local.batch_size=8",
        *overrides,
    )


def run(lab: Path, *overrides: str) -> tuple[Any, list[dict[str, Any]], Any]:
    state, rows, assembly = simulate(*tiny(lab, *overrides))
    return state, timeless(rows), assembly


def build(lab: Path, *overrides: str) -> Any:
    return assemble(settings_of(*tiny(lab, *overrides)), Ranks(0, 1, torch.device("cpu")))


def same(one: Any, other: Any) -> bool:
    return torch.equal(one.w, other.w) and torch.equal(one.b, other.b)


def moved(split: Any, before: Tensor, after: Tensor) -> set[str]:
    """Return the blocks of a model in which something differs."""
    names = [
        n
        for n in split.params.entries
        if not torch.equal(split.params.view(before, n), split.params.view(after, n))
    ]
    return {".".join(n.split(".")[:2]) for n in names if n.split(".")[1].isdigit()}


# the page itself


def test_every_block_is_a_whole_short_file_with_a_name() -> None:
    named = [text for language, text in BLOCKS if language]
    assert len(FILES) == len(named) == 17 and len(COMMANDS) == 12
    for text in named:
        assert re.match(r"# [\w/]+\.(py|yaml)\n", text) and len(text.splitlines()) <= 50
    for name, text in FILES.items():
        target = (
            re.search(r"^_target_: (\S+)\.(\w+)$", text, re.M) if name.endswith(".yaml") else None
        )
        assert not target or f"class {target[2]}" in FILES[f"{target[1].replace('.', '/')}.py"]


def test_the_table_of_hooks_is_complete_and_in_order() -> None:
    from inco.algorithms.fedavg import Algorithm

    hooks = [n for n, v in vars(Algorithm).items() if callable(v) and not n.startswith("_")]
    told = re.findall(r"^\| `(\w+)\(", PAGE.split("### All hooks")[1].split("## A split")[0], re.M)
    assert set(told) == set(hooks)
    declared = [n for n, v in vars(Algorithm).items() if not callable(v) and not n.startswith("_")]
    assert all(f"| `{n}` |" in PAGE for n in (*declared, "weighting"))
    # called in the order that the table gives: record the first call of each
    called: list[str] = []
    settings = settings_of(
        "debug=tiny", *SYNTHETIC, *NARROW, "local.batch_size=8", "engine.workers=1"
    )
    assembly = assemble(settings, Ranks(0, 1, torch.device("cpu")))
    algorithm = assembly.simulator.algorithm
    algorithm.stateful = True
    for name in hooks:
        real = getattr(algorithm, name)
        setattr(
            algorithm, name, lambda *a, _real=real, _name=name: (called.append(_name), _real(*a))[1]
        )
    assembly.simulator.run(assembly.simulator.start(0), 1, ())
    assert ["conflicts", *dict.fromkeys(called)] == told, "the first is asked before a run is built"


def test_the_members_of_a_model_are_all_told() -> None:
    from inco.models.base import Family

    members = [
        *Family.__annotations__,
        *(n for n, v in vars(Family).items() if callable(v) and not n.startswith("_")),
    ]
    rows = " ".join(
        line.split("|")[1]
        for line in PAGE.split("## A model")[1].splitlines()
        if line.startswith("| `")
    )
    assert [m for m in members if m not in rows and m != "name"] == []


@pytest.mark.full
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page(lab: Path, command: str) -> None:
    importlib.import_module("make_scans")
    arguments = shlex.split(command.replace("~/lab", str(lab)))[2:]
    checked = check(ROOT / "conf", arguments)
    assert checked is not None and len(checked[0]) == (4 if "-m" in arguments else 1), (
        "the front door takes it as it is typed"
    )
    if "-m" not in arguments:
        _, rows, _ = run(lab, *[a for a in arguments if "=" in a])
        assert len(rows) == 2 and all(row["update/norm"] > 0 for row in rows)


# algorithms


@pytest.mark.full
def test_sign_from_the_command_line_resumed_with_more_workers(
    type_command, tmp_path: Path, lab: Path
) -> None:
    arguments = (
        "--config-dir",
        str(lab / "conf"),
        *tiny(lab, "algorithm=sign")[1:],
        "hydra.run.dir=own",
    )
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{lab}", "INCO_ALLOW_TARGETS": "mine"}
    for rounds in (1, 2):
        done = type_command(*arguments, f"rounds={rounds}", f"engine.workers={rounds}", env=env)
        assert done.returncode == 0, done.stderr
    at_once = run(lab, "algorithm=sign", "rounds=2")[1]
    assert timeless(read_rows(tmp_path / "own")) == at_once


def test_sign_sends_one_size_and_owes_the_rest(lab: Path) -> None:
    _, _, assembly = run(lab, "algorithm=sign", "split=none", "transform=none", "rounds=1")
    trainer, population = assembly.simulator.engine.trainer, assembly.simulator.population
    state = assembly.simulator.start(0)
    first = trainer(
        population.tasks(1)[0], population.submodels(1)[0], state.w, state.b, {}
    ).vectors["delta"]
    plain = build(lab, "algorithm=fedavg", "split=none").simulator
    meant = plain.engine.trainer(
        population.tasks(1)[0], population.submodels(1)[0], state.w, state.b, {}
    ).vectors["delta"]
    assert torch.equal(first.sign(), meant.sign()) and len(first[first != 0].abs().unique()) == 1
    kept = trainer.store.load(population.tasks(2)[0], population.submodels(2)[0])
    assert kept is not None and torch.allclose(first + kept["owed"], meant, atol=1e-7)


def test_the_test_of_the_page() -> None:
    importlib.import_module("test_sign").test_what_is_sent_and_what_is_owed()


def test_fedcm_at_one_is_fedavg_to_the_bit_and_else_not(lab: Path) -> None:
    plain = ("local=sgd", "local.momentum=0", "rounds=2")
    fedavg, rows, assembly = run(lab, "algorithm=fedavg", *plain)
    at_one, own, _ = run(lab, "algorithm=fedcm", "algorithm.alpha=1", *plain)
    assert same(fedavg, at_one)
    vector = sum(4 * assembly.costs[t.level].params for t in assembly.simulator.population.tasks(1))
    assert (
        own[0]["comm/down_bytes"] == rows[0]["comm/down_bytes"] + vector
        and own[0]["comm/up_bytes"] == rows[0]["comm/up_bytes"]
    )
    assert not same(fedavg, run(lab, "algorithm=fedcm", *plain)[0])


def test_fedcm_mixes_in_the_last_step(lab: Path) -> None:
    """With (almost) no weight on its own gradient and equal clients, every client repeats the last
    round's step.
    """
    settings = (
        "algorithm=fedcm",
        "split=none",
        "transform=none",
        "local=sgd",
        "local.momentum=0",
        "local.weight_decay=0",
        "rounds=1",
    )
    state, _, assembly = run(lab, *settings)
    first = state.w - assembly.simulator.start(0).w
    assembly.simulator.algorithm.alpha = 1e-9
    before = state.w.clone()
    assembly.simulator.run(state, 2, ())
    steps = assembly.simulator.engine.trainer.steps(12)  # 60 examples among 5 clients
    assert steps == 2 and torch.allclose(state.algorithm["count"], torch.full_like(before, 2.0))
    assert torch.allclose(state.w - before, first, atol=1e-6) and first.abs().max() > 1e-4


def test_fedexp_takes_the_step_of_its_formula(lab: Path) -> None:
    """From the deltas of a round's clients, trained anew by FedAvg; noise changes the deltas and
    leaves the number alone.
    """
    settings = (
        "split=stage",
        "transform=none",
        "local=sgd",
        "local.lr=0.5",
        "partition=labels",
        "partition.classes_per_client=1",
        "rounds=1",
    )
    state, rows, _ = run(lab, "algorithm=fedexp", *settings)
    plain, others, fedavg = run(lab, "algorithm=fedavg", "algorithm.weighting=uniform", *settings)
    first = fedavg.simulator.start(0)
    squares = []
    for task in fedavg.simulator.population.tasks(1):
        sub = fedavg.split.submodel(task.level, 1)
        delta = fedavg.trainer(task, sub, first.w, first.b, {}).vectors["delta"]
        squares.append(delta.double().square().sum().item())
    mean = plain.w.double() - first.w.double()
    step = max(1, sum(squares) / len(squares) / (2 * (mean.square().sum().item() + 1e-3)))
    assert step > 1.01
    torch.testing.assert_close(state.w.double(), first.w + step * mean, rtol=0, atol=1e-6)
    numbers = 4 * len(squares)
    assert rows[0]["comm/up_bytes"] == others[0]["comm/up_bytes"] + numbers


def test_numbers_pass_the_uplink_as_they_are(lab: Path) -> None:
    settings = ("algorithm=fedexp", "transform=none")
    clean = build(lab, *settings)
    noisy = build(lab, *settings, "uplink=noise")
    sent = []
    for assembly in (clean, noisy):
        start = assembly.simulator.start(0)
        task = assembly.simulator.population.tasks(1)[0]
        sub = assembly.split.submodel(task.level, 1)
        sent.append(assembly.trainer(task, sub, start.w, start.b, {}).vectors)
    assert torch.equal(sent[0]["square"], sent[1]["square"])
    assert not torch.equal(sent[0]["delta"], sent[1]["delta"])


def test_uploads_that_are_not_as_declared_are_refused(lab: Path) -> None:
    assembly = build(lab, "algorithm=fedexp")
    algorithm = assembly.simulator.algorithm
    algorithm.local_end = lambda run: {"delta": run.w - run.w0, "square": run.w}
    with pytest.raises(
        WorkerError, match=r"uploads of these shapes: .*'square': \(\d+,\).*'square': \(1,\)}"
    ):
        assembly.simulator.round(assembly.simulator.start(0))


@pytest.mark.parametrize(
    "setting", ["algorithm=fedcm algorithm.alpha=0", "transform=top_k transform.share=2"]
)
def test_constructors_refuse(lab: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
        build(lab, *setting.split())


# splits


def test_spread_with_the_whole_model_alone_is_no_split(lab: Path) -> None:
    whole = run(lab, "split=spread", "split.levels=[[3,3,3,3]]", "rounds=1")[0]
    assert same(whole, run(lab, "split=none", "rounds=1")[0])


@pytest.mark.parametrize(("keep", "held"), [(1, {0}), (2, {0, 2}), (3, {0, 1, 2})])
def test_only_the_blocks_that_are_spread_move(lab: Path, keep: int, held: set[int]) -> None:
    state, _, assembly = run(
        lab,
        "split=spread",
        f"split.levels=[[{keep},{keep},{keep},{keep}]]",
        "transform=none",
        "rounds=1",
    )
    assert moved(assembly.split, assembly.split.initial(0)[0], state.w) == {
        f"layer{s}.{b}" for s in range(1, 5) for b in held
    }


def test_spread_cuts_what_it_says(lab: Path) -> None:
    split = build(lab, "split=spread", "model.blocks=[6,6,6,6]", "split.levels=[[3,3,3,3]]").split
    sub, w = split.submodel(0, 1), torch.arange(split.params.numel, dtype=torch.float64)
    own = sub.params.gather(w, torch.empty(sub.params.layout.numel, dtype=torch.float64))
    for small, large in ((0, 0), (1, 2), (2, 5)):  # "of six blocks, three are numbers 0, 2 and 5"
        name = "layer2.{}.conv2.weight"
        assert torch.equal(
            sub.params.layout.view(own, name.format(small)),
            split.params.view(w, name.format(large)),
        )
    assert (
        len(set(sub.params.index.tolist())) == sub.params.layout.numel
        and sub.buffers.layout.numel > 0
    )


def test_spread_cuts_a_model_of_another_family_too(lab: Path) -> None:
    state, _, assembly = run(
        lab, "model=small_cnn", "split=spread", "split.levels=[[2,2]]", "transform=none", "rounds=1"
    )
    assert moved(assembly.split, assembly.split.initial(0)[0], state.w) == {
        "low.0",
        "low.2",
        "high.0",
        "high.2",
    }


# transforms


def test_top_k_keeps_the_largest_of_each_tensor(lab: Path) -> None:
    assembly = build(lab, "transform=top_k", "transform.share=0.25")
    layout, update = (
        assembly.split.params,
        torch.randn(assembly.split.params.numel, generator=torch.Generator().manual_seed(1)),
    )
    before = update.clone()
    new, metrics = assembly.simulator.transform(update)
    assert torch.equal(update, before), "the update is left as it was"
    for name, entry in layout.entries.items():
        old, kept = layout.view(update, name), layout.view(new, name)
        assert int((kept != 0).sum()) == -(-entry.numel // 4) and torch.equal(
            kept[kept != 0], old[kept != 0]
        )
        assert (
            old[kept == 0].abs().max() <= kept[kept != 0].abs().min() if (kept == 0).any() else True
        )
    assert metrics["top_k/nonzero"] == pytest.approx(25, abs=2)


def test_top_k_of_everything_is_no_transform(lab: Path) -> None:
    state, rows, _ = run(lab, "transform=top_k", "transform.share=1", "rounds=1")
    assert same(state, run(lab, "transform=none", "rounds=1")[0]) and "top_k/nonzero" in rows[0]


# datasets


def test_scans_are_made_checked_and_learnt(
    lab: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    importlib.import_module("make_scans")
    settings = (
        "dataset=scans",
        "model=small_cnn",
        "split=stage",
        "split.levels=[[1,1],[3,3]]",
        "rounds=6",
        "local.lr=0.01",
    )
    _, rows, assembly = run(lab, *settings)
    assert (
        assembly.dataset.classes == ("healthy", "ill") and len(assembly.dataset.train.labels) == 60
    )
    assert rows[-1]["test/acc"] > 80  # measured: 100; guessing gives 50
    recipe = assembly.simulator.engine.trainer.transform
    assert recipe(assembly.dataset.train.images[:2], torch.Generator()).shape == (2, 1, 12, 12)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"(?s)dataset=scans: the data is not there.*python make_scans.py"
    ):
        build(lab, *settings)


def test_scans_at_the_size_that_a_model_asks_for(lab: Path) -> None:
    importlib.import_module("make_scans")
    _, rows, assembly = run(lab, "dataset=scans", "model.image_size=16", "rounds=1")
    images = assembly.simulator.engine.trainer.transform(
        assembly.dataset.train.images[:2], torch.Generator()
    )
    assert images.shape == (2, 1, 16, 16) and rows[0]["train/loss"] > 0


# models


def test_split_stage_finds_the_blocks_of_the_cnn(lab: Path) -> None:
    state, rows, assembly = run(
        lab, *CNN, "split=stage", "split.levels=[[1,1],[2,2],[3,3]]", "transform=inco", "rounds=1"
    )
    assert assembly.split.names == ("cnn5", "cnn7", "cnn9") and {
        "test/acc/cnn5",
        "test/acc/cnn9",
    } <= set(rows[0])
    assert {"inco/theta/low.1.conv", "inco/theta/high.2.conv"} <= set(rows[0])
    assert assembly.costs[0].up_bytes < assembly.costs[1].up_bytes < assembly.costs[2].up_bytes
    small = assembly.split.submodel(0, 1)
    assert set(small.params.layout.entries) == {
        n for n in assembly.split.params.entries if ".1." not in n and ".2." not in n
    }
    assert moved(assembly.split, assembly.split.initial(0)[0], state.w) == {
        f"{g}.{b}" for g in ("low", "high") for b in range(3)
    }


def test_a_small_cnn_is_the_global_one_without_its_last_blocks(lab: Path) -> None:
    """Zero the convolutions of the blocks that it leaves out: both give the same logits."""
    assembly = build(lab, *CNN, "split=stage", "split.levels=[[1,1],[3,3]]")
    split, x = assembly.split, torch.randn(2, 1, 8, 8)
    w, _ = split.initial(0)
    for name in split.params.entries:
        if ".1." in name or ".2." in name:
            split.params.view(w, name).zero_()
    logits = []
    for level in (0, 1):
        sub = split.submodel(level, 1)
        own, model = sub.params.gather(w, torch.empty(sub.params.layout.numel)), sub.build()
        model.load_state_dict(sub.params.layout.views(own))
        logits.append(model(x).logits)
    assert torch.equal(*logits)


def test_the_channels_of_the_cnn_are_named(lab: Path) -> None:
    """Equal names are equal sizes, over all tensors: what a split that cuts channels relies on."""
    split, sizes = build(lab, *CNN, "split=isolated").split, {}
    for entry in split.params.entries.values():
        assert len(entry.axes) == len(entry.shape) and entry.axes[0] is not None
        for axis, size in zip(entry.axes, entry.shape, strict=True):
            assert axis is None or sizes.setdefault(axis, size) == size
    assert sizes == {"image": 1, "low": 4, "high": 8, "classes": 3} and split.names == (
        "cnn5",
        "cnn7",
        "cnn9",
    )


def test_too_many_blocks_for_the_cnn_are_refused(lab: Path) -> None:
    with pytest.raises(ConfigError, match=r"split.levels has an entry \[4, 4\] for model=cnn9"):
        build(lab, *CNN, "split=stage", "split.levels=[[1,1],[4,4]]")


@pytest.mark.parametrize("bn", ["static", "batch"])
def test_a_model_that_knows_depth_alone_can_be_scored_in_every_way(lab: Path, bn: str) -> None:
    """It has no BatchNorm, so all ways are one."""
    plain, _, _ = run(lab, *CNN, "split=none", "rounds=1")
    other, _, _ = run(lab, *CNN, "split=none", f"split.bn={bn}", "rounds=1")
    assert same(plain, other)


def test_a_model_without_groups_says_that_it_cannot_be_cut(lab: Path) -> None:
    with pytest.raises(
        ConfigError, match="names no channels that can be cut; use split=stage or isolated"
    ):
        build(lab, *CNN, "split=width")

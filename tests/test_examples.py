"""The examples for code of one's own: HeteroFL's average with InCo after it, and Flower strategies
against the library call by hand.

`examples/state_dict_inco.py` is run in test_cross_layer.py. Tests with Flower are skipped where
flwr is not installed.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import ROOT
from torch import Tensor, nn

import inco

State = dict[str, Tensor]


def example(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / name)))


@pytest.fixture(scope="module")
def heterofl() -> SimpleNamespace:
    return example("heterofl_inco.py")


@pytest.fixture(scope="module")
def flower() -> SimpleNamespace:
    pytest.importorskip("flwr.serverapp.strategy", reason="Flower's strategies need flwr")
    return example("flower_inco.py")


def by_hand(old: State, new: State, **options: Any) -> State:
    update = inco.cross_layer_gradients({name: new[name] - old[name] for name in old}, **options)
    return {name: old[name] + update[name] for name in old}


def moved(state: State, seed: int) -> State:
    """What a client might send: every float a little elsewhere, every counter one step on."""
    torch.manual_seed(seed)
    return {
        name: t + (0.01 * torch.randn(t.shape) if t.is_floating_point() else 1)
        for name, t in state.items()
    }


def mean(uploads: dict[int, State]) -> State:
    """FedAvg by hand: uploads by their number of examples."""
    return {
        name: sum(n * u[name] for n, u in uploads.items()) / sum(uploads)
        for name in next(iter(uploads.values()))
    }


# --- HeteroFL


def test_heterofl_average_by_hand(heterofl: SimpleNamespace) -> None:
    old = {"conv": torch.zeros(4, 4)}
    new = heterofl.scatter_average(
        old, [{"conv": torch.full((2, 2), 1.0)}, {"conv": torch.full((3, 3), 3.0)}]
    )
    assert new["conv"].tolist() == [[2, 2, 3, 0], [2, 2, 3, 0], [3, 3, 3, 0], [0, 0, 0, 0]]


def test_heterofl_leaves_alone_what_nobody_holds(heterofl: SimpleNamespace) -> None:
    old = heterofl.SmallResNet(16).state_dict()
    half = heterofl.SmallResNet(8).state_dict()
    after = heterofl.with_inco(old, heterofl.scatter_average(old, [half]))
    for name, value in after.items():
        held = torch.zeros(value.shape, dtype=torch.bool)
        held[heterofl.corner(half[name].shape)] = True
        assert torch.equal(value[~held], old[name][~held]), name


def test_heterofl_applies_inco_to_the_update(heterofl: SimpleNamespace) -> None:
    old = heterofl.SmallResNet(8).state_dict()
    new = moved(old, seed=1)
    after = heterofl.with_inco(old, new)
    targets = {pair.target for pair in inco.cross_layer_pairs(old)}
    assert len(targets) == 8
    for name, value in by_hand(old, new).items():
        assert torch.equal(after[name], value), name
        assert torch.allclose(value, new[name], atol=1e-6) == (name not in targets), name


def test_heterofl_runs(heterofl: SimpleNamespace) -> None:
    plain, mixed = heterofl.simulate(False, rounds=2), heterofl.simulate(True, rounds=2)
    assert len(plain) == len(mixed) == 2
    assert plain != mixed
    assert all(0.1 < value <= 1 for value in plain + mixed)


# --- Flower


@pytest.fixture
def model(heterofl: SimpleNamespace) -> nn.Module:
    """A ResNet whose pairs are found by name; the norm behind it has statistics and an integer
    counter.
    """
    torch.manual_seed(0)
    return nn.ModuleDict({"body": heterofl.SmallResNet(4), "norm": nn.BatchNorm1d(10)})


def fit_results(uploads: dict[int, State]) -> list:
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    return [
        (
            None,
            FitRes(
                Status(Code.OK, ""),
                ndarrays_to_parameters([t.numpy() for t in upload.values()]),
                examples,
                {},
            ),
        )
        for examples, upload in uploads.items()
    ]


def tensors(parameters: Any) -> list[Tensor]:
    from flwr.common import parameters_to_ndarrays

    return [torch.from_numpy(array) for array in parameters_to_ndarrays(parameters)]


@pytest.mark.parametrize("options", [{}, {"rule": "algorithm1", "pairs": "paper"}, {"clip": 1e-3}])
def test_flower_equals_the_library_call(
    flower: SimpleNamespace, model: nn.Module, options: dict
) -> None:
    state = {name: t.clone() for name, t in model.state_dict().items()}
    floats = [name for name, t in state.items() if t.is_floating_point()]
    strategy = flower.InCoFedAvg(model, options)
    for number in (1, 2):  # the second round starts from the result of the first
        uploads = {10 * k: moved(state, seed=10 * number + k) for k in (1, 2)}
        got = dict(
            zip(
                state,
                tensors(strategy.aggregate_fit(number, fit_results(uploads), [])[0]),
                strict=True,
            )
        )
        average = mean(uploads)
        want = by_hand(state, average, **options)
        torch.testing.assert_close(
            {n: got[n] for n in floats}, {n: want[n] for n in floats}, rtol=1e-4, atol=2e-6
        )
        assert [t.dtype for t in got.values()] == [t.dtype for t in state.values()]
        assert not torch.allclose(
            got["body.layer1.1.conv1.weight"], average["body.layer1.1.conv1.weight"], atol=1e-4
        )
        state = got


def test_flower_without_pairs_is_fedavg(flower: SimpleNamespace, model: nn.Module) -> None:
    from flwr.server.strategy import FedAvg

    uploads = {examples: moved(model.state_dict(), seed=examples) for examples in (3, 5)}
    ours, _ = flower.InCoFedAvg(model, {"pairs": ()}).aggregate_fit(1, fit_results(uploads), [])
    theirs, _ = FedAvg().aggregate_fit(1, fit_results(uploads), [])
    torch.testing.assert_close(tensors(ours), tensors(theirs), rtol=0, atol=1e-6)


def test_flower_without_results_keeps_the_model(flower: SimpleNamespace, model: nn.Module) -> None:
    strategy = flower.InCoFedAvg(model)
    assert strategy.aggregate_fit(1, [], []) == (None, {})
    for name, value in model.state_dict().items():
        assert torch.equal(strategy.state[name], value)


@pytest.mark.parametrize("options", [{}, {"pairs": ()}])
def test_flower_by_messages_equals_the_library_call(
    flower: SimpleNamespace, model: nn.Module, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg

    # it makes messages, which only a run of Flower's can
    monkeypatch.setattr(FedAvg, "configure_train", lambda *_: [])
    state = model.state_dict()
    uploads = {examples: moved(state, seed=examples) for examples in (3, 5)}
    strategy = flower.InCoMessageFedAvg(options)
    strategy.configure_train(1, ArrayRecord(state), ConfigRecord(), grid=None)
    contents = [
        RecordDict(
            {"arrays": ArrayRecord(upload), "metrics": MetricRecord({"num-examples": examples})}
        )
        for examples, upload in uploads.items()
    ]
    replies = [SimpleNamespace(content=content, has_error=lambda: False) for content in contents]
    got = strategy.aggregate_train(1, replies)[0].to_torch_state_dict()
    want = by_hand(state, mean(uploads), **options)
    assert list(got) == list(want)
    for name, value in got.items():
        assert value.dtype == state[name].dtype
        torch.testing.assert_close(value, want[name].to(value.dtype), rtol=1e-4, atol=2e-6)
    assert strategy.aggregate_train(2, [])[0] is None


def test_flower_trains(flower: SimpleNamespace) -> None:
    curve = flower.simulate(flower.make_strategy(flower.PAIRS), rounds=3)
    assert len(curve) == 3
    assert curve[-1] > 0.25


@pytest.mark.full
def test_flower_missing_is_one_line() -> None:
    script = str(ROOT / "examples" / "flower_inco.py")
    code = (
        f"import runpy, sys; sys.modules['flwr'] = None; runpy.run_path({script!r},"
        " run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install flwr" in done.stderr

"""Server optimizers: equal to a plain scalar loop, bitwise the degenerate ones, and still where
nobody has sent anything.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inco.config.targets import build
from inco.errors import ConfigError
from inco.server import optim
from inco.server.optim import SGD, Adagrad, Adam, Average, Yogi

CONF = Path(__file__).parents[2] / "conf" / "server"
# with settings other than the defaults, so that none can be mistaken for another
MADE: dict[str, Callable[[], Any]] = {
    "average": Average,
    "sgd": lambda: SGD(lr=0.5),
    "momentum": lambda: SGD(lr=0.5, momentum=0.8),
    "adam": lambda: Adam(lr=0.05, beta1=0.7, beta2=0.95, tau=0.01),
    "yogi": lambda: Yogi(lr=0.05, beta1=0.7, beta2=0.95, tau=0.01),
    "adagrad": lambda: Adagrad(lr=0.05, beta1=0.3, tau=0.01),
}
HEAVY = ["momentum", "adam", "yogi", "adagrad"]


def scalar(name: str, w: float, updates: list[float | None]) -> tuple[float, float, float]:
    """One coordinate in Python's arithmetic, after the papers; None: nobody held it.

    Returns w, m and v.
    """
    m, v = 0.0, 0.01**2
    for d in updates:
        if d is None:
            continue
        match name:
            case "average":
                w = w + d
            case "sgd":
                w = w + 0.5 * d
            case "momentum":
                m = 0.8 * m + d
                w = w + 0.5 * m
            case _:
                beta1 = 0.3 if name == "adagrad" else 0.7
                m = beta1 * m + (1 - beta1) * d
                if name == "adam":
                    v = 0.95 * v + 0.05 * d**2
                elif name == "yogi":
                    v = v - 0.05 * d**2 * ((v > d**2) - (v < d**2))
                else:
                    v = v + d**2
                w = w + 0.05 * m / (math.sqrt(v) + 0.01)
    return w, m, v


def run(
    optimizer: Any, w: Tensor, rounds: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    w = w.clone()
    state = optimizer.init(w)
    for update, covered in rounds:
        assert optimizer.step(w, update, covered, state) is None
    return w, state


def problem(size: int, rounds: int, seed: int = 0) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    stream = torch.Generator().manual_seed(seed)
    w = torch.randn(size, generator=stream, dtype=torch.float64)
    out = []
    for _ in range(rounds):
        covered = torch.rand(size, generator=stream) < 0.7
        # squares on both sides of v, which decides Yogi's sign
        update = torch.randn(size, generator=stream, dtype=torch.float64) * 10 ** torch.randint(
            -4, 1, (size,), generator=stream
        )
        out.append((update * covered, covered))
    return w, out


def test_two_steps_by_hand() -> None:
    """The first coordinate of w = 1 with updates 0.1, then 0.2, worked out on paper from Algorithm
    2 with lr = tau = 0.1.
    """
    rounds = [
        (torch.full((1,), d, dtype=torch.float64), torch.ones(1, dtype=torch.bool))
        for d in (0.1, 0.2)
    ]
    one = torch.ones(1, dtype=torch.float64)
    settings = dict(lr=0.1, beta1=0.5, tau=0.1)
    # m = 0.05, 0.125. v: Adam 0.01 -> 0.01 -> 0.025, Yogi 0.01 (sign 0) -> 0.01 -> 0.03, Adagrad
    # 0.01 -> 0.02 -> 0.06
    expected = {
        Adam: 1 + 0.1 * 0.05 / 0.2 + 0.1 * 0.125 / (0.025**0.5 + 0.1),
        Yogi: 1 + 0.1 * 0.05 / 0.2 + 0.1 * 0.125 / (0.03**0.5 + 0.1),
        Adagrad: 1 + 0.1 * 0.05 / (0.02**0.5 + 0.1) + 0.1 * 0.125 / (0.06**0.5 + 0.1),
    }
    for kind, value in expected.items():
        made = kind(**settings) if kind is Adagrad else kind(beta2=0.5, **settings)
        assert run(made, one, rounds)[0].item() == pytest.approx(value, rel=1e-12)
    # m = 0.1, then 0.25
    assert run(SGD(lr=2.0, momentum=0.5), one, rounds)[0].item() == pytest.approx(
        1 + 0.2 + 0.5, rel=1e-12
    )


@pytest.mark.parametrize("block", [7, 1 << 18])
@pytest.mark.parametrize("name", MADE)
def test_scalar_loop(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optim._BLOCK, "cpu", block)
    w, rounds = problem(40, 6)
    got, state = run(MADE[name](), w, rounds)
    for i in range(len(w)):
        updates = [u[i].item() if c[i] else None for u, c in rounds]
        w_i, m_i, v_i = scalar(name, w[i].item(), updates)
        assert got[i].item() == pytest.approx(w_i, rel=1e-12, abs=1e-14)
        assert "m" not in state or state["m"][i].item() == pytest.approx(m_i, rel=1e-12, abs=1e-14)
        assert "v" not in state or state["v"][i].item() == pytest.approx(v_i, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", MADE)
def test_float32_is_close(name: str) -> None:
    w, rounds = problem(1000, 6)
    exact, _ = run(MADE[name](), w, rounds)
    got, state = run(MADE[name](), w.float(), [(u.float(), c) for u, c in rounds])
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-6)
    assert all(v.dtype == torch.float32 and v.shape == w.shape for v in state.values())


def test_sgd_degenerates_to_average_bitwise() -> None:
    w, rounds = problem(5000, 4)
    w, rounds = w.float(), [(u.float(), c) for u, c in rounds]
    plain, none = run(Average(), w, rounds)
    same, nothing = run(SGD(lr=1.0, momentum=0.0), w, rounds)
    assert torch.equal(plain.view(torch.int32), same.view(torch.int32))
    assert none == nothing == {}


def test_start() -> None:
    w = torch.ones(3)
    assert torch.equal(SGD(momentum=0.5).init(w)["m"], torch.zeros(3))
    for kind in (Adam, Yogi, Adagrad):
        state = kind(tau=0.1).init(w)
        assert list(state) == ["m", "v"]
        assert torch.equal(state["m"], torch.zeros(3)) and torch.equal(
            state["v"], torch.full((3,), 0.1**2)
        )


@pytest.mark.parametrize("name", HEAVY)
def test_uncovered_stays(name: str) -> None:
    optimizer = MADE[name]()
    stream = torch.Generator().manual_seed(3)
    w = torch.randn(50, generator=stream)
    w[0] = -0.0  # a sum with zero would turn it into 0.0
    state = optimizer.init(w)
    everyone = torch.ones(50, dtype=torch.bool)
    # momentum that would go on
    optimizer.step(w, torch.randn(50, generator=stream), everyone, state)
    w[0] = -0.0
    before, memory = w.clone(), {k: v.clone() for k, v in state.items()}
    where = {k: v.data_ptr() for k, v in state.items()} | {"w": w.data_ptr()}
    covered = torch.arange(50) % 3 == 1
    update = torch.randn(50, generator=stream) * covered
    sent = update.clone()
    optimizer.step(w, update, covered, state)
    for old, new in [(before, w), *((memory[k], state[k]) for k in state)]:
        assert torch.equal(old.view(torch.int32)[~covered], new.view(torch.int32)[~covered])
        assert (old != new)[covered].all()
    assert where == {k: v.data_ptr() for k, v in state.items()} | {"w": w.data_ptr()}, "in place"
    assert torch.equal(update, sent)


@pytest.mark.parametrize("name", MADE)
def test_absence_is_no_round(name: str) -> None:
    """Rounds in which nobody holds a coordinate are, for that coordinate, no rounds at all."""
    w, rounds = problem(64, 3)
    everyone, nobody = torch.ones(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
    dense = [(u, everyone) for u, _ in rounds]
    gaps = [
        row
        for round in dense
        for row in ((torch.zeros_like(w), nobody), round, (torch.zeros_like(w), nobody))
    ]
    got, state = run(MADE[name](), w, gaps)
    expected, kept = run(MADE[name](), w, dense)
    assert torch.equal(got, expected)
    assert all(torch.equal(state[k], kept[k]) for k in kept)


@pytest.mark.parametrize("name", MADE)
def test_descends_a_quadratic(name: str) -> None:
    curvature = torch.logspace(-1, 0, 20)
    w = torch.ones(20)
    optimizer = MADE[name]()
    state = optimizer.init(w)
    losses = []
    for _ in range(150):
        losses.append((0.5 * curvature * w * w).sum().item())
        optimizer.step(w, -0.2 * curvature * w, torch.ones(20, dtype=torch.bool), state)
    assert losses[-1] < 0.05 * losses[0]
    assert losses[20] < losses[0]


def test_yogi_differs_from_adam_only_in_v() -> None:
    """Their second moments agree where v = D^2 / 2 and nowhere else; from equal v, Yogi moves by
    exactly (1 - beta2) D^2.
    """
    v, square = torch.tensor([4.0, 1.0, 9.0]), torch.tensor([1.0, 4.0, 9.0])
    assert Yogi(beta2=0.75)._second(v, square.clone()).tolist() == [3.75, 2.0, 9.0]
    assert Adam(beta2=0.75)._second(v, square.clone()).tolist() == [3.25, 1.75, 9.0]
    assert v.tolist() == [4.0, 1.0, 9.0]


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (SGD, {"lr": 0}, ["server.lr=0: must be above 0"]),
        (SGD, {"lr": math.inf}, ["server.lr=inf:"]),
        (SGD, {"momentum": 1}, ["server.momentum=1: must be in [0, 1)"]),
        (
            Adam,
            {"lr": -1.0, "beta1": 1.0, "beta2": -0.1, "tau": 0.0},
            ["server.lr=-1", "server.beta1=1", "server.beta2=-0.1", "server.tau=0"],
        ),
        (Yogi, {"beta2": math.nan}, ["server.beta2=nan"]),
        (Adagrad, {"tau": True, "beta1": "0.9"}, ["server.beta1=0.9", "server.tau=True"]),
    ],
)
def test_errors(kind: type, settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        kind(**settings)
    assert len(raised.value.problems) == len(named)
    for problem, start in zip(raised.value.problems, named, strict=True):
        assert problem.startswith(start) and ": must be " in problem


@pytest.mark.parametrize(
    ("name", "kind"),
    [("average", Average), ("sgd", SGD), ("adam", Adam), ("yogi", Yogi), ("adagrad", Adagrad)],
)
def test_yaml_holds_the_defaults(name: str, kind: type) -> None:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    made = build("server", node)
    assert type(made) is kind and vars(made) == vars(kind()) == {
        k: v for k, v in node.items() if k != "_target_"
    }

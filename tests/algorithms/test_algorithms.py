"""Base algorithms by hand: published test vectors (algorithms.md, T4, T5 and T10), fixed points on
two quadratic clients where the joint optimum is known, coordinates that nobody holds, and settings
that are refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inco.algorithms.fedavg import Algorithm, FedAvg
from inco.algorithms.feddyn import FedDyn
from inco.algorithms.fednova import FedNova, normaliser
from inco.algorithms.fedprox import FedProx
from inco.algorithms.moon import Moon
from inco.algorithms.scaffold import Scaffold
from inco.errors import ConfigError
from inco.types import Aggregate, ClientTask, LocalRun, Upload, Weighting


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run_of(
    w0: Tensor,
    w: Tensor | None = None,
    lr: float = 0.1,
    steps: int = 0,
    momentum: float = 0.0,
    level: int = 0,
) -> LocalRun:
    w = w0.clone() if w is None else w
    none = torch.zeros(0)
    task = ClientTask(0, 1, level, torch.arange(1))
    return LocalRun(
        task, nn.Identity(), w0, w, torch.zeros_like(w), lr, momentum, b0=none, b=none, steps=steps
    )


def aggregate_of(covered: Tensor, participation: Tensor, **mean: Tensor) -> Aggregate:
    return Aggregate(mean, covered, torch.zeros(0, dtype=torch.bool), (), lambda: participation)


def close(found: Tensor | float, expected: Sequence[float] | float, within: float = 5e-9) -> None:
    wanted = (
        f64(*expected)
        if isinstance(expected, Sequence)
        else torch.tensor(expected, dtype=torch.float64)
    )
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), wanted, rtol=0, atol=within
    )


@dataclass
class Cohort:
    """A plan and its averages, written out: `held` says which coordinates each client holds."""

    steps: tuple[int, ...]
    examples: tuple[int, ...]
    held: Tensor  # bool [clients, P]
    momentum: float = 0.0

    def weights(self, weighting: Weighting) -> Tensor:
        """Each client's part of the mean at each coordinate, [clients, P]; 0 where nobody holds
        it.
        """
        raw = torch.tensor(
            self.examples if weighting == "examples" else [1] * len(self.examples),
            dtype=torch.float64,
        )
        held = self.held * raw[:, None]
        return held / held.sum(0).clamp_min(1e-300)

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        return (self.weights(weighting) * f64(*numbers)[:, None]).sum(0)


# FedNova: T4, T4b


@pytest.mark.parametrize(
    "momentum, a, d, mean, tau_eff, after",
    [
        (0.0, (2, 6), (0.3, 0.2), 0.225, 5.0, -0.125),
        (0.9, (2.9, 17.82969), (0.20689655, 0.06730347), 0.10220174, 14.0972675, -0.44076525),
    ],
)
def test_t4_fednova(
    momentum: float,
    a: tuple[float, ...],
    d: tuple[float, ...],
    mean: float,
    tau_eff: float,
    after: float,
) -> None:
    algorithm = FedNova()
    cohort = Cohort((2, 6), (100, 300), torch.ones(2, 1, dtype=torch.bool), momentum)
    server = algorithm.init_server(f64(1))
    algorithm.server_start(server, cohort)
    close(server["tau_eff"], [tau_eff])
    uploads = []
    for i, y in enumerate((0.4, -0.2)):
        assert normaliser(cohort.steps[i], momentum) == pytest.approx(a[i], abs=1e-9)
        run = run_of(f64(1), f64(y), steps=cohort.steps[i], momentum=momentum)
        run.server = server
        uploads.append(algorithm.local_end(run)["delta"])
        close(-uploads[-1] / tau_eff, [d[i]])
    update = (cohort.weights("examples") * torch.stack(uploads)).sum(0)
    close(-update / tau_eff, [mean])
    update = algorithm.server_update(
        server, aggregate_of(torch.tensor([True]), f64(1), delta=update)
    )
    close(1 + update, [after], 5e-8)  # the published number is a product of rounded ones


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_normaliser_is_the_recursion(momentum: float) -> None:
    buffer = total = 0.0
    for steps in range(1, 40):
        buffer = momentum * buffer + 1
        total += buffer
        assert normaliser(steps, momentum) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("tau, after", [("holders", 0.8), ("cohort", 1.0)])
def test_t4b_fednova_on_a_coordinate_of_one_holder(tau: Any, after: float) -> None:
    algorithm = FedNova(tau)
    held = torch.tensor([[True, False], [True, True]])
    server = algorithm.init_server(f64(1, 2))
    algorithm.server_start(server, Cohort((2, 6), (100, 300), held))
    close(server["tau_eff"], [5, 6] if tau == "holders" else [5, 5])
    run = run_of(f64(1, 2), f64(-0.2, 0.8), steps=6)
    run.server = server
    close(2 + algorithm.local_end(run)["delta"][1], after)


def test_fednova_of_a_client_that_took_no_step() -> None:
    run = run_of(f64(1))
    run.server = {"tau_eff": f64(3)}
    assert FedNova().local_end(run)["delta"].tolist() == [0.0]


# SCAFFOLD: T5


@pytest.mark.parametrize("holders, c", [(10, 0.38), (4, 0.65)])
def test_t5_scaffold(holders: int, c: float) -> None:
    algorithm = Scaffold()
    run = run_of(f64(1), f64(0.4), steps=3)
    run.server, run.state = {"c": f64(0.2)}, {"c_i": f64(0.5)}
    uploads = algorithm.local_end(run)
    close(run.state["c_i"], [2.3])
    close(uploads["dc"], [1.8])
    server = {"c": f64(0.2)}
    update = algorithm.server_update(
        server, aggregate_of(torch.tensor([True]), f64(1 / holders), **uploads)
    )
    close(server["c"], [c])
    close(update, [-0.6])


@pytest.mark.parametrize("correction", ["grad", "post_step"])
def test_t5_scaffold_trajectory(correction: Any) -> None:
    """With plain SGD both places of the correction give the same."""
    algorithm, run = Scaffold(correction=correction), run_of(f64(1))
    run.server, run.state = {"c": f64(0.2)}, {"c_i": f64(0.5)}
    descend(algorithm, run, f64(1), f64(0), 3)
    close(run.w, [0.8103])
    algorithm.local_end(run)
    close(run.state["c_i"], [0.93233333])


def test_scaffold_option_i_takes_the_gradient_at_the_received_model() -> None:
    algorithm, run = Scaffold(option="I"), run_of(f64(1))
    run.server, run.state = {"c": f64(0.2)}, {"c_i": f64(0.5)}
    # l = y^2 / 2, given as a view that the loop writes over
    run.full_gradient = lambda: run.g.copy_(run.w)
    descend(algorithm, run, f64(1), f64(0), 3)
    uploads = algorithm.local_end(run)
    close(run.state["c_i"], [1.0])
    close(uploads["dc"], [0.5])
    close(run.w, [0.8103])


# FedProx: T10


def test_t10_fedprox() -> None:
    run = run_of(f64(0, 1), f64(1, 2))
    FedProx(0.1).local_grad(run)
    close(run.g, [0.1, 0.1])
    w = run.w.clone().requires_grad_()
    term = 0.05 * (w - run.w0).square().sum()
    close(term.detach(), 0.1)
    assert torch.equal(torch.autograd.grad(term, w)[0], run.g)


# Two quadratic clients, 1/2 (w - t)' A (w - t) with diagonal A

A = (f64(1, 2, 0.5), f64(3, 0.5, 1))
T = (f64(1, -1, 2), f64(-2, 2, 0))
OPTIMUM = (A[0] * T[0] + A[1] * T[1]) / (A[0] + A[1])


def descend(algorithm: Algorithm, run: LocalRun, a: Tensor, t: Tensor, steps: int) -> None:
    """Plain gradient descent with the hooks where the local loop has them."""
    algorithm.local_start(run)
    for _ in range(steps):
        run.g.copy_(a * (run.w - t))
        algorithm.local_grad(run)
        run.w.sub_(run.lr * run.g)
        run.steps += 1
        algorithm.local_step(run)


@dataclass
class Federation:
    """Both clients or, with `one_a_round`, one of them in turn; what they keep and what the server
    keeps.
    """

    algorithm: Algorithm
    lr: float = 0.1
    steps: tuple[int, int] = (5, 5)
    one_a_round: bool = False
    w: Tensor = field(default_factory=lambda: f64(0, 0, 0))
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def distance(self, rounds: int) -> float:
        """How far the server is from the joint optimum after so many rounds."""
        self.server = self.algorithm.init_server(self.w)
        for r in range(rounds):
            self.round([r % 2] if self.one_a_round else [0, 1])
        return float((self.w - OPTIMUM).norm())

    def round(self, cohort: list[int]) -> None:
        held = torch.ones(len(cohort), 3, dtype=torch.bool)
        self.algorithm.server_start(
            self.server, Cohort(tuple(self.steps[i] for i in cohort), (1,) * len(cohort), held)
        )
        uploads = []
        for i in cohort:
            run = run_of(self.w.clone(), lr=self.lr)
            run.server, run.state = (
                self.server,
                self.states.get(i) or self.algorithm.init_client(run),
            )
            run.full_gradient = lambda run=run, i=i: A[i] * (run.w - T[i])
            descend(self.algorithm, run, A[i], T[i], self.steps[i])
            uploads.append(self.algorithm.local_end(run))
            self.states[i] = run.state
        mean = {name: torch.stack([u[name] for u in uploads]).mean(0) for name in uploads[0]}
        self.w = self.w + self.algorithm.server_update(
            self.server, aggregate_of(held[0], torch.full((3,), len(cohort) / 2), **mean)
        )


def test_fedavg_and_fedprox_miss_the_joint_optimum() -> None:
    for algorithm in (FedAvg(), FedProx(0.1), FedProx(1.0)):
        there = Federation(algorithm)
        assert there.distance(400) > 0.05
        assert there.distance(1) == pytest.approx(there.distance(100), abs=1e-9), (
            "a fixed point, not a slow approach"
        )


@pytest.mark.parametrize("steps", [(5, 5), (1, 5)])
@pytest.mark.parametrize(
    "make",
    [
        Scaffold,
        lambda: Scaffold("I"),
        lambda: Scaffold(correction="post_step"),
        lambda: FedDyn(0.5),
    ],
    ids=["scaffold", "option I", "post_step", "feddyn"],
)
def test_scaffold_and_feddyn_reach_it(
    make: Callable[[], Algorithm], steps: tuple[int, int]
) -> None:
    there = Federation(make(), steps=steps)
    assert there.distance(600) < 1e-6
    own, server = ("h_i", "h") if isinstance(there.algorithm, FedDyn) else ("c_i", "c")
    torch.testing.assert_close(
        there.server[server], (there.states[0][own] + there.states[1][own]) / 2
    )


@pytest.mark.parametrize("make", [Scaffold, lambda: FedDyn(0.5)], ids=["scaffold", "feddyn"])
def test_so_do_they_with_one_client_a_round(make: Callable[[], Algorithm]) -> None:
    assert Federation(make(), one_a_round=True).distance(2000) < 1e-6
    assert Federation(FedAvg(), one_a_round=True).distance(2000) > 0.05


def test_fednova_takes_out_unequal_steps_as_the_rate_shrinks() -> None:
    """With 1 and 5 steps FedAvg converges elsewhere at any rate; FedNova's distance goes down with
    the rate.
    """
    nova = [Federation(FedNova(), lr, (1, 5)).distance(round(15 / lr)) for lr in (0.05, 0.005)]
    plain = [Federation(FedAvg(), lr, (1, 5)).distance(round(15 / lr)) for lr in (0.05, 0.005)]
    assert min(plain) > 0.3
    assert nova[0] < plain[0] and nova[1] < 0.2 * nova[0]


# Coordinates that nobody holds


@pytest.mark.parametrize("name, algorithm", [("c", Scaffold()), ("h", FedDyn())])
def test_uncovered_coordinates_do_not_move(name: str, algorithm: Algorithm) -> None:
    before = torch.tensor([0.3, -0.0, 0.7, -0.2])
    server = {name: before.clone()}
    covered = torch.tensor([True, False, False, True])
    mean = torch.where(covered, torch.tensor(1.5), torch.tensor(0.0))
    participation = torch.tensor([0.5, math.nan, 0.0, 0.25])  # nobody of nobody
    update = algorithm.server_update(
        server, aggregate_of(covered, participation, delta=mean, dc=mean)
    )
    assert torch.equal(server[name][~covered].view(torch.int32), before[~covered].view(torch.int32))
    assert server[name][covered].ne(before[covered]).all() and server[name].dtype == torch.float32
    assert update[~covered].eq(0).all() and update[covered].ne(0).all()
    assert torch.equal(mean, torch.where(covered, 1.5, 0.0)), "the mean is the caller's"


# Settings

REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: FedProx(-0.1), "algorithm.mu=-0.1: must be at least 0"),
    (lambda: FedProx(math.nan), "algorithm.mu=nan: must be at least 0"),
    (lambda: Moon(mu=-1.0), "algorithm.mu=-1.0: must be at least 0"),
    (lambda: Moon(temperature=0.0), "algorithm.temperature=0.0: must be above 0"),
    (lambda: FedDyn(0.0), "algorithm.alpha=0.0: must be above 0"),
    (lambda: Scaffold(option="III"), "algorithm.option=III: must be one of II, I"),  # type: ignore[arg-type]
    (
        lambda: Scaffold(correction="after"),
        "algorithm.correction=after: must be one of grad, post_step",
    ),  # type: ignore[arg-type]
    (lambda: FedNova(tau="all"), "algorithm.tau=all: must be one of holders, cohort"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("make, named", REFUSED, ids=[named for _, named in REFUSED])
def test_settings_that_are_refused(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == named


def test_what_each_sends_and_reads() -> None:
    assert Scaffold(weighting="examples").uploads == {
        "delta": Upload("examples"),
        "dc": Upload("uniform"),
    } and Scaffold.downloads == ("c",)
    assert (
        FedDyn().uploads == {"delta": Upload("uniform")}
        and FedNova.free_downloads == ("tau_eff",)
        and FedNova.downloads == ()
    )
    assert [a.stateful for a in (FedAvg(), FedProx(), FedNova(), Scaffold(), FedDyn())] == [
        False,
        False,
        False,
        True,
        True,
    ]

"""Local training of every base algorithm through the product's own loop, bound model and
optimizers: equal to NIID-Bench's results in float64 (tests/golden/niid_local_seed7.npz), to the
published numbers of MOON's term, and to FedAvg to the bit where a method says that it is FedAvg.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inco.algorithms.fedavg import Algorithm, FedAvg
from inco.algorithms.fednova import FedNova, normaliser
from inco.algorithms.fedprox import FedProx
from inco.algorithms.moon import Moon
from inco.algorithms.scaffold import Scaffold
from inco.clients.local import SGD, Adam, Local
from inco.clients.trainer import train_locally
from inco.fast.bound import BoundModel
from inco.flat import Layout, layouts_of
from inco.types import ClientTask, LocalRun, Output, Weighting

with np.load(Path(__file__).parents[1] / "golden" / "niid_local_seed7.npz") as file:
    GOLDEN = {name: torch.from_numpy(file[name]) for name in file.files}
META = {
    name.removeprefix("meta/"): value.item()
    for name, value in GOLDEN.items()
    if name.startswith("meta/")
}
EPOCHS, BATCH = int(META["epochs"]), int(META["batch"])
CLIENTS = (0, 1)
EXAMPLES = tuple(len(GOLDEN[f"client{i}/y"]) for i in CLIENTS)
STEPS = tuple(EPOCHS * -(-n // BATCH) for n in EXAMPLES)


class Mlp(nn.Module):
    """12-16-8-4, ReLU between; features are what the head sees."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Output:
        z = self.fc2(self.fc1(x).relu()).relu()
        return Output(self.head(z), z)


LAYOUT, NO_BUFFERS = layouts_of(Mlp())
WIDTH = LAYOUT.numel


def vector(prefix: str, layout: Layout = LAYOUT) -> Tensor:
    """The golden tensors of a prefix as one float64 vector."""
    flat = torch.empty(layout.numel, dtype=torch.float64)
    return layout.pack({name: GOLDEN[f"{prefix}/{name}"] for name in layout.entries}, flat)


def bound_to(w: Tensor) -> BoundModel:
    bound = BoundModel(Mlp().to(w.dtype), LAYOUT, NO_BUFFERS)
    bound.w.copy_(w)
    return bound


def frozen(role: str, w: Tensor, b: Tensor) -> nn.Module:
    return bound_to(w).model.eval()


def batches(client: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = GOLDEN[f"client{client}/x"].to(dtype), GOLDEN[f"client{client}/y"]
    for _ in range(EPOCHS):
        yield from zip(x.split(BATCH), y.split(BATCH), strict=True)


def train(
    algorithm: Algorithm,
    client: int,
    local: Local,
    server: Mapping[str, Tensor] | None = None,
    state: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[LocalRun, dict[str, Tensor], Tensor]:
    """One client's local training from the golden global weights: the run, its uploads, its
    loss.
    """
    bound = bound_to(vector("global").to(dtype))
    flat = nn.Parameter(bound.w)
    flat.grad = bound.g
    task = ClientTask(client, 1, 0, torch.arange(EXAMPLES[client]))
    b0, momentum = bound.b.clone(), getattr(local, "momentum", 0.0)
    run = LocalRun(
        task,
        bound.model,
        bound.w.clone(),
        bound.w,
        bound.g,
        local.lr,
        momentum,
        b0,
        bound.b,
        server or {},
    )
    run.frozen, run.full_gradient = frozen, lambda: torch.ones_like(run.w)
    run.state = algorithm.init_client(run) if state is None else state
    loss = train_locally(run, algorithm, local.optimizer(flat), batches(client, dtype))
    return run, algorithm.local_end(run), loss


def niid_sgd() -> SGD:
    return SGD(EPOCHS, BATCH, META["lr"], momentum=META["momentum"])


def assert_golden(found: Tensor, prefix: str) -> None:
    torch.testing.assert_close(found, vector(prefix), rtol=1e-10, atol=1e-10)


@dataclass
class AllHold:
    """A plan in which every client holds everything."""

    steps: tuple[int, ...] = STEPS
    examples: tuple[int, ...] = EXAMPLES
    momentum: float = 0.0

    def mean(self, numbers: Sequence[float], weighting: Weighting) -> Tensor:
        weights = self.examples if weighting == "examples" else [1] * len(numbers)
        mean = sum(n * x for n, x in zip(weights, numbers, strict=True)) / sum(weights)
        return torch.full((WIDTH,), mean, dtype=torch.float64)


# NIID-Bench's own training


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "name, algorithm",
    [("fedavg", FedAvg()), ("fedprox", FedProx(META["fedprox_mu"]))],
    ids=["fedavg", "fedprox"],
)
def test_fedavg_and_fedprox(client: int, name: str, algorithm: Algorithm) -> None:
    run, uploads, _ = train(algorithm, client, niid_sgd())
    assert_golden(run.w, f"client{client}/{name}")
    assert_golden(run.w0 + uploads["delta"], f"client{client}/{name}")
    assert run.steps == STEPS[client]


@pytest.mark.parametrize("client", CLIENTS)
def test_scaffold(client: int) -> None:
    """NIID-Bench corrects after the optimizer's step, which matters with momentum."""
    server, c_i = {"c": vector("c_global")}, vector("c_local")
    run, uploads, _ = train(
        Scaffold(correction="post_step"), client, niid_sgd(), server, {"c_i": c_i}
    )
    assert_golden(run.w, f"client{client}/scaffold")
    assert_golden(uploads["dc"], f"client{client}/scaffold_delta_c")
    assert_golden(run.state["c_i"], f"client{client}/scaffold_c_new")

    other, _, _ = train(Scaffold(correction="grad"), client, niid_sgd(), server, {"c_i": c_i})
    assert (other.w - run.w).abs().max() > 1e-3


@pytest.mark.parametrize("client", CLIENTS)
def test_moon(client: int) -> None:
    state = {
        "previous": vector("previous"),
        "buffers_previous": torch.zeros(0),
        "level": torch.tensor([0.0]),
    }
    run, _, _ = train(
        Moon(META["moon_mu"], META["moon_temperature"]), client, niid_sgd(), state=state
    )
    assert_golden(run.w, f"client{client}/moon")
    assert (
        torch.equal(run.state["previous"], run.w)
        and run.state["previous"].data_ptr() != run.w.data_ptr()
    )


def test_fednova() -> None:
    """The normaliser, the normalised update, and the server's step: here the sum of the uploads,
    tau_eff being in them.
    """
    algorithm = FedNova()
    server = algorithm.init_server(vector("global"))
    algorithm.server_start(server, AllHold(momentum=META["momentum"]))
    after = vector("global")
    for client in CLIENTS:
        assert normaliser(STEPS[client], META["momentum"]) == pytest.approx(
            GOLDEN[f"client{client}/fednova_a"].item(), rel=1e-10
        )
        _, uploads, _ = train(algorithm, client, niid_sgd(), server)
        assert_golden(-uploads["delta"] / server["tau_eff"], f"client{client}/fednova_d")
        after += EXAMPLES[client] / sum(EXAMPLES) * uploads["delta"]
    assert_golden(after, "fednova_server")


# MOON's term: T6 of algorithms.md


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor | float, expected: float, within: float = 5e-9) -> None:
    assert torch.as_tensor(found).item() == pytest.approx(expected, abs=within)


class Says(nn.Module):
    """A model of fixed features."""

    def __init__(self, *z: float) -> None:
        super().__init__()
        self.z = f64(*z)

    def forward(self, x: Tensor) -> Output:
        return Output(x, self.z.expand(len(x), -1))


def moon_term(
    algorithm: Moon, z: Tensor, received: nn.Module, previous: nn.Module, state: bool = True
) -> Tensor | float:
    nothing, task = f64(0), ClientTask(0, 1, 0, torch.arange(1))
    run = LocalRun(task, received, nothing, nothing, nothing, 0.1, b0=nothing)
    run.frozen = lambda role, w, b: {"global": received, "previous": previous}[role]
    run.state = (
        {"previous": f64(0), "buffers_previous": torch.zeros(0), "level": torch.tensor([0.0])}
        if state
        else {}
    )
    algorithm.local_start(run)
    return algorithm.local_loss(run, Output(z, z), torch.zeros(len(z), 1))


@pytest.mark.parametrize(
    "z, received, previous, term",
    [
        ((1, 0), (0.6, 0.8), (0, 1), 0.26328247),
        ((1, 2), (2, 1), (-1, 1), 0.32209439),
        ((1, 2), (2, 1), (2, 1), 0.69314718),
    ],
)
def test_t6_moon(
    z: tuple[float, ...], received: tuple[float, ...], previous: tuple[float, ...], term: float
) -> None:
    close(moon_term(Moon(1.0, 0.5), f64(*z)[None], Says(*received), Says(*previous)), term)
    close(
        moon_term(Moon(3.0, 0.5), f64(*z).repeat(4, 1), Says(*received), Says(*previous)),
        3 * term,
        2e-8,
    )
    assert (
        moon_term(Moon(1.0, 0.5), f64(*z)[None], Says(*received), Says(*previous), state=False)
        == 0.0
    )


def test_moon_stays_finite() -> None:
    """At temperatures where e^{s/T} overflows, and for features that are all zero."""
    z = f64(1, 0).repeat(2, 1).requires_grad_()
    close(moon_term(Moon(1.0, 1e-4), z, Says(0, 1), Says(1, 0)), 1e4)
    dead = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    term = moon_term(Moon(), dead, Says(0, 1), Says(1, 0))
    assert isinstance(term, Tensor)
    term.backward()
    assert dead.grad is not None and dead.grad.isfinite().all()


# FedAvg to the bit

LOCALS: dict[str, Callable[[], Local]] = {
    "sgd": lambda: SGD(2, 8, 0.05),
    "momentum": niid_sgd,
    "adam": lambda: Adam(2, 8, 0.01),
}


def bits(t: Tensor) -> Tensor:
    """The bits themselves: -0.0 is not 0.0."""
    return t.view(torch.int32)


@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize(
    "algorithm",
    [
        FedProx(0.0),
        Moon(0.0),
        Moon(5.0),
        *(Scaffold(o, c) for o in ("I", "II") for c in ("grad", "post_step")),
    ],
    ids=[
        "fedprox mu=0",
        "moon mu=0",
        "moon's first round",
        *(f"scaffold {o} {c}" for o in ("I", "II") for c in ("grad", "post_step")),
    ],
)
def test_is_fedavg_to_the_bit(algorithm: Algorithm, local: str) -> None:
    optimizer = LOCALS[local]()
    server = {name: v.float() for name, v in algorithm.init_server(vector("global")).items()}
    run, uploads, loss = train(algorithm, 1, optimizer, server, dtype=torch.float32)
    plain, expected, mean = train(FedAvg(), 1, optimizer, dtype=torch.float32)
    assert torch.equal(bits(run.w), bits(plain.w))
    assert torch.equal(bits(uploads["delta"]), bits(expected["delta"]))
    assert torch.equal(loss, mean)
    assert plain.w.ne(plain.w0).any()


def test_scaffold_adds_no_zeros() -> None:
    """-0.0 + 0.0 is 0.0, which a weight of -0.0 would show."""
    algorithm, zeros = Scaffold(), torch.zeros(3)
    run = LocalRun(
        ClientTask(0, 1, 0, torch.arange(1)),
        nn.Identity(),
        zeros,
        zeros.clone(),
        -zeros,
        0.1,
        server={"c": zeros},
    )
    run.state = algorithm.init_client(run)
    algorithm.local_start(run)
    algorithm.local_grad(run)
    assert torch.equal(bits(run.g), bits(-zeros))


@pytest.mark.parametrize("tau", ["holders", "cohort"])
@pytest.mark.parametrize("steps", [1, 3, 41, 49, 1_000])
def test_fednova_with_equal_steps_is_fedavg_to_the_bit(steps: int, tau: str) -> None:
    """Whatever the weights: the mean of equal numbers is that number, and a number over itself is
    one.
    """
    for momentum in (0.0, 0.9):
        algorithm = FedNova(tau)  # type: ignore[arg-type]
        server = algorithm.init_server(torch.zeros(WIDTH))
        algorithm.server_start(server, AllHold((steps, steps), EXAMPLES, momentum))
        run, _, _ = train(
            FedAvg(),
            0,
            LOCALS["sgd"](),
            {"tau_eff": server["tau_eff"].float()},
            dtype=torch.float32,
        )
        run.steps, run.momentum = steps, momentum
        assert torch.equal(bits(algorithm.local_end(run)["delta"]), bits(run.w - run.w0))


def test_moon_counts_from_the_second_participation_and_keeps_to_its_level() -> None:
    algorithm, local = Moon(1.0), niid_sgd()
    first, _, _ = train(algorithm, 0, local)
    again, _, loss = train(algorithm, 0, local, state=dict(first.state))
    assert again.w.ne(first.w).any()
    elsewhere = {**copy.deepcopy(first.state), "level": torch.tensor([1.0])}
    skipped, _, mean = train(algorithm, 0, local, state=elsewhere)
    assert torch.equal(skipped.w, first.w) and loss > mean
    assert skipped.state["level"].tolist() == [0.0]
    assert not Moon(0.0).stateful and algorithm.stateful


def test_fedprox_stays_nearer_and_reports_the_plain_loss() -> None:
    local = niid_sgd()
    far, _, _ = train(FedAvg(), 0, local)
    near, _, _ = train(FedProx(1.0), 0, local)
    assert (near.w - near.w0).norm() < (far.w - far.w0).norm()
    assert FedProx.local_loss is FedAvg.local_loss, "the term acts through its gradient alone"

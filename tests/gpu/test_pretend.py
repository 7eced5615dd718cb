"""The path of a GPU, checked on a pretended one: the tool, runs of it, mistakes that it finds, and
what a round costs.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import TINY, TINY_VIT
from torch import Tensor

import inco.clients.trainer
import inco.clients.uplink
import inco.flat
import inco.server.optim
import inco.server.sums
from gpu.pretend import CUDA, D2H, H2D, Counts, DeviceError, Pretend, allocated
from gpu.runs import Outcome, plain_convolutions, run
from inco.clients.trainer import Trainer
from inco.data.dataset import Images
from inco.data.recipes import make_recipe
from inco.engine.engine import Engine
from inco.evaluation.evaluator import Evaluator
from inco.fast import cuda_graphs
from inco.fast.bound import BoundModel
from inco.fast.cuda_graphs import CapturedPasses
from inco.models.resnet import ResNet
from inco.seeding import generator
from inco.server.aggregate import Cohort
from inco.splits.objectives import MaskedCrossEntropy
from inco.types import Output

FEW = ("num_clients=3", "dataset.num_train=36", "dataset.num_test=20", "local.batch_size=5")
SMALL = (*TINY, *FEW, "model.blocks=[2,2]", "model.widths=[2,4]")
SMALL_VIT = (*TINY_VIT, *FEW, "model.depth=2")
STAGE = ("split=stage", "split.levels=[[1,1],[2,2]]")
SGD = "local=sgd local.momentum=0"
TWO_CLASSES = "partition=labels partition.classes_per_client=2"
DIAGNOSTICS = "diagnostics=all diagnostics.every=1 diagnostics.images=8 diagnostics.batch=4"


@pytest.fixture(autouse=True)
def convolutions() -> Iterator[None]:
    with plain_convolutions():
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Let memory be freed by its last reference alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# 1. The tool


def on(*shape: int, **more: Any) -> Tensor:
    """Ones on the pretended GPU."""
    return torch.ones(*shape, device=CUDA, **more)


def backward(image: Callable[[Tensor], Tensor]) -> None:
    image(on(1, 1, 4, 4, requires_grad=True)).sum().backward()


def a_backward_pass_with_a_gradient_on_the_host(gpu: Pretend) -> None:
    x = on(2, requires_grad=True)
    (x * x).backward(torch.ones(2))


def a_draw_in_a_graph(gpu: Pretend) -> None:
    generator = torch.Generator(device=CUDA)
    gpu.graph(lambda: torch.randn(2, generator=generator, device=CUDA) * 2)


REFUSED: dict[str, tuple[Callable[[Pretend], object], str]] = {
    "mixed devices": (lambda gpu: on(2) + torch.ones(2), "one device"),
    "mixed devices in a list": (lambda gpu: torch.cat([on(2), torch.ones(2)]), "one device"),
    "mixed devices in a backward pass": (
        a_backward_pass_with_a_gradient_on_the_host,
        "one device",
    ),
    "a number on the host in a stack": (
        lambda gpu: torch.stack([on(1)[0], torch.tensor(1.0)]),
        "a number is on the host",
    ),
    "numpy": (lambda gpu: on(2).numpy(), "numpy"),
    "an index on the GPU of host memory": (
        lambda gpu: torch.ones(2)[on(1, dtype=torch.int64)],
        "an index on the GPU",
    ),
    "values on the host": (
        lambda gpu: on(3).index_put_((on(2, dtype=torch.int64),), torch.ones(2)),
        "values on the host",
    ),
    "a host generator": (
        lambda gpu: on(2).normal_(generator=torch.Generator()),
        "generator of another device",
    ),
    "a GPU generator on the host": (
        lambda gpu: torch.randperm(3, generator=torch.Generator(device=CUDA)),
        "generator of another device",
    ),
    "bilinear interpolation": (
        lambda gpu: backward(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        "deterministic",
    ),
    "adaptive pooling": (
        lambda gpu: backward(lambda x: F.adaptive_avg_pool2d(x, 2)),
        "deterministic",
    ),
    "reading in a graph": (lambda gpu: gpu.graph(lambda: float(on(1))), "while a graph"),
    "tolist in a graph": (lambda gpu: gpu.graph(lambda: on(2).tolist()), "while a graph"),
    "a copy from the host in a graph": (
        lambda gpu: gpu.graph(lambda: torch.ones(2).to(CUDA, non_blocking=True)),
        "while a graph",
    ),
    "a mask in a graph": (lambda gpu: gpu.graph(lambda: on(2)[on(2) > 0]), "while a graph"),
    "a draw in a graph": (a_draw_in_a_graph, "that the graph does not know"),
    "a number on the host in a graph": (
        lambda gpu: gpu.graph(lambda: on(2) * torch.tensor(2.0)),
        "would stay in the graph",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_tool_refuses_what_cuda_refuses(case: str) -> None:
    work, message = REFUSED[case]
    with Pretend() as gpu, pytest.raises(DeviceError, match=message):
        work(gpu)
    with Pretend(strict=False) as gpu:
        with suppress(RuntimeError):  # of the CPU
            work(gpu)
    assert any(message in problem for problem in gpu.problems)


ALLOWED: dict[str, Callable[[Pretend], object]] = {
    "a number on the host": lambda gpu: on(2) * torch.tensor(2.0),
    "an index on the host": lambda gpu: on(2)[torch.tensor([1])],
    "a copy, then numpy": lambda gpu: on(2).cpu().numpy(),
    "a generator of the GPU": lambda gpu: on(2).normal_(generator=torch.Generator(device=CUDA)),
    "a generator of the host": lambda gpu: torch.randperm(3, generator=torch.Generator()),
    "a host tensor like one of the GPU": lambda gpu: torch.zeros_like(on(2), device="cpu").numpy(),
    "max-pooling": lambda gpu: backward(lambda x: F.max_pool2d(x, 2)),
    "adaptive pooling to one pixel": lambda gpu: backward(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "meta tensors": lambda gpu: on(2).to("meta") + torch.ones(2, device="meta"),
    "a number of Python in a graph": lambda gpu: gpu.graph(lambda: on(2) * 2.0)(),
    "autocast": lambda gpu: (
        torch.autocast("cuda", torch.bfloat16).__enter__().__exit__(*[None] * 3)
    ),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_the_tool_lets_pass_what_cuda_does(case: str) -> None:
    with Pretend() as gpu:
        ALLOWED[case](gpu)
    assert not gpu.problems


def test_tensors_say_where_they_are() -> None:
    with Pretend():
        x = torch.zeros(4, device="cuda")
        views = [x[1:], x.view(2, 2), x.detach(), torch.empty_like(x), x + 1, x.to(torch.int64)]
        moved = [torch.zeros(4).cuda(), torch.zeros(4).to(x), torch.as_tensor([1.0]).to(CUDA)]
        assert all(t.device == CUDA and t.is_cuda and not t.is_cpu for t in [x, *views, *moved])
        host = [x.cpu(), x.to("cpu", torch.float64), torch.zeros(4), x.to(torch.zeros(1))]
        assert all(t.device.type == "cpu" and t.is_cpu and not t.is_cuda for t in host)
        assert host[1].dtype == torch.float64
        assert torch.nn.Linear(2, 2).to(CUDA).weight.device == CUDA
        assert torch.Generator(device=CUDA).device == CUDA and torch.cuda.is_available()
    assert torch.zeros(4).device.type == "cpu" and not x.is_cuda


# Launches, synchronisations, transfers, bytes to the GPU, bytes to the host
COSTS: dict[str, tuple[Callable[[Tensor], object], tuple[int, int, int, int, int]]] = {
    "arithmetic": (lambda x: (x + x).mul_(2), (2, 0, 0, 0, 0)),
    "views": (lambda x: x.view(2, 2)[1].detach(), (0, 0, 0, 0, 0)),
    "new memory": (lambda x: torch.empty_like(x), (0, 0, 0, 0, 0)),
    "zeros": (lambda x: torch.zeros(3, device=x.device), (1, 0, 0, 0, 0)),
    "reading a number": (lambda x: float(x[0]), (0, 1, 0, 0, 0)),
    "a condition": (lambda x: bool(x[0] > 0), (1, 1, 0, 0, 0)),
    "to the host": (lambda x: x.cpu(), (0, 1, 1, 0, 16)),
    "to the host, in another type": (lambda x: x.to("cpu", torch.float64), (0, 1, 1, 0, 16)),
    "a list": (lambda x: x.tolist(), (0, 1, 1, 0, 16)),
    "to the GPU": (lambda x: torch.zeros(4).to(x.device), (0, 1, 1, 16, 0)),
    "to the GPU, in another type": (lambda x: torch.zeros(4).to(x.half()), (1, 1, 1, 8, 0)),
    "to the GPU, without waiting": (
        lambda x: torch.zeros(4).pin_memory().to(x.device, non_blocking=True),
        (0, 0, 1, 16, 0),
    ),
    "numbers of Python": (lambda x: torch.tensor([1.0], device=x.device), (0, 1, 1, 4, 0)),
    "copy_ from the host": (lambda x: x.copy_(torch.zeros(4)), (0, 1, 1, 16, 0)),
    "an index on the host": (lambda x: x[torch.tensor([1])], (1, 1, 1, 8, 0)),
    "a mask": (lambda x: x[x > 0], (2, 1, 0, 0, 0)),
    "a mask filled with a number": (lambda x: x.masked_fill_(x > 0, 1.0), (2, 0, 0, 0, 0)),
    "nothing at all": (lambda x: x[:0].cpu() + x[:0].add_(1).cpu(), (0, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", COSTS)
def test_the_tool_counts(case: str) -> None:
    work, expected = COSTS[case]
    with Pretend() as gpu:
        x = on(4)
        gpu.counts = counts = Counts()
        work(x)
    sent = sum(n for (_, direction), n in counts.bytes.items() if direction == H2D)
    fetched = sum(n for (_, direction), n in counts.bytes.items() if direction == D2H)
    numbers = [c.total() for c in (counts.launches, counts.syncs, counts.transfers)]
    assert (*numbers, sent, fetched) == expected


def test_a_copy_that_nobody_waits_for_is_not_there() -> None:
    with Pretend():
        x = on(2)
        copies = [x.to("cpu", non_blocking=True), torch.zeros(2)]
        copies[1].copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        assert all(copy.isnan().all() for copy in copies)
        event.synchronize()
        assert all(copy.tolist() == [1, 1] for copy in copies)
        late = x.to("cpu", non_blocking=True)
        float(x[0])  # waits for all before it
        assert late.tolist() == [1, 1]


def test_a_graph_does_nothing_before_it_is_replayed() -> None:
    made = []

    def work() -> None:
        made.append(x * 2)
        x.add_(1)

    with Pretend() as gpu:
        x = on(2)
        replay = gpu.graph(work)
        assert x.tolist() == [4, 4] and made[-1].isnan().all()  # warmed up three times
        replay()
        assert made[-1].tolist() == [8, 8] and x.tolist() == [5, 5]
        x.fill_(10)
        gpu.counts = Counts()
        replay()
        assert gpu.counts.launches.total() == 1 and not gpu.counts.syncs
        assert made[-1].tolist() == [20, 20] and x.tolist() == [11, 11]


def test_graphs_share_their_memory() -> None:
    made: dict[str, Tensor] = {}

    def work(name: str) -> None:
        made[name] = x * 2

    with Pretend() as gpu:
        x = on(2)
        first = gpu.graph(lambda: work("first"))
        second = gpu.graph(lambda: work("second"))
        first()
        first()
        assert made["first"].tolist() == [2, 2]
        gpu.counts = Counts()
        second()
        assert gpu.counts.launches.total() == 1
        assert made["second"].tolist() == [2, 2] and made["first"].isnan().all()


def test_a_graph_does_not_keep_what_it_reads() -> None:
    with Pretend() as gpu:
        given = {"x": on(2)}
        replay = gpu.graph(lambda: given["x"].add_(1))
        replay()
        given["x"] = on(2)
        with pytest.raises(DeviceError, match="has gone"):
            replay()


def test_a_graph_of_a_backward_pass_has_the_eager_bits() -> None:
    with Pretend() as gpu:
        x = torch.randn(4, 2, 3, 3).to(CUDA)
        norm = torch.nn.BatchNorm2d(2).to(CUDA)
        norm.weight.grad = on(2) * 0
        replay = gpu.graph(lambda: norm(x).square().sum().backward())
        outcomes = []
        for step in (replay, lambda: norm(x).square().sum().backward()):
            norm.reset_running_stats()
            norm.weight.grad.zero_()
            x.mul_(1.0)
            step()
            outcomes.append([norm.weight.grad.tolist(), norm.running_var.tolist()])
    assert outcomes[0] == outcomes[1] and outcomes[0][0] != [0, 0]


def test_memory_is_given_back(no_collector: None) -> None:
    before = allocated()
    with Pretend():
        x = on(1000)
        assert allocated() == torch.cuda.memory_allocated() == before + 4000
        del x
        assert allocated() == before


# 2. Runs


def overrides_of(line: str) -> tuple[str, ...]:
    """The small ResNet, or the small ViT, with overrides."""
    return (*(SMALL_VIT if "split=layer" in line else SMALL), *line.split())


def check(overrides: tuple[str, ...]) -> Outcome:
    """Hold a run, eager and with graphs, to the rules of CUDA, and both to the same bits."""
    eager = run(overrides, strict=False)
    graph = run(overrides, "graph", strict=False, resume=False)
    assert not eager.problems and not graph.problems
    assert graph.same_as(eager)
    return graph


RUNS = {
    "stage-inco": " ".join([*STAGE, "transform=inco"]),
    "width-scaffold": f"split=width split.levels=[0.5,1.0] {TWO_CLASSES} algorithm=scaffold {SGD}",
    "rolling-weighted": "split=rolling split.levels=[0.5,1.0] split.weighting=width",
    "scalefl-two-phases": (
        "split=scalefl split.levels=[[0.5,1],[1.0,2]] split.exits=[2] split.start=2"
    ),
    "inclusive-feddyn": f"split=inclusive split.levels=[[1,1],[2,2]] algorithm=feddyn {SGD}",
    "vit-bf16": f"split=layer split.levels=[1,2] local.precision=bf16 {DIAGNOSTICS}",
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_sound_and_alike_with_graphs(name: str) -> None:
    assert check(overrides_of(RUNS[name])).replays >= 6


# 3. Mistakes that a CPU forgives

Patch = Callable[[pytest.MonkeyPatch], None]
BASE = (*SMALL, *STAGE)


def method(of: Any, name: str, new: Callable[..., Any]) -> Patch:
    """Replace a method; the new one is given the old one first."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        old = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *args, **more: new(old, *args, **more))

    return patch


def after_a_pass(work: Callable[[Tensor, Tensor], Tensor]) -> Patch:
    """Change the loss of every pass that may be captured, given the images and the loss."""

    def changed(old: Any, model: Any, objective: Any, x: Tensor, *rest: Any) -> Any:
        output, loss = old(model, objective, x, *rest)
        return output, work(x, loss)

    return method(cuda_graphs, "plain_pass", changed)


def looked_at(x: Tensor, loss: Tensor) -> Tensor:
    float(loss.detach())
    return loss


def with_noise(x: Tensor, loss: Tensor) -> Tensor:
    generator = torch.Generator(device=CUDA)
    return loss + torch.randn((), generator=generator, device=x.device)


def one_host_batch(old: Any, trainer: Trainer, task: Any) -> Iterator[tuple[Tensor, Tensor]]:
    images = trainer.train.images.index_select(0, task.examples[:5])
    yield images.float(), trainer.train.labels[:5]


def without_its_input(old: Any, *args: Any) -> Any:
    made = old(*args)
    made.x = made.x.clone()  # the graph reads the former one
    gc.collect()
    return made


def pooled(old: Any, model: ResNet, x: Tensor) -> Output:
    features = F.adaptive_avg_pool2d(x, 2).mean((2, 3))
    return Output(model.fc(features), features)


def stretched(old: Any, model: ResNet, x: Tensor) -> Tensor:
    return F.interpolate(old(model, x), scale_factor=2, mode="bilinear")


def labels_on_the_host(old: Any, *args: Any) -> tuple[Tensor, Tensor]:
    x, y = old(*args)
    return x, y.cpu()


REFUSED_MISTAKES: dict[str, tuple[Patch, str, str]] = {
    "a sum on the host": (
        method(
            Cohort, "_spread", lambda old, cohort, a, b, c, size, *w: torch.zeros(size).double()
        ),
        "eager",
        "one device",
    ),
    "an order on the host": (method(Trainer, "_batches", one_host_batch), "eager", "one device"),
    "numpy of scores": (
        method(Evaluator, "scores", lambda old, evaluator, table: table.numpy()),
        "eager",
        "numpy",
    ),
    "adaptive pooling": (method(ResNet, "_head", pooled), "eager", "deterministic"),
    "bilinear interpolation": (method(ResNet, "_stem", stretched), "eager", "deterministic"),
    "labels on the host": (
        method(inco.clients.trainer, "take", labels_on_the_host),
        "eager",
        "one device",
    ),
    "noise of a host generator": (
        method(
            inco.clients.uplink,
            "add_noise",
            lambda old, vector, scale, stream, out: out.normal_(generator=torch.Generator()),
        ),
        "eager",
        "generator of another device",
    ),
    "a loss that is read in a graph": (after_a_pass(looked_at), "graph", "while a graph"),
    "noise in a graph": (after_a_pass(with_noise), "graph", "that the graph does not know"),
    "a number of the host in a graph": (
        after_a_pass(lambda x, loss: loss * torch.tensor(2.0)),
        "graph",
        "would stay in the graph",
    ),
    "a graph whose input has gone": (
        method(CapturedPasses, "_make", without_its_input),
        "graph",
        "has gone",
    ),
}


@pytest.mark.parametrize("name", REFUSED_MISTAKES)
def test_mistakes_that_cuda_would_refuse_are_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, mode, message = REFUSED_MISTAKES[name]
    patch(monkeypatch)
    with pytest.raises(Exception) as caught:
        run((*BASE, "uplink=noise"), mode, resume=False)
    found: BaseException | None = caught.value
    while found is not None and not isinstance(found, DeviceError):
        found = found.__cause__ or found.__context__
    assert message in str(found)


def stale_labels(old: Any, passes: CapturedPasses, *args: Any) -> Any:
    made = old(passes, *args)
    made.replay = partial(lambda replay, kept: replay(), made.replay, made.y)  # which it reads
    made.y = made.y.clone()
    return made


def a_pass_too_many(
    old: Any, passes: CapturedPasses, bound: Any, objective: Any, x: Tensor, y: Tensor, task: Any
) -> Any:
    made = old(passes, bound, objective, x, y, task)
    cuda_graphs.plain_pass(bound.model, objective, x, y, task, "fp32")
    return made


def one_phase(old: Any, passes: CapturedPasses, bound: Any, objective: Any, *args: Any) -> Any:
    return old(passes, bound, lambda *more: objective(*more), *args)


WRONG_GRAPHS: dict[str, tuple[Patch, str]] = {
    "labels of the first batch": (method(CapturedPasses, "_make", stale_labels), "stage-inco"),
    "statistics of a pass too many": (
        method(CapturedPasses, "_made_or_none", a_pass_too_many),
        "stage-inco",
    ),
    "one graph for two phases": (method(CapturedPasses, "run", one_phase), "scalefl-two-phases"),
}


@pytest.mark.parametrize("name", WRONG_GRAPHS)
def test_wrong_graphs_are_found_by_their_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, case = WRONG_GRAPHS[name]
    overrides = overrides_of(RUNS[case])
    patch(monkeypatch)
    wrong = run(overrides, "graph", resume=False)
    assert wrong.replays and not wrong.same_as(run(overrides, resume=False))


def labels_by_way_of_the_host(old: Any, *args: Any) -> tuple[Tensor, Tensor]:
    x, y = old(*args)
    return x, y.cpu().to(y.device)


def a_loss_that_is_read(old: Any, *args: Any) -> Any:
    output, loss = old(*args)
    assert float(loss.detach()) < 1e9
    return output, loss


def classes_by_way_of_the_host(old: Any, objective: Any, output: Any, y: Tensor, task: Any) -> Any:
    return old(objective, output, y, replace(task, classes=task.classes.cpu()))


SLOW_MISTAKES: dict[str, tuple[Patch, str]] = {
    "labels by way of the host": (
        method(inco.clients.trainer, "take", labels_by_way_of_the_host),
        "stage-inco",
    ),
    "a loss that is read in every step": (
        method(inco.clients.trainer, "plain_pass", a_loss_that_is_read),
        "stage-inco",
    ),
    "classes copied in every step": (
        method(MaskedCrossEntropy, "__call__", classes_by_way_of_the_host),
        "width-scaffold",
    ),
    "noise from a host generator": (
        method(Trainer, "_stream", lambda old, *args: torch.Generator()),
        "noise",
    ),
}


@pytest.mark.parametrize("name", SLOW_MISTAKES)
def test_slow_mistakes_are_found_by_counting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, case = SLOW_MISTAKES[name]
    overrides = overrides_of({**RUNS, "noise": " ".join([*STAGE, "uplink=noise"])}[case])
    sound = costs(run(overrides, resume=False))
    patch(monkeypatch)
    slow = costs(run(overrides, resume=False))
    assert slow.syncs >= sound.syncs + 3  # a step each


def counted_in_each_step(old: Any, bound: BoundModel) -> Any:
    return nullcontext()


def small(of: Any, name: str, size: int) -> Patch:
    """Let work on a GPU be cut as on a CPU, or finer: vectors of these tests are short."""
    return lambda monkeypatch: monkeypatch.setitem(getattr(of, name), "cuda", size)


MANY_LAUNCHES: dict[str, tuple[Patch, str]] = {
    "sums in small pieces": (small(inco.server.sums, "_CHUNK", 16), "width-scaffold"),
    "updates in small blocks": (small(inco.server.optim, "_BLOCK", 16), "stage-adam"),
    "as many runs of an index as on a CPU": (small(inco.flat, "_MOST_RUNS", 4096), "many-runs"),
    "counters in each step": (method(BoundModel, "uncounted", counted_in_each_step), "stage-inco"),
}


@pytest.mark.parametrize("name", MANY_LAUNCHES)
def test_many_small_launches_are_found_by_counting(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, case = MANY_LAUNCHES[name]
    more = {
        "stage-adam": " ".join([*STAGE, "server=adam"]),
        "many-runs": "split=width split.levels=[0.5,1.0] model.widths=[4,8]",
    }
    overrides = overrides_of({**RUNS, **more}[case])
    sound = costs(run(overrides, resume=False))
    patch(monkeypatch)
    slow = costs(run(overrides, resume=False))
    found = slow.launches + slow.server_launches - sound.launches - sound.server_launches
    assert found >= 8 and slow.syncs == sound.syncs


def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a step of round 2 find no memory, once. Return the bytes held before each attempt to
    train a client, filled in by the run.
    """
    held: list[int] = []
    steps: list[None] = []

    def step(old: Any, *args: Any) -> Any:
        steps.append(None)
        if len(steps) == 11:  # 3 clients take 3 steps each
            raise torch.OutOfMemoryError("pretended")
        return old(*args)

    def attempt(old: Any, *args: Any) -> Any:
        held.append(allocated())
        return old(*args)

    method(inco.clients.trainer, "plain_pass", step)(monkeypatch)
    method(Trainer, "__call__", attempt)(monkeypatch)
    return held


def test_a_client_that_finds_no_memory_is_trained_again(
    no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = run(BASE, resume=False)
    held = out_of_memory(monkeypatch)
    assert run(BASE, resume=False).same_as(sound)
    assert len(held) == 7 and held[4] <= held[3]  # what the failed attempt held has been freed


def test_a_second_attempt_beside_the_first_is_found(
    no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(old: Any, engine: Engine, *args: Any) -> Any:
        try:
            return engine.trainer(*args)
        except torch.OutOfMemoryError:
            return engine.trainer(*args)

    held = out_of_memory(monkeypatch)
    method(Engine, "_client", again)(monkeypatch)
    run(BASE, resume=False)
    assert held[4] > held[3]


def test_a_second_attempt_that_goes_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    held = out_of_memory(monkeypatch)

    def load(old: Any, *args: Any) -> None:
        if len(held) != 5:
            old(*args)

    sound = run(BASE, resume=False)
    held.clear()
    method(BoundModel, "load", load)(monkeypatch)
    assert not run(BASE, resume=False).same_as(sound)


# 4. The whole matrix

SKIP = "uplink.nonfinite=skip"
CNN = "model=cnn model.conv_channels=[4,8] model.hidden=8 model.kernel=3 model.image_size=12"
MATRIX = f"""
split=stage algorithm=fedprox transform=inco
split=stage transform=inco transform.rule=algorithm1 server=yogi algorithm=fednova local=sgd
split=stage transform=add_noise uplink=noise server=adam local=sgd local.max_grad_norm=0.5
split=stage algorithm=scaffold {SGD} server=adagrad
split=stage algorithm=scaffold algorithm.option=I algorithm.correction=post_step {SKIP}
split=stage algorithm=moon model.projection_head=mlp
split=stage algorithm=feddyn local=sgd uplink=clip server=sgd server.momentum=0.9
split=stage local.precision=bf16 {DIAGNOSTICS}
split=stage {DIAGNOSTICS} diagnostics.models=capacities diagnostics.pairs=paper
split=stage model.stem=imagenet
split=none capacity=all_large
split=isolated algorithm=scaffold {SGD} diagnostics=gradients diagnostics.every=1
split=inclusive transform=inco algorithm=feddyn
split=width {TWO_CLASSES} algorithm=scaffold {SGD}
split=width split.masked_loss=minus_inf {TWO_CLASSES} algorithm=fednova local=sgd
split=width algorithm=moon split.bn=batch
split=width {CNN} split.levels=[0.25,0.5,1.0]
split=rolling algorithm=fednova local=sgd split.weighting=width
split=rolling algorithm=scaffold {SGD}
split=rolling algorithm=feddyn split.window=random uplink=noise {TWO_CLASSES}
split=rolling algorithm=moon
split=scalefl split.start=2 algorithm=scaffold {SGD}
split=scalefl algorithm=moon local.precision=bf16
capacity=resampled split=stage algorithm=scaffold {SGD}
capacity=resampled split=width {TWO_CLASSES} algorithm=feddyn
""".strip().splitlines()
VIT_MATRIX = f"""
split=layer split.levels=[2,3,4] model.depth=4 algorithm=fedprox {DIAGNOSTICS}
split=layer split.levels=[2,3,4] model.depth=4 local.precision=bf16 local=sgd
split=width split.levels=[0.5,1.0] model.depth=4 algorithm=scaffold {SGD}
split=scalefl split.levels=[[0.5,1],[1.0,2]] split.exits=[2] model.depth=4
split=scalefl split.levels=[[0.5,1],[1.0,2]] split.exits=[2] model.depth=4 algorithm=moon
split=inclusive split.levels=[2,3,4] model.depth=4
""".strip().splitlines()


def values(line: str) -> str:
    """The values of a line of overrides: a name for a test."""
    words = [
        word.rpartition("=")[2] for word in line.split() if not word.startswith("diagnostics.")
    ]
    return "-".join(words)


@pytest.mark.full
@pytest.mark.parametrize("line", MATRIX, ids=values)
def test_the_matrix_of_resnets(line: str) -> None:
    narrow = () if "model=cnn" in line else ("model.widths=[2,4,4,8]",)
    base = [word for word in TINY if not word.startswith("model.")]
    check((*base, *narrow, *line.split()))


@pytest.mark.full
@pytest.mark.parametrize("line", VIT_MATRIX, ids=values)
def test_the_matrix_of_vits(line: str) -> None:
    check((*TINY_VIT, *line.split()))


@pytest.mark.parametrize("family", ["resnet", "vit"])
@pytest.mark.parametrize("name", ["cifar10", "cinic10", "svhn", "fashion_mnist", "digits"])
def test_images_are_prepared_on_the_gpu(name: str, family: str) -> None:
    shape = {"fashion_mnist": (1, 28, 28), "digits": (1, 8, 8)}.get(name, (3, 32, 32))
    with Pretend() as gpu:
        images = Images(on(20, *shape, dtype=torch.uint8), torch.arange(20, device=CUDA))
        for variant in ("published", "corrected"):
            recipe = make_recipe(name, shape, family, None, variant)
            for transform in (recipe.train, recipe.test):
                stream = generator(0, "augment", device=CUDA)
                for first in (True, False):
                    gpu.counts = Counts()
                    index = torch.arange(8, device=CUDA)
                    x, y = inco.clients.trainer.take(images, index, transform, stream)
                    assert x.device == CUDA and y.device == CUDA
                    assert first or not gpu.counts.syncs


# 5. What a round costs


@dataclass(frozen=True)
class Costs:
    """What a client of round 2 costs, and what the server and its scoring cost in it."""

    syncs: float
    transfers: float
    launches: float
    server_syncs: int
    server_launches: int


def costs(outcome: Outcome) -> Costs:
    clients = outcome.counts["clients 2"]
    server = outcome.counts["round 2"]
    totals = [c.total() for c in (clients.syncs, clients.transfers, clients.launches)]
    each = [total / outcome.trained for total in totals]
    return Costs(*each, server.syncs.total(), server.launches.total())


# Upper bounds: lower them when a change makes a round cheaper. `tests/gpu/counts.py` prints lines.
#
# A client of "stage-inco" waits 3 times: for the order of its examples to be sent (`_batches` of
# the trainer), for its loss to be read (the end of `Trainer.__call__`), and for the bounds of its
# uploads (`RoundSums._check`). With SCAFFOLD there are besides its own vector, from and to the store
# (`Trainer.__call__`, `ClientStore.save`), and `correction.any()` in `Scaffold.local_start`.
# The server waits 4 times: for what was skipped, losses and steps (`Cohort.average`), the norm of
# the update (`Simulator.round`), the metrics of InCo (`_metrics` of the transform), and the scores
# (`Evaluator.scores`); with static BatchNorm twice a level more (`StaticNorm.install`).
# Launches that neither pass causes are above all the copies and sums of runs (`Slice.gather`,
# `RoundSums`) and InCo's layers.
BOUNDS = {
    ("stage-inco", "eager"): Costs(3, 2, 349, 4, 306),
    ("stage-inco", "graph"): Costs(3, 2, 176, 4, 306),
    ("width-scaffold", "eager"): Costs(6, 4, 384, 6, 576),
    ("width-scaffold", "graph"): Costs(6, 4, 122, 6, 576),
}


@pytest.mark.parametrize(("name", "mode"), BOUNDS, ids="-".join)
def test_a_round_costs_no_more_than_it_did(name: str, mode: str) -> None:
    outcome = run(overrides_of(RUNS[name]), mode, resume=False)
    found = asdict(costs(outcome))
    bound = asdict(BOUNDS[name, mode])
    assert {k: v for k, v in found.items() if v > bound[k]} == {}
    lines = [*outcome.counts["clients 2"].launches, *outcome.counts["round 2"].launches]
    assert all(re.fullmatch(r"inco/[\w/]+\.py:\d+", line) for line in lines)


@pytest.mark.parametrize("name", ["stage-inco", "width-scaffold"])
def test_more_steps_do_not_wait_more(name: str) -> None:
    few = costs(run((*overrides_of(RUNS[name]), "local.batch_size=12"), resume=False))
    many = costs(run((*overrides_of(RUNS[name]), "local.batch_size=3"), resume=False))
    assert many.launches > few.launches
    assert (many.syncs, many.transfers) == (few.syncs, few.transfers)

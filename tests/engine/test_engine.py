"""Who trains whom: the longest-first plan by hand and against the best plan there is, a round of
one rank against sums by hand, failures that name their client, and random streams whose names are
all there is to them.
"""

import hashlib
import os
import socket
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import uploads_of
from torch import Tensor, nn

from inco.callbacks import Callback
from inco.clients.local import SGD, Local
from inco.clients.pool import ModelPool
from inco.data.dataset import Images
from inco.data.transforms import Normalise, Transform
from inco.engine.device import configure, set_precision, set_tf32
from inco.engine.engine import Engine
from inco.engine.failure import client_failed
from inco.engine.ranks import Ranks, _all_on_own_gpus
from inco.engine.workers import note
from inco.errors import ConfigError, NumericError, WorkerError
from inco.evaluation.evaluator import Evaluator
from inco.fast.schedule import assign
from inco.flat import Layout, Slice
from inco.seeding import generator, numpy_rng, seed_for
from inco.server.aggregate import Holders
from inco.types import ClientResult, ClientTask, Output, SubModel


@pytest.mark.parametrize(
    ("costs", "workers", "plan"),
    [
        ([5, 3, 3, 2, 2], 2, [[0, 3], [1, 2, 4]]),  # 5 | 3, then 5 | 6, then 7 | 6, then 7 | 8
        ([1, 9, 5], 3, [[1], [2], [0]]),
        ([4, 4, 4, 4], 2, [[0, 2], [1, 3]]),  # ties: earlier task first, lower rank first
        ([2, 1], 4, [[0], [1], [], []]),
        ([0.0, 0.0, 0.0], 2, [[0, 1, 2], []]),
        ([], 2, [[], []]),
        ([3, 8, 1], 1, [[1, 0, 2]]),
    ],
)
def test_plans_by_hand(costs: list[float], workers: int, plan: list[list[int]]) -> None:
    assert assign(costs, workers) == plan


def loads(costs: list[int], plan: list[list[int]]) -> list[int]:
    return [sum(costs[i] for i in mine) for mine in plan]


def test_plans_are_near_the_best() -> None:
    """Graham (1969): the longest load is at most 4/3 - 1/(3 m) of the best plan's, found by trying
    all of them.
    """
    stream = numpy_rng(0, "costs")
    worst = 1.0
    for workers, count in product((2, 3), range(1, 8)):
        plans = list(product(range(workers), repeat=count))
        for _ in range(4):
            costs = stream.integers(1, 12, count).tolist()
            best = min(
                max(sum(c for c, k in zip(costs, p, strict=True) if k == w) for w in range(workers))
                for p in plans
            )
            found = assign(costs, workers)
            assert max(loads(costs, found)) <= (4 / 3 - 1 / (3 * workers)) * best
            worst = max(worst, max(loads(costs, found)) / best)
    assert max(loads([3, 3, 2, 2, 2], assign([3, 3, 2, 2, 2], 2))) == 7, (
        "and the bound is met: the best is 6"
    )
    assert worst > 1.0, "some cases are hard ones"


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
def test_every_task_once_and_always_the_same_plan(workers: int) -> None:
    costs = numpy_rng(1, "costs").integers(1, 5, 50).tolist()  # many ties
    plan = assign(costs, workers)
    assert len(plan) == workers and sorted(i for mine in plan for i in mine) == list(range(50))
    assert plan == assign(list(costs), workers) == assign([c * 1024.0 for c in costs], workers), (
        "the unit of cost does not matter"
    )
    assert all(
        [costs[i] for i in mine] == sorted((costs[i] for i in mine), reverse=True) for mine in plan
    ), "longest first"


def test_streams_are_pinned() -> None:
    """Published results hang on these numbers: they are blake2b of the name, and change for
    nobody.
    """
    assert seed_for(0, "init") == 7797302695267191734
    assert seed_for(0, "shuffle", 3, 17) == 7663804454969175675
    assert seed_for(12345, "cohort", 1) == 1150115919344408916
    name = hashlib.blake2b(b"0/shuffle/3/17", digest_size=8).hexdigest()
    assert seed_for(0, "shuffle", 3, 17) == int(name, 16) // 2 < 2**63
    assert numpy_rng(0, "cohort", 1).integers(0, 1000, 4).tolist() == [56, 231, 728, 490]
    assert torch.randperm(6, generator=generator(0, "shuffle", 1, 2)).tolist() == [0, 5, 1, 2, 4, 3]


def test_streams_are_distinct() -> None:
    purposes = (
        "init",
        "shuffle",
        "augment",
        "dropout",
        "uplink",
        "test",
        "cohort",
        "capacity",
        "partition",
    )
    paths = [
        (),
        *((r,) for r in range(15)),
        *product(range(15), range(15)),
        (1, 11),
        (11, 1),
        (111,),
    ]
    names = {(s, p, path) for s in (0, 1, 10) for p in purposes for path in paths}
    assert len({seed_for(s, p, *path) for s, p, path in names}) == len(names)


def test_streams_do_not_know_each_other() -> None:
    first = torch.rand(4, generator=generator(0, "shuffle", 1, 2))
    other = generator(0, "shuffle", 1, 3)
    torch.rand(100, generator=other)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(4, generator=generator(0, "shuffle", 1, 2)), first)
    assert not torch.equal(torch.rand(4, generator=generator(1, "shuffle", 1, 2)), first)


class Pixels(nn.Module):
    """Logits from four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Output:
        return Output(self.fc(x.flatten(1)), x.flatten(1))


LAYOUT = Layout.of({"fc.weight": torch.zeros(2, 4)})
NOTHING = Slice(Layout([]), torch.empty(0, dtype=torch.int64))
SUBS = {0: SubModel(0, "pixels", Pixels, Slice(LAYOUT, torch.arange(8)), NOTHING)}
TASKS = [ClientTask(c, 4, 0, torch.arange(c + 1)) for c in (6, 2, 9)]


class Fake:
    """A trainer whose clients send their own number, or fail as they are told."""

    local: Local = SGD(1, 4, 0.1, momentum=0.5)

    def __init__(self, fail: Mapping[int, Exception] | None = None) -> None:
        self.fail, self.trained = fail or {}, []

    def __call__(
        self, task: ClientTask, sub: SubModel, w: Tensor, b: Tensor, server: Mapping[str, Tensor]
    ) -> ClientResult:
        self.trained.append(task.client)
        if task.client in self.fail:
            raise self.fail[task.client]
        sent = {"delta": torch.full((8,), float(task.client)), "buffers": torch.empty(0)}
        return ClientResult(task, sent, task.client / 8, task.client)

    def steps(self, examples: int) -> int:
        return 10 * examples


def engine(trainer: Fake) -> Engine:
    test = Images(torch.randint(256, (30, 1, 2, 2), dtype=torch.uint8), torch.arange(30) % 2)
    evaluator = Evaluator(ModelPool(SGD(1, 4, 0.1), "cpu"), test, Transform([Normalise()]), [0], 0)
    one = Ranks(0, 1, torch.device("cpu"))
    sizes = {"params": LAYOUT.numel, "buffers": 0}
    holders = Holders({0: 12})
    return Engine(one, trainer, evaluator, uploads_of(), sizes, holders, 3, {0: 2.0})  # type: ignore[arg-type]


def test_a_round_of_one_rank() -> None:
    """Longest client first, results in cohort order, the mean weighted by examples; a second round
    starts from nothing.
    """
    trainer, ticks = Fake(), []
    house = engine(trainer)

    class Ticking(Callback):
        def on_client_end(self, task: ClientTask, done: int, of: int) -> None:
            ticks.append((done, of))

    w, b = torch.zeros(8), torch.empty(0)
    for _ in range(2):
        found = house.map_reduce(house.cohort(TASKS, SUBS), w, b, {}, callbacks=[Ticking()])
        assert torch.allclose(
            found.mean["delta"], torch.full((8,), (6 * 7 + 2 * 3 + 9 * 10) / 20), rtol=1e-7
        )
        assert [(row.client, row.loss, row.steps) for row in found.clients] == [
            (6, 0.75, 6),
            (2, 0.25, 2),
            (9, 1.125, 9),
        ]
    assert trainer.trained == [9, 6, 2] * 2 and ticks == [(1, 3), (2, 3), (3, 3)] * 2


def test_what_is_known_before_a_round() -> None:
    """Steps as the trainer counts them, examples, the local momentum; three of twelve take part, on
    the server's coordinates.
    """
    trainer = Fake()
    cohort = engine(trainer).cohort(TASKS, SUBS)
    assert (cohort.steps, cohort.examples, cohort.momentum) == (
        (70, 30, 100),
        (7, 3, 10),
        0.5,
    ) and not trainer.trained
    assert torch.equal(cohort.participation(), torch.full((8,), 0.25))
    assert cohort.uploads == uploads_of()


def test_failures_name_their_client_and_leave_nothing() -> None:
    house = engine(Fake({2: RuntimeError("out of memory")}))
    w = torch.zeros(8)
    with pytest.raises(
        WorkerError,
        match=(
            r"round 4, client 2 \(pixels, 3 examples\) failed on worker 0: RuntimeError: out of"
            r" memory; nothing of this round"
        ),
    ) as caught:
        house.map_reduce(house.cohort(TASKS, SUBS), w, torch.empty(0), {})
    assert (
        "Traceback" in caught.value.detail
        and "out of memory" in caught.value.detail
        and not w.any()
    )
    own, other = NumericError("diverged"), engine(Fake())
    with pytest.raises(NumericError) as kept:
        engine(Fake({9: own})).map_reduce(house.cohort(TASKS, SUBS), w, torch.empty(0), {})
    assert kept.value is own, "errors of our own pass as they are"
    house.trainer = Fake()  # type: ignore[assignment]
    again, alone = (
        e.map_reduce(e.cohort(TASKS, SUBS), w, torch.empty(0), {}) for e in (house, other)
    )
    assert torch.equal(again.mean["delta"], alone.mean["delta"]) and alone.mean["delta"].all()


def test_scoring_takes_every_unit() -> None:
    house = engine(Fake())
    w = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1])  # always class 0
    assert house.evaluate(SUBS, w, torch.empty(0), 1)[0].accuracy == 50.0
    assert house.evaluate(SUBS, w, torch.empty(0), 1)[0].count == 30


def test_a_gpu_that_runs_out_of_memory_is_told_with_what_may_help() -> None:
    told = str(
        client_failed(
            ClientTask(2, 4, 0, torch.arange(3)),
            SUBS[0],
            1,
            torch.OutOfMemoryError("CUDA out of memory"),
        )
    )
    assert told.startswith(
        "round 4, client 2 (pixels, 3 examples) failed on worker 1: OutOfMemoryError: CUDA out of"
        " memory (peak "
    )
    assert "use a smaller local.batch_size, or fewer engine.workers" in told
    assert "batch_size" not in str(
        client_failed(ClientTask(2, 4, 0, torch.arange(3)), SUBS[0], 1, RuntimeError("other"))
    )


def test_the_second_attempt_has_the_memory_of_the_first() -> None:
    """An exception under way would keep the failed attempt's tensors by its traceback."""
    held: list[weakref.ref[Tensor]] = []

    class Short(Fake):
        def __call__(self, task: ClientTask, *args: object) -> ClientResult:
            activations = torch.zeros(10)
            if not held:
                held.append(weakref.ref(activations))
                raise torch.OutOfMemoryError("CUDA out of memory")
            assert held[0]() is None
            return super().__call__(task, *args)  # type: ignore[arg-type]

    house = engine(Short())
    found = house.map_reduce(house.cohort(TASKS, SUBS), torch.zeros(8), torch.empty(0), {})
    assert held and [row.client for row in found.clients] == [6, 2, 9]


# --- devices


@pytest.fixture
def tf32() -> Iterator[None]:
    yield
    set_tf32(False)


def test_float32_on_a_gpu_is_float32_unless_asked_otherwise(tf32: None) -> None:
    """torch's own default lets convolutions round to TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for precision, kind in (("tf32", "tf32"), ("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        set_precision(torch.device("cuda"), precision)
        assert matmul.fp32_precision == cudnn.fp32_precision == cudnn.conv.fp32_precision == kind


def test_tf32_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"local\.precision=tf32 .*use local\.precision=fp32"):
        set_precision(torch.device("cpu"), "tf32")


def test_a_gpu_is_set_up_in_one_place(monkeypatch: pytest.MonkeyPatch, tf32: None) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    try:
        configure(torch.device("cuda", 1))
        assert chosen == [torch.device("cuda", 1)]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill


# --- which backend


class Keys(dict):
    """A store, as far as agreeing on a backend needs one."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


@pytest.mark.parametrize(
    ("others", "mine", "nccl"),
    [
        (["a gpu-1"], "gpu-0", True),
        (["a gpu-0"], "gpu-0", False),  # two ranks on one GPU: NCCL refuses them
        (["b gpu-0", "b gpu-1"], "gpu-0", True),  # one GPU a rank and more nodes
        (["cpu"], "cpu", False),
    ],
)
def test_all_ranks_agree_on_a_backend(
    others: list[str], mine: str, nccl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a")
    properties = SimpleNamespace(uuid=mine)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: properties)
    keys = Keys({f"device/{r}": name.encode() for r, name in enumerate(others, start=1)})
    place = torch.device("cpu" if mine == "cpu" else "cuda")
    assert _all_on_own_gpus(keys, 0, 1 + len(others), place) == nccl  # type: ignore[arg-type]


def test_nodes_with_and_without_gpus_are_refused() -> None:
    keys = Keys({"device/1": b"b gpu-0"})
    with pytest.raises(ConfigError, match=r"ranks \[0\] see no GPU and the others do"):
        _all_on_own_gpus(keys, 0, 2, torch.device("cpu"))  # type: ignore[arg-type]


def test_a_note_is_read_whole_while_it_is_replaced(tmp_path: Path) -> None:
    """Whoever finds a worker dead says what it was at, even if it died while writing."""
    path = tmp_path / "worker_1.doing"
    words = [f"round {number}, client {number}" for number in range(300)]
    note(path, words[0])
    seen = set()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [note(path, text) for text in words])
        while not writing.done():
            seen.add(path.read_text())
    assert seen <= set(words) and path.read_text() == words[-1]

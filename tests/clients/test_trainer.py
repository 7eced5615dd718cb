"""Local training and scoring: batches of an epoch, the loop against one written out by hand,
results that depend on (seed, round, client) alone and never on who was trained before, and test
images that are each scored once however the work is divided.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inco.algorithms.fedavg import FedAvg
from inco.clients.local import SGD, Adam, Local
from inco.clients.pool import ModelPool
from inco.clients.store import ClientStore
from inco.clients.trainer import Trainer, train_locally
from inco.clients.uplink import Clean
from inco.data.dataset import Images
from inco.data.transforms import Normalise, RandomCrop, RandomFlip, Transform
from inco.evaluation.evaluator import BATCH, Evaluator
from inco.fast.schedule import assign
from inco.models.resnet import ResNetFamily
from inco.seeding import generator
from inco.splits.depth import Depth
from inco.types import ClientResult, ClientTask, LocalRun, Output

FAMILY = ResNetFamily([2, 2], [4, 6], "small", shape=(1, 8, 8), num_classes=3)
SPLIT = Depth([[1, 1], [2, 2]], family=FAMILY)
SUBS = {level: SPLIT.submodel(level, 1) for level in (0, 1)}
SCALE = Normalise((0.5,), (0.25,))


def images(count: int, seed: int = 0) -> Images:
    stream = torch.Generator().manual_seed(seed)
    return Images(
        torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=stream),
        torch.randint(3, (count,), generator=stream),
    )


def store() -> ClientStore:
    return ClientStore(None, False, SPLIT.params.numel, SPLIT.buffers.numel)


def trainer(local: Local, algorithm: FedAvg | None = None, seed: int = 0) -> Trainer:
    augmented = Transform([RandomCrop(1), RandomFlip(), SCALE])
    return Trainer(
        ModelPool(local, "cpu"),
        algorithm or FedAvg(),
        local,
        Clean(),
        images(60),
        augmented,
        2,
        seed,
        store(),
    )


def train(
    worker: Trainer, client: int, round: int = 1, level: int = 1, count: int = 11
) -> ClientResult:
    task = ClientTask(client, round, level, torch.arange(count) + 5 * client)
    w, b = SPLIT.initial(0)
    result = worker(task, SUBS[level], w, b, {})
    return ClientResult(
        task,
        {n: v.clone() for n, v in result.vectors.items()},
        result.loss,
        result.steps,
    )


def same(a: ClientResult, b: ClientResult) -> bool:
    vectors = all(torch.equal(a.vectors[n], b.vectors[n]) for n in a.vectors)
    return vectors and (a.loss, a.steps) == (b.loss, b.steps)


BATCHES = {
    "whole batches": (12, 4, False, 2, [(0, 4), (4, 8), (8, 12)]),
    "a short last one": (11, 4, False, 2, [(0, 4), (4, 8), (8, 11)]),
    "a single one joins": (9, 4, False, 2, [(0, 4), (4, 9)]),
    "a single one may stay": (9, 4, False, 1, [(0, 4), (4, 8), (8, 9)]),
    "dropped": (11, 4, True, 2, [(0, 4), (4, 8)]),
    "a single one dropped": (9, 4, True, 2, [(0, 4), (4, 8)]),
    "nothing to drop": (8, 4, True, 2, [(0, 4), (4, 8)]),
    "smaller than a batch": (3, 4, False, 2, [(0, 3)]),
    "smaller, never dropped": (3, 4, True, 2, [(0, 3)]),
    "one batch and one": (5, 4, False, 2, [(0, 5)]),
    "one example": (1, 4, False, 1, [(0, 1)]),
    "batches of one": (3, 1, False, 1, [(0, 1), (1, 2), (2, 3)]),
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches(case: str) -> None:
    count, size, drop_last, smallest, expected = BATCHES[case]
    assert SGD(1, size, 0.1, drop_last=drop_last).batches(count, smallest) == expected


def test_batches_in_general() -> None:
    """Spans follow one another from 0; without drop_last to the end; only the last may differ in
    size, by less than `smallest` above.
    """
    for count in range(1, 40):
        for size in range(1, 9):
            for drop_last in (False, True):
                spans = SGD(1, size, 0.1, drop_last=drop_last).batches(count, 2)
                lengths = [stop - start for start, stop in spans]
                assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
                assert spans[-1][1] == (
                    count if not drop_last or count < size else count - count % size
                )
                assert all(n == size for n in lengths[:-1]) and 1 <= lengths[-1] <= size + 1
                assert size == 1 or count == 1 or min(lengths) >= 2


class Linear(nn.Module):
    """One linear layer on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Output:
        return Output(self.fc(x.flatten(1)), x.flatten(1))


class Pull(FedAvg):
    """A loss term 0.05 |w - w0|^2, and a gradient raised by 0.01: both hooks at work."""

    def local_loss(self, run: LocalRun, output: Output, x: Tensor) -> Tensor:
        return 0.05 * (run.model.fc.weight.flatten() - run.w0).square().sum()

    def local_grad(self, run: LocalRun) -> None:
        run.g.add_(0.01)


@pytest.mark.parametrize("hooks", [False, True])
def test_the_loop_written_out(hooks: bool) -> None:
    """Softmax regression by hand in float64: gradient (p - onehot)^T x / m, heavy-ball momentum;
    the loss is a mean over examples.
    """
    local = SGD(1, 3, 0.2, momentum=0.5)
    model = Linear()
    w, g = torch.zeros(12), torch.zeros(12)
    w.copy_(torch.linspace(-1, 1, 12))
    model.fc.weight.data, model.fc.weight.grad = w.view(3, 4), g.view(3, 4)
    flat = nn.Parameter(w)
    flat.grad = g
    stream = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(m, 1, 2, 2, generator=stream), torch.randint(3, (m,), generator=stream))
        for m in (3, 3, 2, 5)
    ]
    run = LocalRun(ClientTask(0, 1, 0, torch.arange(13)), model, w.clone(), w, g, 0.2)
    loss = train_locally(run, Pull() if hooks else FedAvg(), local.optimizer(flat), iter(data))

    v, start = torch.zeros(3, 4).double(), torch.linspace(-1, 1, 12).double().view(3, 4)
    mine, total = start.clone(), 0.0
    for x, y in data:
        x = x.flatten(1).double()
        p = (x @ mine.T).softmax(1)
        here = -p[torch.arange(len(y)), y].log().mean()
        gradient = (p - F.one_hot(y, 3)).T @ x / len(y)
        if hooks:
            here = here + 0.05 * (mine - start).square().sum()
            gradient = gradient + 0.1 * (mine - start) + 0.01
        total += float(here) * len(y)
        v = 0.5 * v + gradient
        mine = mine - 0.2 * v
    assert (
        torch.allclose(w.double(), mine.flatten(), atol=1e-6)
        and run.steps == 4
        and not torch.equal(w, run.w0)
    )
    assert loss.item() == pytest.approx(total / 13, abs=1e-6)


class Watching(FedAvg):
    """FedAvg that keeps the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def local_loss(self, run: LocalRun, output: Output, x: Tensor) -> float:
        self.seen.append(x.clone())
        return 0.0


def marked(
    local: Local, client: int = 2, round: int = 1
) -> tuple[list[int], Trainer, ClientResult]:
    """Train on images whose every pixel is their own number, and return the numbers in the order of
    training.
    """
    watching = Watching()
    numbered = Images(
        torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 1, 8, 8).contiguous(),
        torch.arange(60) % 3,
    )
    scale = Transform([Normalise((0.0,), (1 / 255,))])
    worker = Trainer(
        ModelPool(local, "cpu"), watching, local, Clean(), numbered, scale, 2, 0, store()
    )
    result = train(worker, client, round)
    return [int(v + 0.5) for x in watching.seen for v in x[:, 0, 0, 0]], worker, result


def test_every_example_once_an_epoch() -> None:
    order, worker, result = marked(SGD(3, 4, 0.01))
    epochs = [order[i : i + 11] for i in (0, 11, 22)]
    assert [sorted(e) for e in epochs] == [list(range(10, 21))] * 3 and len(
        order
    ) == 33 == worker.images_trained(11)
    assert epochs[0] != epochs[1] != epochs[2] and result.steps == 9 == worker.steps(11), (
        "shuffled anew each epoch; 4 + 4 + 3"
    )


def test_the_order_is_drawn_for_each_client_and_round() -> None:
    """Positions within the client's own examples; one epoch of 11 has 40 million orders."""
    local = SGD(1, 4, 0.01)
    orders = [
        tuple(n - 5 * c for n in marked(local, c, r)[0])
        for c, r in ((2, 1), (3, 1), (2, 2), (2, 1))
    ]
    assert len(set(orders)) == 3 and orders[0] == orders[3]


def test_dropped_examples_differ_by_epoch() -> None:
    order, worker, result = marked(SGD(2, 4, 0.01, drop_last=True))
    assert len(order) == 16 == worker.images_trained(11) and result.steps == 4 == worker.steps(11)
    epochs = [order[:8], order[8:]]
    assert all(len(set(e)) == 8 and set(e) <= set(range(10, 21)) for e in epochs) and set(
        epochs[0]
    ) != set(epochs[1])


@pytest.mark.parametrize(
    "local", [SGD(2, 4, 0.05, momentum=0.9), Adam(2, 4, 0.01)], ids=["sgd", "adam"]
)
def test_a_client_does_not_see_who_came_before(local: Local) -> None:
    """Bitwise, with BatchNorm, augmentation and optimizer moments, after clients of both levels and
    one that diverged.
    """
    alone = train(trainer(local), 3)
    worker = trainer(local)
    others = [
        train(worker, c, r, level) for c, r, level in ((0, 1, 1), (5, 2, 0), (3, 2, 1), (1, 1, 1))
    ]
    bound = worker.pool.get(SUBS[1]).bound
    bound.g.fill_(float("nan"))
    worker.pool.get(SUBS[1]).optimizer.step()
    bound.b.fill_(float("inf"))
    torch.manual_seed(99)
    assert same(train(worker, 3), alone) and not any(same(o, alone) for o in others)


def test_a_client_depends_on_seed_round_and_client() -> None:
    local = SGD(1, 4, 0.05)
    task = ClientTask(3, 1, 1, torch.arange(11))
    w, b = SPLIT.initial(0)

    def delta(seed: int, **change: int) -> Tensor:
        changed = ClientTask(change.get("client", 3), change.get("round", 1), 1, task.examples)
        return trainer(local, seed=seed)(changed, SUBS[1], w, b, {}).vectors["delta"].clone()

    base = delta(0)
    assert torch.equal(delta(0), base)
    assert all(
        not torch.equal(other, base) for other in (delta(1), delta(0, round=2), delta(0, client=4))
    )


def test_what_a_client_sends() -> None:
    """Its weights less those received, its buffers with counters, and its share of the server's own
    vectors while it trains.
    """
    seen = {}

    class Spy(FedAvg):
        downloads, free_downloads = ("c",), ("d",)

        def local_start(self, run: LocalRun) -> None:
            seen.update(
                {n: v.clone() for n, v in run.server.items()}, w0=run.w.clone(), b0=run.b.clone()
            )

    worker = trainer(SGD(2, 4, 0.05), Spy())
    w, b = SPLIT.initial(0)
    kept, control = (w.clone(), b.clone()), torch.randn(len(w))
    task = ClientTask(3, 1, 0, torch.arange(11))
    result = worker(task, SUBS[0], w, b, {"c": control, "d": 2 * control, "unread": w})
    index = SUBS[0].params.index
    assert torch.equal(seen.pop("c"), control[index]) and torch.equal(
        seen.pop("d"), 2 * control[index]
    )
    assert (
        torch.equal(seen.pop("w0"), w[index])
        and torch.equal(seen.pop("b0"), b[SUBS[0].buffers.index])
        and not seen
    )
    assert (
        torch.equal(result.vectors["delta"], worker.pool.get(SUBS[0]).bound.w - w[index])
        and result.vectors["delta"].any()
    )
    assert torch.equal(w, kept[0]) and torch.equal(b, kept[1]), (
        "the server's vectors are as they were"
    )
    counts = [
        SUBS[0].buffers.layout.view(result.vectors["buffers"], n).item()
        for n in SUBS[0].buffers.layout.entries
        if n.endswith("tracked")
    ]
    assert set(counts) == {6.0} and result.steps == 6


LEVELS = (0, 1)
TEST = images(2 * BATCH + 37, 5)


def evaluator(transform: Transform | None = None, test: Images = TEST) -> Evaluator:
    return Evaluator(
        ModelPool(SGD(1, 4, 0.1), "cpu"), test, transform or Transform([SCALE]), LEVELS, 0
    )


def server() -> tuple[Tensor, Tensor]:
    """A server whose BatchNorm statistics matter: a model scored in training mode would differ."""
    w, b = SPLIT.initial(0)
    return w, b + 0.5


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_any_division_scores_the_same(parts: int) -> None:
    """Every test image once a level, whoever scores it: tables of the parts add up to the same
    bits.
    """
    w, b = server()
    random = Transform([RandomCrop(1), RandomFlip(), SCALE])
    units, costs = evaluator().units({0: 1.0, 1: 3.0})
    assert len(units) == 6 and costs == [1.0] * 3 + [3.0] * 3
    whole = evaluator(random).score(units, SUBS, w, b, 1)
    tables = [
        evaluator(random).score([units[i] for i in mine], SUBS, w, b, 1)
        for mine in assign(costs, parts)
    ]
    assert (
        torch.equal(sum(tables, torch.zeros_like(whole)), whole)
        and whole[:, 1].tolist() == [len(TEST.labels)] * 2
    )


def test_scores_are_those_of_a_direct_computation() -> None:
    w, b = server()
    scorer = evaluator()
    found = scorer.scores(scorer.score(scorer.units({0: 1, 1: 1})[0], SUBS, w, b, 1))
    for level, score in found.items():
        model, sub = SUBS[level].build().eval(), SUBS[level]
        own_w, own_b = w[sub.params.index], b[sub.buffers.index]
        views = sub.params.layout.views(own_w) | sub.buffers.layout.views(own_b)
        model.load_state_dict({n: views[n].to(t.dtype) for n, t in model.state_dict().items()})
        with torch.no_grad():
            logits = model(SCALE(TEST.images, generator(0, "unused"))).logits.double()
        assert score.count == len(TEST.labels)
        assert score.accuracy == pytest.approx(
            100 * (logits.argmax(1) == TEST.labels).double().mean().item(),
            abs=100 / len(TEST.labels),
        )
        assert score.loss == pytest.approx(F.cross_entropy(logits, TEST.labels).item(), rel=1e-5)


def test_scoring_leaves_training_alone_and_tells_a_broken_model() -> None:
    worker = trainer(SGD(1, 4, 0.05))
    alone = train(trainer(SGD(1, 4, 0.05)), 3)
    w, b = server()
    shared = Evaluator(worker.pool, TEST, Transform([SCALE]), LEVELS, 0)
    units = shared.units({0: 1, 1: 1})[0]
    before = shared.score(units, SUBS, w, b, 1)
    assert same(train(worker, 3), alone) and torch.equal(shared.score(units, SUBS, w, b, 1), before)
    nan = w.clone()
    nan[SUBS[0].params.index[-1]] = float("nan")
    score = shared.scores(shared.score(units, SUBS, nan, b, 1))[0]
    assert score.loss != score.loss and score.count == len(TEST.labels)


def test_a_clients_vectors_are_gone_when_it_has_been_trained() -> None:
    """No reference cycle keeps them until Python's collector comes by: they are as large as the
    model.
    """
    import gc
    import weakref

    from support import TINY, simulate

    from inco.algorithms.scaffold import Scaffold

    seen: list[weakref.ref] = []
    start = Scaffold.local_start

    def watch(self: Scaffold, run: LocalRun) -> None:
        seen.append(weakref.ref(run))
        start(self, run)

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scaffold, "local_start", watch)
            simulate(*TINY, "algorithm=scaffold", "local=sgd", "local.momentum=0", rounds=1)
        assert len(seen) == 5 and all(ref() is None for ref in seen)
    finally:
        gc.enable()

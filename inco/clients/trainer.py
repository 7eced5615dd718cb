"""The one local training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.clients.local import Local, Optimizer, reset
from inco.clients.pool import ModelPool
from inco.clients.store import ClientStore
from inco.clients.uplink import Uplink
from inco.data.dataset import Images
from inco.data.transforms import Transform
from inco.fast.bound import BoundModel
from inco.fast.cuda_graphs import CapturedPasses, plain_pass
from inco.seeding import default_generator, generator, seed_for
from inco.spans import span
from inco.types import ClientResult, ClientTask, LocalRun, Objective, SubModel, cross_entropy

Batch = tuple[Tensor, Tensor]  # images [m, C, S, S], labels [m]


def train_locally(
    run: LocalRun,
    algorithm: Algorithm,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    precision: str = "fp32",
    objective: Objective = cross_entropy,
    max_grad_norm: float | None = None,
    captured: Callable[[Tensor, Tensor], Tensor | None] = lambda x, y: None,
) -> Tensor:
    """Take one local step a batch and return the mean loss over the examples seen (a scalar on the
    device).

    `captured`: a faster way to leave a batch's gradient in `run.g`; it returns the loss, or None
    where the batch must take the usual way.

    The order is a contract: forward, `objective` plus `local_loss`, backward, clipping to
    `max_grad_norm`, `local_grad`, optimizer step, `local_step`.
    """
    run.model.train()
    reset(optimizer)
    algorithm.local_start(run)
    device = run.w.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    seen = 0
    for x, y in batches:
        run.g.zero_()
        with span("captured pass"):
            loss = captured(x, y)
        if loss is None:
            with span("forward"):
                output, plain = plain_pass(run.model, objective, x, y, run.task, precision)
                loss = plain + algorithm.local_loss(run, output, x)
            with span("backward"):
                loss.backward()
        with span("clipping and the algorithm's hooks"):
            if max_grad_norm is not None:
                run.g.mul_(
                    (max_grad_norm / torch.linalg.vector_norm(run.g))
                    .clamp_(max=1.0)
                    .nan_to_num_(1.0)
                )
            algorithm.local_grad(run)
        with span("optimizer"):
            optimizer.step()
        run.steps += 1
        algorithm.local_step(run)
        total += loss.detach() * len(y)
        seen += len(y)
    return total / max(seen, 1)


class Trainer:
    """Trains clients on one worker, one after the other, in models that are kept.

    `train`: the whole training set, resident on the device; `smallest`: the smallest batch that the
    model bears; `store`: where clients' own vectors wait for their next round; `passes`: captured
    passes, on a GPU.
    """

    def __init__(
        self,
        pool: ModelPool,
        algorithm: Algorithm,
        local: Local,
        uplink: Uplink,
        train: Images,
        transform: Transform,
        smallest: int,
        seed: int,
        store: ClientStore,
        passes: CapturedPasses | None = None,
    ) -> None:
        self.passes = passes
        self.pool = pool
        self.algorithm = algorithm
        self.local = local
        self.uplink = uplink
        self.train = train
        self.transform = transform
        self.smallest = smallest
        self.seed = seed
        self.store = store
        self._before: dict[str, Tensor] = {}  # the last client's own vectors as they were

    def __call__(
        self, task: ClientTask, sub: SubModel, w: Tensor, b: Tensor, server: Mapping[str, Tensor]
    ) -> ClientResult:
        """Train one client from the server's parameters `w` [P], buffers `b` [B] and its
        algorithm's vectors [P].
        """
        # torch.manual_seed keeps a note, with a traceback, for every kind of device that has not
        # been used yet: slow, and ever more memory
        default_generator(self.pool.device).manual_seed(
            seed_for(self.seed, "dropout", task.round, task.client)
        )
        with span("load the client"):
            pooled = self.pool.get(sub)
            bound = pooled.bound
            bound.load(w, b, sub.params, sub.buffers)
            run = self._start(task, sub, bound, server)
            if self.algorithm.stateful:
                kept = self.store.load(task, sub)
                run.state = (
                    self.algorithm.init_client(run)
                    if kept is None
                    else {k: v.to(self.pool.device) for k, v in kept.items()}
                )
                self._before = (
                    {k: v.clone() for k, v in run.state.items()}
                    if self.uplink.nonfinite == "skip"
                    else {}
                )
        passes = self.passes
        algorithm = self.algorithm

        def captured(x: Tensor, y: Tensor) -> Tensor | None:
            return (
                passes.run(bound, sub.objective, x, y, task)
                if passes and passes.fits(algorithm, x)
                else None
            )

        with bound.uncounted():
            loss = train_locally(
                run,
                self.algorithm,
                pooled.optimizer,
                self._batches(task),
                self.local.precision,
                sub.objective,
                self.local.max_grad_norm,
                captured,
            )
        with span("upload"):
            bound.count_batches(run.steps)
            buffers = bound.read_buffers()
            vectors = {**self._uploads(run, sub), "buffers": buffers}
            if self.algorithm.stateful:
                self.store.save(task, sub, run.state)
        return ClientResult(task, {**vectors, **sub.derive(vectors)}, float(loss), run.steps)

    def _uploads(self, run: LocalRun, sub: SubModel) -> dict[str, Tensor]:
        """Return the algorithm's uploads as they arrive at the server.

        Raises ValueError where they are not what it declares.
        """
        declared = self.algorithm.uploads
        sent = self.algorithm.local_end(run)
        wanted = {name: (sub.held(upload, name).layout.numel,) for name, upload in declared.items()}
        found = {name: tuple(vector.shape) for name, vector in sent.items()}
        if found != wanted:
            raise ValueError(
                f"local_end returns uploads of these shapes: {found}; `uploads` declares {wanted}"
            )
        of_parameters = {n: v for n, v in sent.items() if declared[n].entries == "params"}
        stream = self._stream("uplink", run.task)
        return {**sent, **self.uplink(of_parameters, sub.params.layout, stream)}

    def put_back(self, task: ClientTask, sub: SubModel) -> None:
        """Let the client that was trained last keep the vectors that it had before: its upload is
        not used.
        """
        if self.algorithm.stateful:
            self.store.save(task, sub, self._before)

    def _start(
        self, task: ClientTask, sub: SubModel, bound: BoundModel, server: Mapping[str, Tensor]
    ) -> LocalRun:
        names = (*self.algorithm.downloads, *self.algorithm.free_downloads)
        mine = {name: sub.params.gather(server[name], torch.empty_like(bound.w)) for name in names}
        run = LocalRun(
            task,
            bound.model,
            bound.w.clone(),
            bound.w,
            bound.g,
            self.local.lr,
            self.local.momentum,
            bound.b.clone(),
            bound.b,
            mine,
        )
        run.frozen = lambda role, w, b: self.pool.frozen(sub, role, w, b)
        run.full_gradient = lambda: self._full_gradient(task, bound, sub.objective)
        return run

    def _full_gradient(self, task: ClientTask, bound: BoundModel, objective: Objective) -> Tensor:
        """Return the mean gradient over all the client's examples at the current weights, [n].

        Images are augmented; what the algorithm adds to a loss is left out.
        """
        before = bound.read_buffers().clone()
        total = torch.zeros_like(bound.g)
        augment = self._stream("full_gradient", task)
        dropout = default_generator(self.pool.device)
        drawn = dropout.get_state()
        examples = task.examples.to(self.pool.device)
        for start, stop in self.local.batches(len(examples), self.smallest, drop_last=False):
            x, y = take(self.train, examples[start:stop], self.transform, augment)
            bound.g.zero_()
            plain_pass(bound.model, objective, x, y, task, self.local.precision)[1].backward()
            total += bound.g * len(y)
        bound.set_buffers(before)
        dropout.set_state(drawn)  # dropout of the local steps is as without this pass
        return total / len(examples)

    def steps(self, examples: int) -> int:
        """Return the local steps of a client with so many examples."""
        return self.local.steps(examples, self.smallest)

    def images_trained(self, examples: int) -> int:
        """Return how many images a client with so many examples trains on in a round."""
        return self.local.epochs * self.local.batches(examples, self.smallest)[-1][1]

    def _batches(self, task: ClientTask) -> Iterator[Batch]:
        """Yield each epoch's batches: examples shuffled and augmented from the client's own streams
        of this round.
        """
        shuffle = generator(self.seed, "shuffle", task.round, task.client)
        augment = self._stream("augment", task)
        spans = self.local.batches(len(task.examples), self.smallest)
        for _ in range(self.local.epochs):
            order = task.examples[torch.randperm(len(task.examples), generator=shuffle)].to(
                self.pool.device
            )
            for start, stop in spans:
                with span("batch"):
                    batch = take(self.train, order[start:stop], self.transform, augment)
                yield batch

    def _stream(self, purpose: str, task: ClientTask) -> torch.Generator:
        return generator(self.seed, purpose, task.round, task.client, device=self.pool.device)


def take(
    images: Images,
    index: Tensor,
    transform: Callable[[Tensor, torch.Generator], Tensor],
    stream: torch.Generator,
) -> Batch:
    """Gather a batch from a resident set and prepare it, channels-last as the models' weights
    are.
    """
    x = transform(images.images.index_select(0, index), stream)
    return x.contiguous(memory_format=torch.channels_last), images.labels.index_select(0, index)

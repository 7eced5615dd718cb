"""Who trains whom, where: ranks of torch.distributed, longest-first scheduling, and one exact reduction a round.

Every rank holds the server's vectors and does the same server arithmetic; ranks exchange whole numbers only, so a result never depends on
how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from inco.allocator import keep_freed_memory
from inco.client import Trainer
from inco.errors import ConfigError, InCoError, NumericError, PeerLost
from inco.evaluate import Evaluator, Score
from inco.failure import client_failed
from inco.flat import BoundModel, Layout
from inco.schedule import assign
from inco.server.aggregate import Cohort, Holders
from inco.server.sums import RoundSums
from inco.spans import span
from inco.types import Aggregate, ClientResult, ClientTask, SubModel, Weighting

Observe = Callable[[int, int, int, nn.Module, Callable[[], Mapping[str, Tensor]]], None]
"""Called with the position in the cohort, the client (-1: the server), its level and model, and what returns its deltas by name."""
_TIMEOUT = timedelta(hours=6)  # a rank may train one long client while the others wait


@dataclass(frozen=True)
class Ranks:
    """The process group of a run: this process's rank among `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, rank: int, world: int, device: str, store: str | Meeting) -> Ranks:
        """Join the group. `store`: a file shared by ranks of one machine, or where ranks that torchrun has started meet.

        On CPU a rank uses one thread: the number of threads changes bits, the number of ranks does not.
        """
        place = _place(device, int(os.environ.get("LOCAL_RANK", rank)))
        if place.type == "cpu":
            torch.set_num_threads(1)
            keep_freed_memory()
        else:
            torch.cuda.set_device(place)
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        # NCCL refuses two ranks on one GPU; gloo then carries the sums through the CPU
        own_gpu = place.type == "cuda" and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", world))
        backend = "nccl" if own_gpu else "gloo"
        if isinstance(store, str):
            dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world, timeout=_TIMEOUT)
        else:
            dist.init_process_group(backend, store=store.store, rank=rank, world_size=world, timeout=_TIMEOUT)
        return cls(rank, world, place)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up an int64 tensor over all ranks, in place."""
        if self.world > 1:
            through_host = tensor.is_cuda and dist.get_backend() == "gloo"
            total = tensor.cpu() if through_host else tensor
            with _peers():
                dist.all_reduce(total)
            if through_host:
                tensor.copy_(total)
        return tensor

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        if self.world > 1:
            with _peers():
                dist.broadcast_object_list(box, src=0)
        return box[0]

    def first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 alone, and return what it gave on every rank."""
        return self.share(work() if self.rank == 0 else None)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order."""
        found = [value] * self.world
        if self.world > 1:
            with _peers():
                dist.all_gather_object(found, value)
        return found

    def local_first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on every rank, on the first rank of each machine before the others: it may fill a cache that they read."""
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        done = work() if first else None
        self.gather(None)
        return done if first else work()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Meeting:
    """Where the ranks that torchrun has started meet for one job of a sweep: keys of its store under a prefix of the job's own.

    Without it a rank could read addresses of the job before. Rank 0 says whether the job goes ahead; the others wait to be told.
    """

    _base: dist.Store | None = None

    def __init__(self, job: str) -> None:
        if Meeting._base is None:
            Meeting._base, _, _ = next(iter(dist.rendezvous("env://")))
        self.store = dist.PrefixStore(job, Meeting._base)
        self._told = False

    def tell(self, go: bool) -> None:
        """Say on rank 0 whether the job goes ahead; what is said first counts."""
        if not self._told:
            self.store.set("go", "yes" if go else "no")
            self._told = True

    def goes_ahead(self) -> bool:
        """Wait on another rank until rank 0 has said so."""
        self.store.wait(["go"], _TIMEOUT)
        return self.store.get("go") == b"yes"


@contextmanager
def _peers() -> Iterator[None]:
    """Name what a collective means by its error: a rank has died, and its connections are closed."""
    try:
        yield
    except RuntimeError as lost:
        raise PeerLost("a worker is gone; nothing of the round under way has been applied") from lost


def _place(device: str, local_rank: int) -> torch.device:
    cuda = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not cuda):
        return torch.device("cpu")
    if not cuda:
        raise ConfigError(f"engine.device={device}: torch sees no GPU here; use engine.device=auto or cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _deltas(bound: BoundModel, sub: SubModel, w: Tensor) -> Mapping[str, Tensor]:
    """Return how far a client has moved, by the names of its tensors. `w`: what the server has sent, [P]."""
    received = sub.params.gather(w, torch.empty_like(bound.w))
    return sub.params.layout.views(bound.w - received)


class Engine:
    """Maps clients over ranks and reduces their uploads; scores levels over ranks.

    `params`, `buffers`: layouts of the server's vectors; `uploads`: the algorithm's, with their weighting; `buffer_weighting`: that of
    buffers; `population`: who holds what in it; `cohort`: clients a round; `flops`: cost of one image's forward pass by level; `side`:
    entries of the split's side sums; `on_client`: called with (done, of) after each of this rank's clients.
    """

    def __init__(
        self,
        ranks: Ranks,
        trainer: Trainer,
        evaluator: Evaluator,
        params: Layout,
        buffers: Layout,
        uploads: Mapping[str, Weighting],
        buffer_weighting: Weighting,
        population: Holders,
        cohort: int,
        flops: Mapping[int, float],
        side: int = 0,
    ) -> None:
        self.ranks, self.trainer, self.evaluator, self.flops = ranks, trainer, evaluator, flops
        self.uploads, self.buffer_weighting, self.population = uploads, buffer_weighting, population
        self._sizes = (params.numel, buffers.numel)
        self._sums = RoundSums(list(uploads), params.numel, buffers.numel, cohort, ranks.device, side)
        self.on_client: Callable[[int, int], None] | None = None
        self.on_task: Callable[[ClientTask], None] | None = None  # called before each of this rank's clients
        self.observe: Observe | None = None  # called with each of this rank's clients, just trained

    def plan(self, tasks: Sequence[ClientTask]) -> list[list[int]]:
        """Return the positions in the cohort that each rank trains."""
        return assign([self.flops[t.level] * len(t.examples) for t in tasks], self.ranks.world)

    def cohort(self, tasks: Sequence[ClientTask], submodels: Mapping[int, SubModel]) -> Cohort:
        """Return what is known of a round before it starts."""
        steps = [self.trainer.steps(len(t.examples)) for t in tasks]
        momentum = self.trainer.local.momentum
        return Cohort(
            tasks, steps, submodels, self.uploads, self.buffer_weighting, self.population, momentum, *self._sizes, self.ranks.device
        )

    def map_reduce(self, cohort: Cohort, w: Tensor, b: Tensor, server: Mapping[str, Tensor]) -> Aggregate:
        """Train the cohort and return its averages. Raises on every rank alike where any client failed."""
        mine = self.plan(cohort.tasks)[self.ranks.rank]
        self._sums.reset()
        error = self._guarded(lambda: self._train(cohort, mine, w, b, server))
        with span("reduction, and waiting for other workers"):
            self._reduce(self._sums.total, error)
        with span("server"):
            return cohort.average(self._sums)

    def _train(self, cohort: Cohort, mine: Sequence[int], w: Tensor, b: Tensor, server: Mapping[str, Tensor]) -> None:
        for done, position in enumerate(mine, start=1):
            task = cohort.tasks[position]
            sub = cohort.submodels[task.level]
            if self.on_task:
                self.on_task(task)
            result = self._client(task, sub, w, b, server)
            added = self._add(position, result, sub, cohort)
            if self.observe and added:
                with span("diagnostics"):
                    bound = self.trainer.pool.get(sub).bound
                    self.observe(position, task.client, task.level, bound.model, lambda: _deltas(bound, sub, w))  # noqa: B023  # called at once
            del result  # its vectors, before the next client's
            if self.on_client:
                self.on_client(done, len(mine))

    def _add(self, position: int, result: ClientResult, sub: SubModel, cohort: Cohort) -> bool:
        """Add a client's upload, or leave the client out if that is what the uplink does with one that is not finite."""
        try:
            with span("exact sum"):
                self._sums.add(position, result, sub, cohort.shares(result.task), cohort.share(result.task, cohort.buffer_weighting))
        except NumericError:
            if self.trainer.uplink.nonfinite != "skip":
                raise
            self._sums.skip(position)
            self.trainer.put_back(result.task, sub)
            return False
        return True

    def _client(self, task: ClientTask, sub: SubModel, w: Tensor, b: Tensor, server: Mapping[str, Tensor]) -> ClientResult:
        try:
            try:
                return self.trainer(task, sub, w, b, server)
            except (
                torch.OutOfMemoryError
            ):  # what others left in the cache may be all that it lacked; its draws are named, so it is the same
                torch.cuda.empty_cache()
                return self.trainer(task, sub, w, b, server)
        except InCoError:
            raise
        except Exception as error:
            raise client_failed(task, sub, self.ranks.rank, error) from error

    def evaluate(self, submodels: Mapping[int, SubModel], w: Tensor, b: Tensor, round: int) -> dict[int, Score]:
        """Score every level on the whole test set."""
        measured = None
        if self.evaluator.norm:
            with span("BatchNorm's statistics for scoring"):
                units = self._mine(*self.evaluator.norm_units(self.flops))
                measured = self.ranks.sum_(self.evaluator.measure(units, submodels, w, b, round))
        with span("scoring"):
            mine = self.evaluator.plan(submodels, self.flops, self.ranks.world)[self.ranks.rank]
            table = self.evaluator.score(mine, submodels, w, b, round, measured)
        with span("reduction, and waiting for other workers"):
            return self.evaluator.scores(self.ranks.sum_(table))

    def show(self, submodels: Mapping[int, SubModel], w: Tensor, b: Tensor, observe: Observe) -> None:
        """Let the server's model of each level be looked at; levels are spread over ranks."""
        for position, level in enumerate(sorted(submodels)):
            if position % self.ranks.world == self.ranks.rank:
                sub = submodels[level]
                bound = self.trainer.pool.get(sub).bound
                bound.load(w, b, sub.params, sub.buffers)
                observe(position, -1, level, bound.model, dict)

    def _mine(self, units: Sequence[tuple[int, int]], costs: Sequence[float]) -> list[tuple[int, int]]:
        return [units[i] for i in assign(costs, self.ranks.world)[self.ranks.rank]]

    def _guarded(self, work: Callable[[], None]) -> InCoError | None:
        """Do this rank's work; keep its error, so that every rank can meet in the reduction and stop together."""
        try:
            work()
        except InCoError as error:
            self._sums.failures.fill_(1)
            return error
        return None

    def _reduce(self, total: Tensor, error: InCoError | None) -> None:
        try:
            self.ranks.sum_(total)
        except PeerLost:
            if error is not None:  # this rank's own failure says more
                raise error from None
            raise
        if int(self._sums.failures):
            raise next(e for e in self.ranks.gather(error) if e is not None)

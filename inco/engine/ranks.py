"""Ranks of torch.distributed: who takes part, on which device, and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from inco.errors import ConfigError, PeerLost
from inco.fast.allocator import keep_freed_memory

_TIMEOUT = timedelta(hours=6)  # a rank may train one long client while the others wait


@dataclass(frozen=True)
class Ranks:
    """The process group of a run: this process's rank among `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, rank: int, world: int, device: str, store: str | Meeting) -> Ranks:
        """Join the group. `store`: a file shared by ranks of one machine, or where ranks that
        torchrun has started meet.

        On CPU a rank uses one thread: the number of threads changes bits, the number of ranks does
        not.
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
        own_gpu = place.type == "cuda" and torch.cuda.device_count() >= int(
            os.environ.get("LOCAL_WORLD_SIZE", world)
        )
        backend = "nccl" if own_gpu else "gloo"
        if isinstance(store, str):
            dist.init_process_group(
                backend,
                init_method=f"file://{store}",
                rank=rank,
                world_size=world,
                timeout=_TIMEOUT,
            )
        else:
            dist.init_process_group(
                backend, store=store.store, rank=rank, world_size=world, timeout=_TIMEOUT
            )
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
        """Do `work` on every rank, on the first rank of each machine before the others: it may fill
        a cache that they read.
        """
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        done = work() if first else None
        self.gather(None)
        return done if first else work()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class Meeting:
    """Where the ranks that torchrun has started meet for one job of a sweep: keys of its store
    under a prefix of the job's own.

    Without it a rank could read addresses of the job before. Rank 0 says whether the job goes
    ahead; the others wait to be told.
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
    """Name what a collective means by its error: a rank has died, and its connections are
    closed.
    """
    try:
        yield
    except RuntimeError as lost:
        raise PeerLost(
            "a worker is gone; nothing of the round under way has been applied"
        ) from lost


def _place(device: str, local_rank: int) -> torch.device:
    cuda = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not cuda):
        return torch.device("cpu")
    if not cuda:
        raise ConfigError(
            f"engine.device={device}: torch sees no GPU here; use engine.device=auto or cpu"
        )
    return torch.device("cuda", local_rank % torch.cuda.device_count())

"""Ranks of torch.distributed: who takes part, on which device, and what they exchange."""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from inco.engine.device import configure, place_of
from inco.engine.heartbeat import heartbeat, interface_towards_master
from inco.errors import ConfigError, PeerLost

_LONGEST = timedelta(hours=6)  # a rank may train one long client while the others wait
_SUM_S = 600.0  # of a sum on GPUs, for which all ranks are there
_JOIN_S = 600.0  # until every rank has imported what it needs
_CLOSE_S = 3.0  # until a collective that was left has ended with its peers
_PAUSE_S = 2e-3  # the longest between two looks at a collective


@dataclass(frozen=True)
class Ranks:
    """The process group of a run: this process's rank among `world`, and its device.

    `nccl`: sums of tensors on a GPU go from GPU to GPU, else through the host. All waits are loops
    that look, so that an interruption is heard.
    """

    rank: int
    world: int
    device: torch.device
    nccl: bool = False
    _unfinished: list[dist.Work] = field(default_factory=list)

    @classmethod
    def join(cls, rank: int, world: int, device: str, store: str | Rendezvous) -> Ranks:
        """Join the group. `store`: a file shared by ranks of one machine, or where ranks that
        torchrun has started meet.

        Raises ConfigError where ranks have different kinds of devices.
        """
        place = place_of(device, int(os.environ.get("LOCAL_RANK", rank)))
        configure(place)
        if world == 1:
            return cls(rank, world, place)
        keys = dist.FileStore(store, world) if isinstance(store, str) else store.store
        nccl = _all_on_own_gpus(keys, rank, world, place)
        # what lies on the host, errors among it, goes over gloo in any case
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        dist.init_process_group(backend, store=keys, rank=rank, world_size=world, timeout=_LONGEST)
        return cls(rank, world, place, nccl)

    @property
    def spans_nodes(self) -> bool:
        """Whether there are ranks on other machines."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world)) < self.world

    @classmethod
    @contextmanager
    def joined(cls, rank: int, world: int, device: str, store: str | Rendezvous) -> Iterator[Ranks]:
        """Be in the group inside the block; see `join`."""
        with closing(cls.join(rank, world, device, store)) as ranks:
            yield ranks

    @classmethod
    @contextmanager
    def joined_by_torchrun(cls, device: str, rendezvous: Rendezvous) -> Iterator[Ranks]:
        """Be a rank that torchrun has started, inside the block.

        Raises WorkerError where another rank falls silent.
        """
        rank = int(os.environ["RANK"])
        world = int(os.environ["WORLD_SIZE"])
        interface = interface_towards_master()
        if interface:  # gloo would take that of the host's name, which others may not reach
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        with (
            heartbeat(rendezvous.job, rank, world),
            cls.joined(rank, world, device, rendezvous) as ranks,
        ):
            yield ranks

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up an int64 tensor over all ranks, in place."""
        if self.world == 1:
            return tensor
        if tensor.is_cuda and self.nccl:
            # NCCL would wait for a rank that has failed: first all say on the host that they come
            self.barrier()
            self._do(dist.all_reduce, tensor, limit_s=_SUM_S)
            return tensor
        total = tensor.cpu()
        self._do(dist.all_reduce, total)
        return tensor.copy_(total) if tensor.is_cuda else tensor

    def any(self, mine: bool) -> bool:
        """Tell whether it is so on any rank."""
        total = torch.tensor([int(mine)])
        if self.world > 1:
            self._do(dist.all_reduce, total)
        return bool(total)

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world == 1:
            return value
        data = _bytes(value if self.rank == 0 else None)
        size = torch.tensor([len(data)])
        self._do(dist.broadcast, size, 0)
        if self.rank > 0:
            data = torch.empty(int(size), dtype=torch.uint8)
        self._do(dist.broadcast, data, 0)
        return value if self.rank == 0 else _value(data)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 alone, and return what it gave on every rank."""
        return self.share(work() if self.rank == 0 else None)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order."""
        if self.world == 1:
            return [value]
        data = _bytes(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._do(dist.all_gather, sizes, torch.tensor([len(data)]))
        padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        self._do(dist.all_gather, parts, padded)
        return [_value(part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]

    def local_first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on every rank, on the first rank of each machine before the others: it may fill
        a cache that they read.
        """
        first = int(os.environ.get("LOCAL_RANK", self.rank)) == 0
        done = work() if first else None
        self.barrier()
        return done if first else work()

    def _do(
        self, collective: Callable[..., Any], *args: Any, limit_s: float = float("inf")
    ) -> None:
        """Do a collective, and wait for it.

        Raises PeerLost where a rank has died, so that its connections close, or time is up.
        """
        until = time.monotonic() + limit_s
        pause = _PAUSE_S / 64
        with _peers():
            work = collective(*args, async_op=True)
            self._unfinished.append(work)
            while not work.is_completed():
                if time.monotonic() > until:
                    raise PeerLost(
                        f"a sum over {self.world} GPUs has not ended in {limit_s:.0f} s; nothing"
                        " of the round under way has been applied"
                    )
                time.sleep(pause)
                pause = min(1.5 * pause, _PAUSE_S)
            self._unfinished.clear()
            work.wait()

    def close(self) -> None:
        """Leave the group.

        Taking it down waits for a collective whose wait was interrupted. That ends where the others
        are gone, and not where they are silent: then the group is left to the process's end.
        """
        group = dist.group.WORLD if dist.is_initialized() else None
        if group is None:
            return
        if self._unfinished and self.nccl:
            with suppress(RuntimeError):
                group.abort()
        until = time.monotonic() + _CLOSE_S
        while not all(work.is_completed() for work in self._unfinished):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        else:
            dist.destroy_process_group()
            return
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))  # so that nobody takes it down


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _value(data: Tensor) -> Any:
    return pickle.loads(data.numpy().tobytes())


def _all_on_own_gpus(keys: dist.Store, rank: int, world: int, place: torch.device) -> bool:
    """Tell whether every rank has a GPU of its own, as NCCL needs it; all ranks come to the same
    answer.

    Raises ConfigError where some compute on GPUs and some do not.
    """
    mine = "cpu"
    if place.type == "cuda":
        mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(place).uuid}"
    keys.set(f"device/{rank}", mine)
    found = [_read(keys, f"device/{r}", r) for r in range(world)]
    without = [r for r, device in enumerate(found) if device == "cpu"]
    if without and len(without) < world:
        raise ConfigError(
            f"engine.device=auto: ranks {without} see no GPU and the others do, and results would"
            " depend on which rank trains whom; use engine.device=cpu, or nodes that are alike"
        )
    return not without and len(set(found)) == world


def _read(keys: dist.Store, key: str, rank: int) -> str:
    """Return what another rank has written, as soon as it is there."""
    until = time.monotonic() + _JOIN_S
    while not keys.check([key]):
        if time.monotonic() > until:
            raise PeerLost(f"rank {rank} has not come in {_JOIN_S:.0f} s; is its node up?")
        time.sleep(0.02)
    return keys.get(key).decode()


class Rendezvous:
    """Where the ranks that torchrun has started meet for one job of a sweep: keys of its store
    under a prefix of the job's own.

    Without it a rank could read addresses of the job before. Rank 0 says whether the job goes
    ahead; the others wait to be told.
    """

    _base: dist.Store | None = None
    _jobs = 0  # of this process so far; every rank has the same ones in the same order

    def __init__(self, job: str) -> None:
        if Rendezvous._base is None:
            Rendezvous._base, _, _ = next(iter(dist.rendezvous("env://")))
        Rendezvous._jobs += 1  # the same settings may come twice
        self.job = f"{Rendezvous._jobs}/{job}"
        self.store = dist.PrefixStore(self.job, Rendezvous._base)
        self._told = False

    def announce(self, go: bool) -> None:
        """Say on rank 0 whether the job goes ahead; what is said first counts."""
        if not self._told:
            self.store.set("go", "yes" if go else "no")
            self._told = True

    def goes_ahead(self) -> bool:
        """Wait on another rank until rank 0 has said so."""
        while not self.store.check(["go"]):  # Ctrl-C would not be heard in the store's own wait
            time.sleep(0.1)
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

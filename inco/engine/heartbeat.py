"""Whether the ranks of other nodes are still there.

The connection to a killed process breaks at once. One over a cut link, or to a machine without
power, stays open for hours; so ranks that torchrun has started tell one another that they live.
"""

from __future__ import annotations

import _thread
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from inco.errors import InCoError, PeerLost, WorkerError

_BEAT_S = 5.0
_SILENCE_S = 30.0  # longer than any pause of a busy machine, and short enough to be waited for
_GONE = "gone"


class Heartbeat:
    """Writes to torchrun's store every few seconds, and reads what the other ranks write.

    `job`: a prefix of the store's keys. One thread talks to the store, which may not answer; the
    other watches the clock. Where a rank falls silent, `lost` says so and the main thread is
    interrupted.
    """

    def __init__(self, job: str, rank: int, world: int) -> None:
        self.lost: WorkerError | None = None
        self._rank = rank
        self._closing = threading.Event()
        now = time.monotonic()
        self._store_heard = now
        self._heard = {other: now for other in range(world) if other != rank}
        self._said: dict[int, str] = {}
        self._places: dict[int, str] = {}
        self._store = dist.PrefixStore(f"{job}/heartbeat", _connection())
        self._here = f"{socket.gethostname()}, {address_towards_master()}"
        for work in (self._talk, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def _talk(self) -> None:
        beat = 0
        # a store that does not answer is what the other thread is there to notice
        with suppress(RuntimeError):
            while not self._closing.is_set():
                beat += 1
                self._store.set(str(self._rank), f"{beat} {self._here}")
                for other in self._heard:
                    self._listen(other)
                self._store_heard = time.monotonic()
                self._closing.wait(_BEAT_S)

    def _listen(self, other: int) -> None:
        key = str(other)
        said = self._store.get(key).decode() if self._store.check([key]) else ""
        if said != self._said.get(other, "") or said == _GONE:
            self._heard[other] = time.monotonic()
        self._said[other] = said
        if said not in ("", _GONE):
            self._places[other] = said.partition(" ")[2]

    def _watch(self) -> None:
        while not self._closing.wait(1.0):
            self.lost = self._silent()
            if self.lost is not None:
                self._closing.set()
                _thread.interrupt_main()

    def _silent(self) -> WorkerError | None:
        """Return the error that names who has not been heard of for too long."""
        now = time.monotonic()
        if now - self._store_heard > _SILENCE_S:
            who = f"torchrun's store on {os.environ['MASTER_ADDR']} has not answered"
        else:
            silent = [r for r, heard in self._heard.items() if now - heard > _SILENCE_S]
            if not silent:
                return None
            who = f"nothing has been heard of {self._named(silent)}"
        return _error(f"{who} for {_SILENCE_S:.0f} s: is its node down, or the link to it cut?")

    def _named(self, ranks: list[int]) -> str:
        return ", ".join(f"rank {r} ({self._places.get(r, 'not yet seen')})" for r in ranks)

    def explain(self) -> WorkerError | None:
        """Find out which rank a broken connection belongs to; None where all are heard of."""
        until = time.monotonic() + _SILENCE_S + 2 * _BEAT_S
        with suppress(KeyboardInterrupt):  # by which the watching thread ends the wait
            while self.lost is None and time.monotonic() < until:
                gone = [r for r, said in self._said.items() if said == _GONE]
                if gone:
                    return _error(f"{self._named(gone)} has ended before the run was done.")
                time.sleep(0.2)
        return self.lost

    def close(self) -> None:
        """Stop, and tell the others that this rank has ended in order."""
        self._closing.set()
        if self.lost is None:
            with suppress(RuntimeError):
                self._store.set(str(self._rank), _GONE)


@contextmanager
def heartbeat(job: str, rank: int, world: int) -> Iterator[None]:
    """Live beside the ranks of torchrun; raise a WorkerError where one of them falls silent."""
    beating = Heartbeat(job, rank, world)
    try:
        yield
    except PeerLost as error:
        raise beating.explain() or error from error
    except InCoError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        # the interruption may surface as another error, as within an import
        if beating.lost is not None:
            raise beating.lost from error
        raise
    finally:
        beating.close()


def _error(what: str) -> WorkerError:
    return WorkerError(
        f"{what} Nothing of the round under way has been applied; the same command goes on from the"
        " last checkpoint"
    )


def _connection() -> dist.Store:
    """Return a connection to torchrun's store of this thread's own, as a call holds it."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=_SILENCE_S),
    )


def address_towards_master() -> str:
    """Return this machine's address on the way to MASTER_ADDR; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ["MASTER_ADDR"], 9))
        except OSError:
            return "?"
        return str(probe.getsockname()[0])


def interface_towards_master() -> str | None:
    """Return the network interface of that address; None where the system does not say."""
    if not hasattr(socket, "if_nameindex") or os.name != "posix":
        return None
    import fcntl
    import struct

    address = socket.inet_aton(address_towards_master())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(probe, 0x8915, request)[20:24] == address:  # SIOCGIFADDR
                    return name
    return None

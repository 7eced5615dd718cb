"""Run one configuration in one folder: start or join its ranks, lead or follow them, and try again
after a lost worker. What rank 0 records is in `session.py`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.callbacks import Callback
from inco.config.naming import digest
from inco.engine.workers import activity_file, how_many, local_workers, note, under_torchrun
from inco.errors import ConfigError, WorkerError
from inco.run.gpus import claimed
from inco.run.resume import begin, finished_summary, with_state_dir
from inco.run.signals import Stop, stoppable
from inco.run.summary import peak_memory

if TYPE_CHECKING:
    from inco.engine.ranks import Ranks, Rendezvous
    from inco.types import ClientTask


def prepare() -> None:
    """Import what takes long."""
    import inco.assembly  # noqa: F401


def lead(settings: Mapping[str, Any], folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Be rank 0: train, record, and return the summary. `facts`: name, group, tags and command of
    the run, for its record.

    Raises InCoError. What an earlier session has recorded stays until this one has trained a round,
    or is about to start over.
    """
    from inco.records.log import setup_log
    from inco.records.record import RunLock

    with ExitStack() as stack:
        stack.enter_context(_nothing_left(folder))
        rendezvous = _rendezvous(settings) if under_torchrun() else None
        if rendezvous:
            stack.callback(
                rendezvous.announce, False
            )  # unless the ranks have been answered by then
        stack.enter_context(RunLock(folder))
        finished = finished_summary(settings, folder)
        if finished:
            return finished | {"already": True}
        stack.enter_context(setup_log(folder))
        stop = stack.enter_context(stoppable())
        stack.enter_context(claimed(settings, stop))  # before torch is imported
        if rendezvous:
            rendezvous.announce(True)
        return _train(settings, folder, facts, stop, rendezvous)


def _train(
    settings: Mapping[str, Any],
    folder: Path,
    facts: Mapping[str, Any],
    stop: Stop,
    rendezvous: Rendezvous | None,
) -> dict[str, Any]:
    """Run sessions until one ends without a lost worker, or `engine.retry` is used up."""
    from inco.run.session import Session

    # under torchrun the ranks are not ours to start again
    retries = 0 if rendezvous else settings["engine"]["retry"]
    while True:
        session = Session(with_state_dir(settings, folder), folder, facts, stop)
        try:
            with _ranks(session.settings, rendezvous) as ranks:
                return session.run(ranks)
        except BaseException as error:
            session.fail(error)
            if not retries or not isinstance(error, WorkerError):
                raise
            again = "trying again from the last checkpoint (engine.retry)"
            print(f"{error}\n{again}", file=sys.stderr, flush=True)
        retries -= 1
        stop.forget()
        # what the session has trained is kept
        settings = {**settings, "fresh": settings["fresh"] and not session.owns_folder}


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Remove a new folder again where the settings turn out to be wrong before the first round."""
    new = not (folder.exists() and any(folder.iterdir()))  # Hydra has made an empty one
    try:
        yield
    except ConfigError:
        if new and not (folder / "metrics.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _rendezvous(settings: Mapping[str, Any]) -> Rendezvous:
    """Return where torchrun's ranks meet for this job, the same on each."""
    from inco.engine.ranks import Rendezvous

    # of settings alone: nodes may have different working directories
    return Rendezvous(f"{digest(settings)}/{settings['seed']}")


@contextmanager
def _ranks(settings: Mapping[str, Any], rendezvous: Rendezvous | None) -> Iterator[Ranks]:
    """Be rank 0 of the ranks that torchrun has started, or of new local ones."""
    if rendezvous is None:
        with local_ranks(settings) as ranks:
            yield ranks
    else:
        from inco.engine.ranks import Ranks

        with Ranks.joined_by_torchrun(settings["engine"]["device"], rendezvous) as ranks:
            yield ranks


@contextmanager
def local_ranks(settings: Mapping[str, Any]) -> Iterator[Ranks]:
    """Start a run's workers on this machine, and join them as rank 0; `follow` is what they do.

    They are on their way before torch is imported here.
    """
    # before torch is imported, which the count of GPUs may do: threads beside workers fight for
    # cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    cohort = max(1, int(settings["num_clients"] * settings["sample_ratio"] + 1e-9))
    engine = settings["engine"]
    world = how_many(engine["workers"], engine["device"], cohort)
    with local_workers(settings, world) as workers:
        prepare()  # while the workers do the same
        from inco.engine.ranks import Ranks

        workers.wait_until_ready()
        with Ranks.joined(0, world, engine["device"], str(workers.store)) as ranks:
            try:
                yield ranks
            except BaseException as error:
                workers.abandon(error)  # they may wait in a collective that will never come
                raise


def follow_torchrun(settings: Mapping[str, Any], folder: Path) -> None:
    """Be a rank that torchrun has started, if rank 0 finds that there is something to do."""
    rendezvous = _rendezvous(settings)
    if rendezvous.goes_ahead():
        from inco.engine.ranks import Ranks

        with Ranks.joined_by_torchrun(settings["engine"]["device"], rendezvous) as ranks:
            _follow(with_state_dir(settings, folder), ranks, [])


def follow(settings: Mapping[str, Any], rank: int, world: int, store: str) -> None:
    """Be a local worker, a rank other than 0: the same rounds, no record."""
    from inco.engine.ranks import Ranks

    note = _ClientNote(activity_file(Path(store).parent, rank))
    with Ranks.joined(rank, world, settings["engine"]["device"], store) as ranks:
        _follow(settings, ranks, [note])


def _follow(settings: Mapping[str, Any], ranks: Ranks, callbacks: list[Callback]) -> None:
    from inco.assembly import assemble

    run = assemble(settings, ranks)
    state = begin(run, ranks, settings, None)
    ranks.barrier()  # until rank 0 has wiped the folder, if it starts over
    run.simulator.run(state, settings["rounds"], callbacks)
    peak_memory(ranks)


class _ClientNote(Callback):
    """Keep in a file which client a worker trains, for whoever finds it dead."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_client_start(self, task: ClientTask) -> None:
        note(self.path, f"round {task.round}, client {task.client}")

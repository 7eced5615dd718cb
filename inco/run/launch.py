"""Run one configuration in one folder: resume, start ranks, record every round, leave a summary."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.callbacks import Callback, EachRound
from inco.config.naming import digest, identity
from inco.config.targets import build
from inco.engine.workers import doing, how_many, local_workers, note, under_torchrun
from inco.errors import ConfigError, InCoError, WorkerError
from inco.records.arrays import ArrayStore
from inco.run.gpus import claimed
from inco.run.resume import begin, pack, placed, same_run, verdict, wipe
from inco.run.showing import Showing
from inco.run.signals import INTERRUPTED, INTERRUPTIONS, PREEMPTED, Preempted, Stop, stoppable
from inco.run.summary import about, header, origin, peak_memory, scores, sha256, sizes

if TYPE_CHECKING:
    from inco.assembly import Assembly
    from inco.engine.ranks import Meeting, Ranks
    from inco.records.checkpoint import Checkpoints, State
    from inco.types import ClientTask, Metrics, ServerState


def meeting(settings: Mapping[str, Any], folder: Path) -> Meeting:
    """Return where torchrun's ranks meet for this job, the same on each."""
    from inco.engine.ranks import Meeting

    return Meeting(f"{folder}/{digest(settings)}/{settings['seed']}")


def prepare() -> None:
    """Import what takes long."""
    import inco.assembly  # noqa: F401


class Doing(Callback):
    """Say in a file which client a worker trains, for whoever finds it dead."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def on_client_start(self, task: ClientTask) -> None:
        note(self.place, f"round {task.round}, client {task.client}")


def follow(settings: Mapping[str, Any], rank: int, world: int, store: str | Meeting) -> None:
    """Be a rank other than 0: the same rounds, no record."""
    from inco.assembly import assemble
    from inco.engine.ranks import Ranks

    ranks = Ranks.join(rank, world, settings["engine"]["device"], store)
    try:
        run = assemble(settings, ranks)
        state = begin(run, ranks, settings, None)
        callbacks: list[Callback] = []
        if isinstance(store, str):
            callbacks.append(Doing(doing(Path(store).parent, rank)))
        run.simulator.run(state, settings["rounds"], callbacks)
        peak_memory(ranks)
    finally:
        ranks.close()


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


def follow_torchrun(settings: Mapping[str, Any], folder: Path) -> None:
    """Be a rank that torchrun has started, if rank 0 finds that there is something to do."""
    met = meeting(settings, folder)
    if met.goes_ahead():
        follow(
            placed(settings, folder), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), met
        )


def lead(settings: Mapping[str, Any], folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Be rank 0: train, record, and return the summary. `facts`: name, group, tags and command of
    the run, for its record.

    Raises InCoError. What an earlier session has recorded stays until this one has trained a round,
    or is about to start over.
    """
    from inco.records.record import RunLock, RunRecord, setup_log

    with ExitStack() as stack:
        stack.enter_context(_nothing_left(folder))
        met = meeting(settings, folder) if under_torchrun() else None
        if met:
            stack.callback(met.tell, False)  # unless it has said otherwise by then
        stack.enter_context(RunLock(folder))
        done = verdict(settings, folder)
        if done:
            return done | {"already": True}
        log = stack.enter_context(setup_log(folder))
        stop = stack.enter_context(stoppable())
        stack.enter_context(claimed(settings, stop))  # before torch is imported
        if met:
            met.tell(True)
        # under torchrun the ranks are not ours to start again
        for left in range(0 if met else settings["engine"]["retry"], -1, -1):
            session = Session(placed(settings, folder), folder, facts, RunRecord(folder), log, stop)
            try:
                return session.run(met)
            except BaseException as error:
                session.fail(error)
                if not (left and isinstance(error, WorkerError)):
                    raise
                print(
                    f"{error}\ntrying again from the last checkpoint (engine.retry)",
                    file=sys.stderr,
                    flush=True,
                )
                stop.forget()
                # what it has trained is to be kept
                settings = {
                    **settings,
                    "fresh": settings["fresh"] and not session.taken,
                }
        raise AssertionError("the last attempt returns or raises")


@contextmanager
def local_ranks(settings: Mapping[str, Any]) -> Iterator[Ranks]:
    """Start a run's workers on this machine, and join them as rank 0; `follow` is what they do.

    They are on their way before torch is imported here.
    """
    cohort = max(1, int(settings["num_clients"] * settings["sample_ratio"] + 1e-9))
    engine = settings["engine"]
    world = how_many(engine["workers"], engine["device"], cohort)
    # threads beside workers fight for cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # what cuBLAS needs to give equal bits run to run
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with local_workers(settings, world) as workers:
        prepare()  # while the workers do the same
        from inco.engine.ranks import Ranks

        workers.wait_until_ready()
        ranks = Ranks.join(0, world, engine["device"], str(workers.store))
        try:
            yield ranks
        except BaseException as error:
            workers.abandon(error)  # they may wait in a collective that will never come
            raise
        finally:
            ranks.close()


@contextmanager
def torchrun_ranks(settings: Mapping[str, Any], met: Meeting) -> Iterator[Ranks]:
    """Join the ranks that torchrun has started, as rank 0."""
    from inco.engine.ranks import Ranks

    ranks = Ranks.join(0, int(os.environ["WORLD_SIZE"]), settings["engine"]["device"], met)
    try:
        yield ranks
    finally:
        ranks.close()


class Session:
    """One session of a run on rank 0: from its last checkpoint, or the start, to its last round or
    an interruption.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        folder: Path,
        facts: Mapping[str, Any],
        record: Any,
        log: Any,
        stop: Stop | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.facts = facts
        self.record = record
        self.log = log
        self.shown = Showing(build("tracker", settings["tracker"]), folder, self._warn)
        self.arrays = ArrayStore(folder)
        self.checkpoints: Checkpoints
        self.stop = stop or Stop()
        self.began = time.monotonic()
        self.before_s = 0.0
        self.moved = False
        self.taken = False
        self.warnings: list[str] = []

    def run(self, met: Meeting | None = None) -> dict[str, Any]:
        """Train to the last round and write the summary.

        `met`: where torchrun's ranks meet, if it has started them.
        """
        with torchrun_ranks(self.settings, met) if met else local_ranks(self.settings) as ranks:
            return self._lead(ranks)

    def _lead(self, ranks: Ranks) -> dict[str, Any]:
        from inco.assembly import assemble
        from inco.records.checkpoint import Checkpoints

        self.checkpoints = Checkpoints(self.folder)
        run = assemble(self.settings, ranks)
        saved = self._saved()
        state = begin(run, ranks, self.settings, saved)
        self._take_folder(run, state)
        self._open(run, ranks, state)
        self._train(run, ranks, state)
        return self._finish(run, ranks, state)

    def _saved(self) -> State | None:
        """Return this run's last checkpoint, unless it is to start over."""
        if self.settings["fresh"]:
            return None
        saved = self.checkpoints.load_latest()
        self._warn(*self.checkpoints.warnings)
        if saved is not None:
            same_run(saved.meta["settings"], self.settings, self.folder)
            self.before_s = saved.meta["wall_s"]
        return saved

    def _take_folder(self, run: Assembly, state: ServerState) -> None:
        """Make the folder this session's, now that all that it needs has been found: drop what is
        not of the state's rounds.
        """
        if self.settings["fresh"]:
            wipe(self.folder, Path(self.settings["engine"]["state_dir"]))
        self.taken = True
        self.record.rewind(state.round)
        self.arrays.rewind(state.round)
        self.record.write_about(about(run, self.settings, self.facts))
        (self.folder / ".hydra").mkdir(exist_ok=True)
        for name, text in self.facts["files"].items():
            (self.folder / ".hydra" / name).write_text(text)

    def _open(self, run: Assembly, ranks: Ranks, state: ServerState) -> None:
        from inco.run.console import announce, short_path
        from inco.tracker import RunInfo

        info = RunInfo(
            self.facts["name"],
            self.folder,
            self.facts["group"],
            tuple(self.facts["tags"]),
            dict(self.settings),
            state.round,
        )
        note = self.shown.open(info)
        announce(
            header(run, ranks, self.settings, self.facts) | {"folder": short_path(self.folder)}
        )
        if note:
            print(note, flush=True)
        if state.round:
            print(f"going on after round {state.round}", flush=True)
        self.log.info(
            "rounds %d to %d on %d worker(s), %s",
            state.round + 1,
            self.settings["rounds"],
            ranks.world,
            ranks.device,
        )

    def _train(self, run: Assembly, ranks: Ranks, state: ServerState) -> None:
        from inco.run.console import Progress

        rounds = self.settings["rounds"]
        with ExitStack() as stack:
            watching = self._profile(stack, ranks)
            progress = stack.enter_context(Progress(rounds, state.round))

            recorded = EachRound(lambda state, metrics: self._record(run, state, metrics))
            shown = EachRound(lambda state, metrics: self._show(run, state, metrics))
            ended = EachRound(lambda state, metrics: self.stop.check())
            try:
                run.simulator.run(state, rounds, [recorded, progress, shown, *watching, ended])
            except INTERRUPTIONS:
                if not state.half_applied and self.record.last_round == state.round > max(
                    self.checkpoints.rounds(), default=0
                ):
                    self._checkpoint(run, state)  # rounds that are done, off the grid
                raise
        profile = self.folder / "profile.txt"
        if self.settings["engine"]["profile"]:
            print(
                profile.read_text() if profile.exists() else "no profile: it takes two rounds",
                flush=True,
            )

    def _record(self, run: Assembly, state: ServerState, metrics: Metrics) -> None:
        from inco.spans import span

        self.moved = True
        due = state.round % self.settings["checkpoint_every"] == 0
        with span("record and checkpoint"):
            self.arrays.keep(state.round, run.simulator.diagnostics.arrays)
            self.record.append(metrics)
            if due or state.round == self.settings["rounds"] or self.stop.asked:
                self._checkpoint(run, state)

    def _show(self, run: Assembly, state: ServerState, metrics: Metrics) -> None:
        from inco.spans import span

        with span("tracker, pictures and report"):
            self.shown.round(run, metrics, state.round)
        told = {k: v for k, v in metrics.items() if k in ("test/acc", "train/loss")}
        self.log.info("round %d: %s", state.round, told)

    def _checkpoint(self, run: Assembly, state: ServerState) -> None:
        self.record.sync()  # the rows of a checkpoint's rounds are on the disk before it is
        store = run.trainer.store
        store.sync()
        self.checkpoints.save(pack(run, state, self.settings, self._wall_s()))
        store.prune(self.checkpoints.rounds()[0])

    def _profile(self, stack: ExitStack, ranks: Ranks) -> list[Callback]:
        """Watch where rounds spend their time, if asked to."""
        if not self.settings["engine"]["profile"]:
            return []
        from inco.run.profile import profiled

        place = self.folder / "profile.txt"
        finished = stack.enter_context(profiled(place, ranks.device, ranks.rank, ranks.world))
        return [EachRound(lambda state, metrics: finished())]

    def _finish(self, run: Assembly, ranks: Ranks, state: ServerState) -> dict[str, Any]:
        rows = self.record.rows()
        if len(rows) != state.round:
            self._warn(
                f"metrics.jsonl has {len(rows)} rows for {state.round} rounds: some have been lost;"
                " fresh=true runs them again"
            )
        summary = scores(rows) | {
            "rounds": state.round,
            "wall_s": self._wall_s(),
            "peak_rss_bytes": peak_memory(ranks),
            "weights_sha256": sha256(state),
            "dataset_sha256": run.dataset.digest,
            "partition_sha256": run.partition.digest,
            **sizes(run),
            "workers": ranks.world,
            "device": str(ranks.device.type),
        }
        return self._close(summary, "finished", 0)

    def fail(self, error: BaseException) -> None:
        """Leave a summary of an interrupted or failed run, and close the tracker.

        Never hides `error`.
        """
        status = "interrupted" if isinstance(error, INTERRUPTIONS) else "failed"
        self.log.error(
            "%s: %s%s",
            type(error).__name__,
            error,
            f"\n{error.detail}" if isinstance(error, WorkerError) else "",
        )
        try:
            rows = self.record.rows()
            interrupted = PREEMPTED if isinstance(error, (Preempted, SystemExit)) else INTERRUPTED
            code = (
                error.exit_code
                if isinstance(error, InCoError)
                else interrupted
                if status == "interrupted"
                else 1
            )
            summary = scores(rows) | {
                "rounds": len(rows),
                "wall_s": self._wall_s(),
                "error": str(error),
                "exit_code": code,
            }
            # else a former run's, which was not ours to go on with
            ours = self.taken or not self.record.about.exists()
            if self.moved or (ours and self.record.read_summary() is None):
                self._close(summary, status, 1)
            else:  # an earlier session's summary says more
                self.shown.close(summary, 1)
        except (OSError, InCoError) as second:
            self.log.error("and the summary could not be written: %s", second)

    def _close(self, summary: dict[str, Any], status: str, exit_code: int) -> dict[str, Any]:
        """Write the summary, show it, and write it again if showing it gave warnings."""
        whole = self._write(summary, status)
        told = len(self.warnings)
        self.shown.close(summary, exit_code)
        return whole if len(self.warnings) == told else self._write(summary, status)

    def _write(self, summary: dict[str, Any], status: str) -> dict[str, Any]:
        whole = summary | {
            "seed": self.settings["seed"],
            "digest": digest(self.settings),
            **origin(),
            "command": self.facts["command"],
            "settings": identity(self.settings),
            "warnings": self.warnings,
            "status": status,
        }
        self.record.write_summary(whole)
        return whole

    def _warn(self, *warnings: str) -> None:
        for text in warnings:
            if text not in self.warnings:
                self.warnings.append(text)
                self.log.warning(text)

    def _wall_s(self) -> float:
        return self.before_s + time.monotonic() - self.began

"""One session of a run on rank 0: from its last checkpoint, or the start, to its last round or an
interruption; with all that it records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.callbacks import EachRound
from inco.config.naming import digest, identity
from inco.config.targets import build
from inco.errors import InCoError, WorkerError
from inco.records.arrays import ArrayStore
from inco.records.record import RunRecord
from inco.run.console import Progress, announce, short_path
from inco.run.resume import begin, pack, same_run, wipe
from inco.run.showing import Showing
from inco.run.signals import INTERRUPTIONS, Stop, exit_code
from inco.run.summary import about, header, measures, origin, scores
from inco.spans import span
from inco.tracker import RunInfo

if TYPE_CHECKING:
    from inco.assembly import Assembly
    from inco.engine.ranks import Ranks
    from inco.records.checkpoint import Checkpoints, State
    from inco.run.profile import RoundProfile
    from inco.types import Metrics, ServerState

_log = logging.getLogger("inco")


class Session:
    """Trains one session and keeps its record.

    `owns_folder`: from when on the folder's record is this session's.
    """

    def __init__(
        self, settings: Mapping[str, Any], folder: Path, facts: Mapping[str, Any], stop: Stop
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.facts = facts
        self.owns_folder = False
        self._stop = stop
        self._record = RunRecord(folder)
        self._arrays = ArrayStore(folder)
        self._warnings: list[str] = []
        self._shown = Showing(build("tracker", settings["tracker"]), folder, self._warn)
        self._began = time.monotonic()
        self._earlier_s = 0.0
        self._trained = False
        self._kept: ServerState  # of the last round that is recorded
        self._run: Assembly
        self._checkpoints: Checkpoints

    def run(self, ranks: Ranks) -> dict[str, Any]:
        """Train to the last round, and return the summary."""
        from inco.assembly import assemble
        from inco.records.checkpoint import Checkpoints

        self._checkpoints = Checkpoints(self.folder)
        self._run = assemble(self.settings, ranks)
        state = begin(self._run, ranks, self.settings, self._saved())
        self._take_folder(state.round)
        ranks.barrier()  # nobody trains before a former run's files are gone
        self._announce(ranks, state.round)
        self._train(ranks, state)
        return self._finish(ranks, state)

    def fail(self, error: BaseException) -> None:
        """Leave a summary of an interrupted or failed run, and close the tracker.

        Never hides `error`.
        """
        detail = f"\n{error.detail}" if isinstance(error, WorkerError) else ""
        _log.error("%s: %s%s", type(error).__name__, error, detail)
        try:
            rows = self._record.rows()
            summary = scores(rows) | {
                "rounds": len(rows),
                "wall_s": self._wall_s(),
                "error": str(error),
                "exit_code": exit_code(error),
            }
            # else a former run's, which was not ours to go on with
            ours = self.owns_folder or not self._record.about.exists()
            if self._trained or (ours and self._record.read_summary() is None):
                interrupted = isinstance(error, INTERRUPTIONS)
                self._end(summary, "interrupted" if interrupted else "failed", 1)
            else:  # an earlier session's summary holds more
                self._shown.close(summary, 1)
        except (OSError, InCoError) as second:
            _log.error("and the summary could not be written: %s", second)

    def _saved(self) -> State | None:
        """Return this run's last checkpoint, unless it is to start over."""
        if self.settings["fresh"]:
            return None
        saved = self._checkpoints.load_latest()
        self._warn(*self._checkpoints.warnings)
        if saved is not None:
            same_run(saved.meta["settings"], self.settings, self.folder)
            self._earlier_s = saved.meta["wall_s"]
        return saved

    def _take_folder(self, round: int) -> None:
        """Make the folder this session's, now that all that it needs has been found: drop what is
        not of the rounds up to `round`.
        """
        if self.settings["fresh"]:
            wipe(self.folder, Path(self.settings["engine"]["state_dir"]))
        self.owns_folder = True
        self._record.rewind(round)
        self._arrays.rewind(round)
        self._record.write_about(about(self._run, self.settings, self.facts))
        (self.folder / ".hydra").mkdir(exist_ok=True)
        for name, text in self.facts["files"].items():
            (self.folder / ".hydra" / name).write_text(text)

    def _announce(self, ranks: Ranks, round: int) -> None:
        facts = self.facts
        tags = tuple(facts["tags"])
        info = RunInfo(facts["name"], self.folder, facts["group"], tags, dict(self.settings), round)
        note = self._shown.tracker.start(info)
        lines = header(self._run, ranks, self.settings, facts)
        announce(lines | {"folder": short_path(self.folder)})
        if note:
            print(note, flush=True)
        if round:
            print(f"going on after round {round}", flush=True)
        last = self.settings["rounds"]
        where = f"{ranks.world} worker(s), {ranks.device}"
        _log.info("rounds %d to %d on %s", round + 1, last, where)

    def _train(self, ranks: Ranks, state: ServerState) -> None:
        rounds = self.settings["rounds"]
        path = self.folder / "profile.txt"
        profiled = self.settings["engine"]["profile"]
        with ExitStack() as stack:
            profile = [stack.enter_context(self._profile(path, ranks))] if profiled else []
            progress = stack.enter_context(Progress(rounds, state.round))
            self._kept = state
            keep = EachRound(self._keep_round)
            show = EachRound(self._show_round)
            check = EachRound(lambda state, metrics: self._stop.check())
            try:
                self._run.simulator.run(state, rounds, [keep, progress, show, *profile, check])
            except INTERRUPTIONS:
                if self._kept.round > max(self._checkpoints.rounds(), default=0):
                    self._checkpoint(self._kept)  # rounds that are done, off the grid
                raise
        if profiled:
            missing = "no profile: it takes two rounds"
            print(path.read_text() if path.exists() else missing, flush=True)

    def _profile(self, path: Path, ranks: Ranks) -> RoundProfile:
        from inco.run.profile import RoundProfile

        return RoundProfile(path, ranks.device, ranks.rank, ranks.world)

    def _keep_round(self, state: ServerState, metrics: Metrics) -> None:
        self._trained = True
        due = state.round % self.settings["checkpoint_every"] == 0
        with span("record and checkpoint"):
            self._arrays.keep(state.round, self._run.simulator.diagnostics.arrays)
            self._record.append(metrics)
            self._kept = replace(state)
            if due or state.round == self.settings["rounds"] or self._stop.asked:
                self._checkpoint(state)

    def _show_round(self, state: ServerState, metrics: Metrics) -> None:
        with span("tracker, pictures and report"):
            self._shown.round(self._run, metrics, state.round)
        logged = {k: v for k, v in metrics.items() if k in ("test/acc", "train/loss")}
        _log.info("round %d: %s", state.round, logged)

    def _checkpoint(self, state: ServerState) -> None:
        self._record.sync()  # the rows of a checkpoint's rounds are on the disk before it is
        store = self._run.trainer.store
        store.sync()
        self._checkpoints.save(pack(self._run, state, self.settings, self._wall_s()))
        store.prune(self._checkpoints.rounds()[0])

    def _finish(self, ranks: Ranks, state: ServerState) -> dict[str, Any]:
        rows = self._record.rows()
        if len(rows) != state.round:
            self._warn(
                f"metrics.jsonl has {len(rows)} rows for {state.round} rounds: some have been lost;"
                " fresh=true runs them again"
            )
        summary = scores(rows) | {"rounds": state.round, "wall_s": self._wall_s()}
        return self._end(summary | measures(self._run, ranks, state), "finished", 0)

    def _end(self, summary: dict[str, Any], status: str, exit_code: int) -> dict[str, Any]:
        """Write the summary, show it, and write it again if showing it gave warnings."""
        whole = summary | {
            "seed": self.settings["seed"],
            "digest": digest(self.settings),
            **origin(),
            "command": self.facts["command"],
            "settings": identity(self.settings),
            "warnings": self._warnings,
            "status": status,
        }
        self._record.write_summary(whole)
        written = len(self._warnings)
        self._shown.close(summary, exit_code)
        if len(self._warnings) > written:
            self._record.write_summary(whole)
        return whole

    def _warn(self, *warnings: str) -> None:
        for text in warnings:
            if text not in self._warnings:
                self._warnings.append(text)
                _log.warning(text)

    def _wall_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._began

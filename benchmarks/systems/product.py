"""InCo itself, started as `python run.py` starts it: real worker processes, the assembled run, its
round loop. No record is written.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.events import Mover, Reporter
from inco.callbacks import EachRound
from inco.run.launch import Session
from inco.run.resume import placed
from inco.run.summary import peak_memory

if TYPE_CHECKING:
    from inco.assembly import Assembly
    from inco.engine.ranks import Ranks
    from inco.types import Metrics, ServerState


class Sitting(Session):
    """A sitting whose rounds are reported instead of recorded.

    No checkpoint is written: no other system here writes one.
    """

    reporter: Reporter

    def _take_folder(self, run: Assembly, state: ServerState) -> None:
        """Leave nothing in it."""

    def _open(self, run: Assembly, ranks: Ranks, state: ServerState) -> None:
        """Announce nothing."""

    def _train(self, run: Assembly, ranks: Ranks, state: ServerState) -> None:
        moved = Mover({"w": state.w})

        def listen(state: ServerState, metrics: Metrics) -> None:
            facts = {
                "flops": metrics["compute/flops"],
                "loss": metrics["train/loss"],
                "accuracy": metrics.get("test/acc"),
            }
            self.reporter.round(
                state.round,
                metrics["time/train_s"],
                metrics["time/eval_s"],
                moved({"w": state.w}),
                **facts,
            )

        self.reporter.ready()
        run.simulator.run(state, self.settings["rounds"], [EachRound(listen)])

    def _finish(self, run: Assembly, ranks: Ranks, state: ServerState) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_memory(ranks)}  # the other ranks take part in it


def measure(job: Mapping[str, Any], reporter: Reporter) -> None:
    """Run the job's rounds."""
    from inco.records.record import RunRecord

    options = job["options"]
    settings = job["settings"]
    settings = {
        **settings,
        "rounds": job["rounds"],
        "engine": settings["engine"]
        | {"workers": options.get("workers", settings["engine"]["workers"])},
        "local": settings["local"] | {"precision": options.get("precision", "fp32")},
    }
    with tempfile.TemporaryDirectory(prefix="inco-benchmark-") as name:
        folder = Path(name)
        session = Sitting(
            placed(settings, folder), folder, {}, RunRecord(folder), logging.getLogger("benchmarks")
        )
        session.reporter = reporter
        session.run()

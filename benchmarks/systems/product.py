"""InCo itself, started as `python run.py` starts it: real worker processes, the assembled run, its
round loop. Nothing is recorded, and no checkpoint is written: no other system here writes one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.events import Mover, Reporter
from inco.callbacks import Callback
from inco.run.launch import local_ranks
from inco.run.resume import begin, with_state_dir
from inco.run.summary import peak_memory, sha256

if TYPE_CHECKING:
    from inco.types import Metrics, ServerState


class Reporting(Callback):
    """Report rounds as they end."""

    def __init__(self, reporter: Reporter, state: ServerState) -> None:
        self._reporter = reporter
        self._moved = Mover({"w": state.w})

    def on_start(self, state: ServerState) -> None:
        self._reporter.ready()

    def on_round(self, state: ServerState, metrics: Metrics) -> None:
        self._reporter.round(
            state.round,
            metrics["time/train_s"],
            metrics["time/eval_s"],
            self._moved({"w": state.w}),
            flops=metrics["compute/flops"],
            loss=metrics["train/loss"],
            accuracy=metrics.get("test/acc"),
            weights_sha256=sha256(state),
        )


def measure(job: Mapping[str, Any], reporter: Reporter) -> None:
    """Run the job's rounds."""
    options = job["options"]
    settings = job["settings"]
    engine = {name: options[name] for name in ("workers", "mode") if name in options}
    settings = {
        **settings,
        "rounds": job["rounds"],
        "engine": settings["engine"] | engine,
        "local": settings["local"] | {"precision": options.get("precision", "fp32")},
    }
    with tempfile.TemporaryDirectory(prefix="inco-benchmark-") as folder:
        settings = with_state_dir(settings, Path(folder))
        with local_ranks(settings) as ranks:
            from inco.assembly import assemble

            run = assemble(settings, ranks)
            state = begin(run, ranks, settings, None)
            ranks.barrier()  # as the other ranks do
            run.simulator.run(state, settings["rounds"], [Reporting(reporter, state)])
            peak_memory(ranks)  # the other ranks take part in it

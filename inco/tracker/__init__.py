"""Trackers mirror a run to a dashboard.

The local record (`record.py`) is the truth: a tracker never raises.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from inco.settings import between, checked
from inco.tracker.wandb_tools import (
    QUIET,
    drop_service,
    files_of,
    has_key,
    import_wandb,
    no_answer,
    run_id_of,
    short,
    summary_value,
    wandb_mode,
)

TOTAL_S = 15.0  # the most that W&B may add to a run, start and end together


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is given about a run.

    `config` is a plain dict, resolved, and is logged as it is; `rounds`: done already.
    """

    name: str
    folder: Path
    group: str = ""
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0


class Tracker:
    """Where metrics go besides the run's own folder; this one mirrors nothing.

    `warnings`: what the summary should record; `report`: whether it takes the report; `service`:
    its name in messages.
    """

    service = ""
    report = False

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self._run: Any = None  # the service's own, while it is open

    def start(self, run: RunInfo) -> str | None:
        """Open the run; may return one line for the user."""
        return None

    def log(self, metrics: Mapping[str, float], round: int) -> None:
        """Mirror the numbers of one round."""

    def image(self, key: str, path: Path, round: int) -> None:
        """Mirror an image file."""

    def table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], round: int
    ) -> None:
        """Mirror a table."""

    def file(self, path: Path) -> None:
        """Keep a file with the run."""

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the run with its last facts; exit code 0 means finished, anything else failed."""

    def _try(self, what: str, write: Callable[[Any], object]) -> None:
        """Write to the open run; the first error turns the tracker off."""
        if self._run is not None:
            try:
                write(self._run)
            except Exception as error:
                self._off(what, error)

    def _off(self, what: str, error: Exception) -> str:
        """Turn the tracker off for this run and keep one warning."""
        self._run = None
        line = (
            f"{self.service} {what} and is off for this run: {short(error)}; metrics.jsonl has"
            " every round"
        )
        self.warnings.append(line)
        return line


class NoTracker(Tracker):
    """Track nothing."""


class Wandb(Tracker):
    """Mirror a run to Weights & Biases, or to files for later where no key or server is at hand.

    Nothing here raises or holds training up: W&B adds `TOTAL_S` seconds at the very most, and the
    first error turns it off for the run with one line in `warnings`. Files of all runs stand in
    `<outputs>/wandb`, so that one `wandb leet` sees a whole sweep. `round` is the x axis; `step` is
    never passed, because a resumed run would have its repeated rounds dropped as steps that went
    backwards.
    """

    service = "W&B"

    @checked("tracker")
    def __init__(
        self,
        project: Annotated[str, "W&B project"] = "inco",
        mode: Annotated[
            Literal["auto", "online", "offline"],
            "auto: online if a key is there and the server answers, else offline",
        ] = "auto",
        entity: Annotated[str | None, "W&B user or team; null: your default"] = None,
        group: Annotated[
            str | None, "runs that belong together; null: the experiment's or the sweep's name"
        ] = None,
        tags: Annotated[
            list[str], "added to the run's own, which name its dataset, split and algorithm"
        ] = [],  # noqa: B006
        timeout_s: Annotated[
            float,
            between(0, 10, open_low=True),
            "seconds to wait for the server before going offline",
        ] = 10.0,
        job_type: Annotated[str, "what W&B files the run under"] = "train",
        report: Annotated[
            bool, "true: report.html goes to W&B as an artifact when the run ends"
        ] = False,
    ) -> None:
        super().__init__()
        self.job_type = job_type
        self.report = report
        self.project = project
        self.mode = mode
        self.entity = entity
        self.group = group
        self.tags = tuple(tags)
        self.timeout_s = float(timeout_s)
        self._wandb: Any = None  # the module, imported at start() only
        self._media = True  # whether images and tables are still taken

    def start(self, run: RunInfo) -> str | None:
        """Open the W&B run and say in one line where it goes; None if `WANDB_MODE` says off."""
        began = time.monotonic()
        self._run = None
        self._media = True
        mode = wandb_mode(self.mode)
        if mode == "disabled":
            return None
        try:
            self._wandb = import_wandb()
            run_id = run_id_of(run.folder)
            why = self._why_offline(mode)
            if why:
                return self._start_offline(run, run_id, why)
            why = self._start_online(run, run_id, began)
            if why:
                # the failed start keeps the id busy inside wandb's service until this process ends
                return self._start_offline(run, f"{run_id}-local", why, f"--id {run_id} ")
            return f"W&B: online at {self._run.url or 'the server'}"
        except Exception as error:
            return self._off("could not start", error)

    def prospect(self) -> str:
        """Say what a run started now would do, without starting one."""
        mode = wandb_mode(self.mode)
        if mode == "disabled":
            return "off, as WANDB_MODE says"
        self._wandb = import_wandb()
        why = self._why_offline(mode)
        if why:
            return f"runs would be offline ({why}); `wandb sync` uploads them later"
        return "runs would be online"

    def log(self, metrics: Mapping[str, float], round: int) -> None:
        self._try(f"stopped at round {round}", lambda run: run.log({**metrics, "round": round}))

    def image(self, key: str, path: Path, round: int) -> None:
        self._log_media(key, lambda wandb: wandb.Image(str(path)), round)

    def table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], round: int
    ) -> None:
        cells = [list(row) for row in rows]
        self._log_media(key, lambda wandb: wandb.Table(columns=list(columns), data=cells), round)

    def file(self, path: Path) -> None:
        if self._run is not None:
            try:
                kept = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
                kept.add_file(str(path))
                self._run.log_artifact(kept)
            except Exception as error:
                self.warnings.append(f"W&B has not taken {path.name}: {short(error)}")

    def _log_media(self, key: str, made: Callable[[Any], Any], round: int) -> None:
        """Log what W&B makes of a file or a table; an error turns off such things alone."""
        if self._run is None or not self._media:
            return
        try:
            self._run.log({key: made(self._wandb), "round": round})
        except Exception as error:
            self._media = False
            self.warnings.append(
                f"W&B takes no more images in this run: {key} at round {round}: {short(error)}"
            )

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the W&B run.

        What a stalled network left behind stays on disk, and a warning says how to send it.
        """
        # a plain value would overwrite the summary rule of test/acc: its best and last value
        facts = {k: summary_value(v) for k, v in summary.items() if k != "test/acc"}

        def close(run: Any) -> None:
            run.summary.update(facts)
            try:
                run.finish(exit_code=exit_code)
            except TimeoutError:
                self.warnings.append(
                    f"W&B had not sent everything; to send the rest: wandb sync {files_of(run)}"
                )

        self._try("could not close the run", close)
        self._run = None

    def _why_offline(self, mode: str) -> str | None:
        """Say why to go offline, or None where online is worth a try."""
        if mode == "offline":
            return "as asked"
        url = str(self._wandb.setup().settings.base_url)
        return no_answer(url, self.timeout_s) if has_key(url) else "no API key"

    def _start_online(self, run: RunInfo, run_id: str, began: float) -> str | None:
        """Start online; on failure say why, and leave no half-made run behind."""
        left = max(TOTAL_S - (time.monotonic() - began) - 1.5, 3.0)  # 1.5 s: starting again offline
        wait = min(self.timeout_s, 0.6 * left)
        home = run.folder.resolve().parent / "wandb"
        made = f"run-*-{run_id}*"
        before = set(home.glob(made))
        limits = {"init_timeout": wait, "finish_timeout": left - wait}
        try:
            self._init(run, run_id, "online", **limits, finish_timeout_raises=True)
        except Exception as error:
            for leftover in set(home.glob(made)) - before:
                shutil.rmtree(leftover, ignore_errors=True)
            return short(error)
        return None

    def _start_offline(self, run: RunInfo, run_id: str, why: str, option: str = "") -> str:
        """Start offline, and say how to upload later, with an option for `wandb sync`."""
        self._init(run, run_id, "offline")
        return f"W&B: offline ({why}); to upload later: wandb sync {option}{files_of(self._run)}"

    def _init(self, run: RunInfo, run_id: str, mode: str, **settings: float) -> None:
        """Call `wandb.init` for this run alone, silent, and make `round` the x axis."""
        started = self._wandb.init(
            project=self.project,
            entity=self.entity,
            name=run.name,
            id=run_id,
            resume="allow",
            mode=mode,
            group=self.group or run.group or None,
            tags=[*dict.fromkeys((*run.tags, *self.tags))] or None,
            job_type=self.job_type or None,
            config=dict(run.config),
            dir=str(run.folder.resolve().parent),
            reinit="create_new",
            settings=self._wandb.Settings(**QUIET, **settings),
        )
        started.define_metric("round")
        started.define_metric("*", step_metric="round")
        started.define_metric("test/acc", step_metric="round", summary="max,last")
        self._run = started

    def _off(self, what: str, error: Exception) -> str:
        if self._wandb is not None:
            drop_service(self._wandb)
        return super()._off(what, error)

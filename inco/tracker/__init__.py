"""Trackers mirror a run to a dashboard.

The local record (`record.py`) is the truth: a tracker never raises.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from inco.records.record import atomic_write
from inco.settings import between, checked
from inco.tracker.online import has_key, no_answer, short

TOTAL_S = 15.0  # the most that W&B may add to a run, start and end together


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told about a run.

    `config` is a plain dict, resolved, and is logged as it is; `rounds`: done already.
    """

    name: str
    folder: Path
    group: str = ""
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0


class Tracker(Protocol):
    """Where metrics go besides the run's own folder.

    `warnings`: what the summary should record; `report`: whether it takes the report.
    """

    warnings: list[str]
    report: bool

    def start(self, run: RunInfo) -> str | None:
        """Open the run; may return one line for the user."""

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


class NoTracker:
    """Track nothing."""

    report = False

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def start(self, *_: object, **__: object) -> None:
        """Do nothing."""

    log = image = table = file = finish = start


class Wandb:
    """Mirror a run to Weights & Biases: online where a key and a server are at hand, otherwise to
    files for later.

    Nothing here raises or holds training up: W&B adds `TOTAL_S` seconds at the very most, and the
    first error turns it off for the run with one line in `warnings`. Files of all runs stand in
    `<outputs>/wandb`, so that one `wandb leet` sees a whole sweep. `round` is the x axis; `step` is
    never passed, because a resumed run would have its repeated rounds dropped as steps that went
    backwards.
    """

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
        self.job_type = job_type
        self.report = report
        self.project = project
        self.mode = mode
        self.entity = entity
        self.group = group
        self.tags = tuple(tags)
        self.timeout_s = float(timeout_s)
        self.warnings: list[str] = []
        self._wandb: Any = None  # the module, imported at start() only
        self._run: Any = None
        self._images = True

    def start(self, run: RunInfo) -> str | None:
        """Open the W&B run and say in one line where it goes; None if `WANDB_MODE` says off."""
        began = time.monotonic()
        self._run = None
        self._images = True
        mode = _env_mode(self.mode)
        if mode == "disabled":
            return None
        try:
            self._wandb = _import_wandb()
            run_id = _run_id(run.folder)
            why = self._why_offline(mode)
            tried = why is None
            if tried and (why := self._start_online(run, run_id, began)) is None:
                return f"W&B: online at {self._run.url or 'the server'}"
            return self._start_offline(run, run_id, str(why), tried)
        except Exception as error:
            return self._off("could not start", error)

    def prospect(self) -> str:
        """Say what a run started now would do, without starting one."""
        mode = _env_mode(self.mode)
        if mode == "disabled":
            return "off, as WANDB_MODE says"
        self._wandb = _import_wandb()
        why = self._why_offline(mode)
        if why:
            return f"runs would be offline ({why}); `wandb sync` uploads them later"
        return "runs would be online"

    def log(self, metrics: Mapping[str, float], round: int) -> None:
        """Mirror the numbers of one round."""
        if self._run is not None:
            try:
                self._run.log({**metrics, "round": round})
            except Exception as error:
                self._off(f"stopped at round {round}", error)

    def image(self, key: str, path: Path, round: int) -> None:
        """Mirror an image file."""
        self._media(key, lambda wandb: wandb.Image(str(path)), round)

    def table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], round: int
    ) -> None:
        """Mirror a table."""
        cells = [list(row) for row in rows]
        self._media(key, lambda wandb: wandb.Table(columns=list(columns), data=cells), round)

    def file(self, path: Path) -> None:
        """Keep a file with the run, as an artifact of its name."""
        if self._run is not None:
            try:
                kept = self._wandb.Artifact(f"{path.stem}-{self._run.id}", type=path.stem)
                kept.add_file(str(path))
                self._run.log_artifact(kept)
            except Exception as error:
                self.warnings.append(f"W&B has not taken {path.name}: {short(error)}")

    def _media(self, key: str, made: Callable[[Any], Any], round: int) -> None:
        """Log what W&B makes of a file or a table; an error turns off such things alone."""
        if self._run is None or not self._images:
            return
        try:
            self._run.log({key: made(self._wandb), "round": round})
        except Exception as error:
            self._images = False
            self.warnings.append(
                f"W&B takes no more images in this run: {key} at round {round}: {short(error)}"
            )

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Close the W&B run.

        What a stalled network left behind stays on disk, and a warning says how to send it.
        """
        run = self._run
        self._run = None
        if run is None:
            return
        try:
            # a plain value would overwrite the summary rule of test/acc: its best and last value
            facts = {k: _jsonable(v) for k, v in summary.items() if k != "test/acc"}
            run.summary.update(facts)
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self.warnings.append(
                f"W&B had not sent everything; to send the rest: wandb sync {_files(run)}"
            )
        except Exception as error:
            self._off("could not close the run", error)

    def _why_offline(self, mode: str) -> str | None:
        """Say why to go offline, or None where online is worth a try."""
        if mode == "offline":
            return "as asked"
        url = str(self._wandb.setup().settings.base_url)
        if not has_key(url):
            return "no API key"
        return no_answer(url, self.timeout_s)

    def _start_online(self, run: RunInfo, run_id: str, began: float) -> str | None:
        """Start online; on failure say why, and leave no half-made run behind."""
        left = max(TOTAL_S - (time.monotonic() - began) - 1.5, 3.0)  # 1.5 s: starting again offline
        wait = min(self.timeout_s, 0.6 * left)
        home = run.folder.resolve().parent / "wandb"
        made = f"run-*-{run_id}*"
        before = set(home.glob(made))
        try:
            self._run = self._init(
                run,
                run_id,
                "online",
                init_timeout=wait,
                finish_timeout=left - wait,
                finish_timeout_raises=True,
            )
        except Exception as error:
            for leftover in set(home.glob(made)) - before:
                shutil.rmtree(leftover, ignore_errors=True)
            return short(error)
        return None

    def _start_offline(self, run: RunInfo, run_id: str, why: str, tried: bool) -> str:
        """Start offline, and say how to upload later.

        `tried`: online was tried first and failed.
        """
        # A failed online start keeps the id busy inside wandb's service until this process ends.
        self._run = self._init(run, f"{run_id}-local" if tried else run_id, "offline")
        option = f"--id {run_id} " if tried else ""
        return f"W&B: offline ({why}); to upload later: wandb sync {option}{_files(self._run)}"

    def _init(self, run: RunInfo, run_id: str, mode: str, **settings: float) -> Any:
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
            settings=self._wandb.Settings(**_quiet(), **settings),
        )
        started.define_metric("round")
        started.define_metric("*", step_metric="round")
        started.define_metric("test/acc", step_metric="round", summary="max,last")
        return started

    def _off(self, what: str, error: Exception) -> str:
        """Turn W&B off for this run and keep one warning."""
        self._run = None
        if self._wandb is not None:
            _drop_service(self._wandb)
        line = f"W&B {what} and is off for this run: {short(error)}; metrics.jsonl has every round"
        self.warnings.append(line)
        return line


def _env_mode(mode: str) -> str:
    """Let `WANDB_MODE`, which users and clusters set, decide where the setting is auto."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline"}.get(asked, asked) or mode if mode == "auto" else mode


def _import_wandb() -> Any:
    """Import wandb and silence its console lines, those before a run has settings included."""
    # W&B's reports of its own errors would hold us up by 10 s and more when the server is down
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    # it has files of its own; Hydra's root logger would print every line
    logging.getLogger("wandb").propagate = False
    wandb.setup(settings=wandb.Settings(**_quiet()))
    return wandb


def _drop_service(wandb: Any) -> None:
    """Let go of W&B's service, which may be dead: the next job of a sweep gets a new one."""

    def drop() -> None:
        with suppress(Exception):
            wandb.teardown()

    # it can wait for uploads, so it is left behind
    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    thread.join(2.0)


def _quiet() -> dict[str, Any]:
    """Give the settings that keep wandb off the console and our stdout untouched."""
    return {"silent": True, "quiet": True, "console": "off"}


def _run_id(folder: Path) -> str:
    """Give the W&B id of a run's folder, made once: a resumed run goes on under the same id."""
    path = folder / "wandb_id"
    if path.is_file() and (known := path.read_text().strip()):
        return known
    made = secrets.token_hex(4)
    atomic_write(path, made + "\n")
    return made


def _files(started: Any) -> Path:
    """Give the folder of a W&B run's own files, short where it is below the working directory."""
    path = Path(started.dir).parent
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _jsonable(value: Any) -> Any:
    """Write a non-finite number as None: W&B's summary has no other way to show it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

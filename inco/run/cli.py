"""The front door: checks a command line, runs each of its jobs, and ends with where to look and
what to type.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from inco.config.difference import difference
from inco.config.naming import digest, plain
from inco.config.validate import GROUPS, validate
from inco.engine.workers import under_torchrun
from inco.errors import ConfigError, InCoError
from inco.run.early import INTERRUPTED, take_over
from inco.run.front import Point, absent, check
from inco.run.launch import follow_torchrun, lead
from inco.run.signals import PREEMPTED, exit_code, fix_exit_code

Ledger = dict[Path, int]
"""The exit code of each job that ran in this process, by folder."""


def front_door(main: Callable[[], Any], conf: Path, argv: Sequence[str], ledger: Ledger) -> int:
    """Check the command line, run it, and return the exit code.

    `main` is the Hydra entry, `conf` its folder.
    """
    try:
        # a single run finds out while its workers start
        checked = check(conf, argv, deep="-m" in argv or "--multirun" in argv)
    except InCoError as error:
        print(message(error), file=sys.stderr)
        return error.exit_code
    points, sweep = checked or ([], False)
    made = {path for point in points for path in absent(point.folder)}
    take_over()
    try:
        main()
    except KeyboardInterrupt:  # before a job, or between two; a job's own is told by `run_job`
        print("\ninterrupted; what has been trained is kept", file=sys.stderr, flush=True)
        fix_exit_code(INTERRUPTED)
        return INTERRUPTED
    finally:
        codes = _sweep_end(points, ledger) if sweep else list(ledger.values())
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it holds something
                path.rmdir()
    return max(codes, default=0)


def run_job(cfg: DictConfig, ledger: Ledger) -> float | None:
    """Run one job, note its exit code, and return its last accuracy for a sweeper.

    An interruption ends a sweep, an error does not.
    """
    hydra = HydraConfig.get()
    settings = plain(cfg)
    folder = Path(hydra.runtime.output_dir).absolute()
    command = _command(hydra)
    try:
        problems = validate(settings)
        if problems:
            raise ConfigError(problems)
        if under_torchrun() and int(os.environ["RANK"]) > 0:
            follow_torchrun(settings, folder)
            return None
        summary = lead(settings, folder, _facts(cfg, settings, hydra, command))
    except InCoError as error:
        alone = hydra.mode == RunMode.RUN
        consequence = "nothing has been run" if alone else "this run has not started"
        print(message(error, consequence), file=sys.stderr, flush=True)
        ledger[folder] = error.exit_code
    except KeyboardInterrupt as error:
        ledger[folder] = exit_code(error)
        fix_exit_code(ledger[folder])
        kept = f"{str(error) or 'interrupted'}; every checkpointed round is kept"
        print(f"\n{kept}. Go on with: {command}", file=sys.stderr, flush=True)
        sys.exit(ledger[folder])
    except Exception:
        traceback.print_exc()
        ledger[folder] = 1
    else:
        ledger[folder] = 0
        _close(summary, folder, command)
        return summary["test/acc"]
    return None


def message(error: InCoError, consequence: str = "nothing has been run") -> str:
    """Return what a user is shown of an error."""
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        lines = (f"  {problem}" for problem in error.problems)
        return "\n".join([f"{head} in the settings; {consequence}:", *lines])
    return str(error)


def _command(hydra: Any) -> str:
    """Return what to type to go on with this job alone."""
    given = sys.argv[1:]
    if hydra.mode == RunMode.MULTIRUN:
        sources = hydra.runtime.config_sources
        folders = [source.path for source in sources if source.provider == "command-line"]
        own = [argument for path in folders for argument in ("--config-dir", path)]
        given = [*own, *hydra.overrides.task]
    return shlex.join(["python", "run.py", *(o for o in given if not o.startswith("fresh="))])


def _facts(cfg: DictConfig, settings: dict[str, Any], hydra: Any, command: str) -> dict[str, Any]:
    choices = hydra.runtime.choices
    chosen = {group: str(choices[group]) for group in GROUPS if group in choices}
    method = [group for group in ("split", "algorithm", "transform") if group in chosen]
    named = [group for group in ("dataset", "model", *method) if group in chosen]
    name = str(cfg.name)
    own_name = not name.endswith(digest(settings))
    sources = hydra.runtime.config_sources
    conf = next(Path(source.path) for source in sources if source.provider == "main")
    return {
        "name": name,
        "group": name if own_name else name.replace(f"-s{settings['seed']}-", "-"),
        "tags": [chosen[group] for group in named],
        "method": ", ".join(f"{group}={chosen[group]}" for group in method),
        "command": command,
        "choices": chosen,
        "experiment": str(choices.get("experiment") or "") or None,
        "scale": settings["scale"],
        "difference": difference(settings, chosen, conf),
        "files": {
            "config.yaml": OmegaConf.to_yaml(cfg),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})),
            "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
        },
    }


def _close(summary: dict[str, Any], folder: Path, command: str) -> None:
    from inco.run.console import closing, final_table

    final_table(summary)
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    if summary.get("already"):
        accuracy = summary["test/acc"]
        shown = "unknown" if accuracy is None else f"{accuracy:.2f} %"
        print(
            f"already finished: {summary['rounds']} rounds, accuracy {shown}; raise rounds to go"
            " on, fresh=true to start over"
        )
    closing(folder, command)


def _sweep_end(points: Sequence[Point], ledger: Ledger) -> list[int]:
    """Print the table of a sweep, and return each job's exit code."""
    from inco.run.console import sweep_table

    jobs = [(point, *_outcome(point.folder.absolute(), ledger)) for point in points]
    sweep_table(
        (number, shlex.join(point.overrides), status, accuracy, point.folder)
        for number, (point, status, _, accuracy) in enumerate(jobs)
    )
    _compare([point.folder.absolute() for point in points])
    return [code for _, _, code, _ in jobs]


def _outcome(folder: Path, ledger: Ledger) -> tuple[str, int, float | None]:
    """Return status, exit code and accuracy of a job; those in the summary, if it ran in another
    process.
    """
    from inco.records.record import RunRecord

    summary = (RunRecord(folder).read_summary() if folder.is_dir() else None) or {}
    finished = summary.get("status") == "finished"
    code = ledger.get(folder, 0 if finished else summary.get("exit_code", 1))
    if code == 0:
        status = "finished"
    elif code in (INTERRUPTED, PREEMPTED):
        status = "interrupted"
    else:
        status = "failed" if summary or folder in ledger else "not run"
    return status, code, summary.get("test/acc") if finished else None


def _compare(folders: Sequence[Path]) -> None:
    """Write the comparison of a sweep's runs beside them; the same sweep finds its place again."""
    folders = [folder for folder in folders if (folder / "metrics.jsonl").exists()]
    if len(folders) < 2:
        return
    from inco.records.runs import find
    from inco.report import write_comparison
    from inco.run.console import short_path

    names = "\n".join(sorted(folder.name for folder in folders))
    home = Path(os.path.commonpath([folder.parent for folder in folders]))
    place = home / "sweeps" / hashlib.sha256(names.encode()).hexdigest()[:8]
    try:
        write_comparison(find(folders), place, "Sweep")
        print(f"comparison  {short_path(place / 'comparison.html')}", flush=True)
    except Exception as error:  # the runs are there; nothing of them depends on it
        why = f"{type(error).__name__}: {error}"
        print(f"warning: the comparison could not be written: {why}", file=sys.stderr)

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
from inco.run.front import Point, check
from inco.run.launch import follow_torchrun, lead
from inco.run.signals import INTERRUPTED, PREEMPTED, Preempted, last_word

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
    absent = _absent(points)
    try:
        main()
    finally:
        codes = _sweep_end(points, ledger) if sweep else list(ledger.values())
        for place in absent:
            with suppress(OSError):  # it holds something
                place.rmdir()
    return max(codes, default=0)


def _absent(points: Sequence[Point]) -> list[Path]:
    """Return the folders that the runs are about to make, those inside others first."""
    folders = {
        place
        for point in points
        for place in (point.folder.absolute(), *point.folder.absolute().parents)
        if not place.exists()
    }
    return sorted(folders, key=lambda place: len(place.parts), reverse=True)


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
        so = "; nothing has been run" if alone else "; this run has not started"
        print(message(error, so), file=sys.stderr, flush=True)
        ledger[folder] = error.exit_code
    except KeyboardInterrupt as error:
        how, code = (
            (str(error), PREEMPTED)
            if isinstance(error, Preempted)
            else ("interrupted", INTERRUPTED)
        )
        last_word(code)
        print(
            f"\n{how}; every checkpointed round is kept. Go on with: {command}",
            file=sys.stderr,
            flush=True,
        )
        ledger[folder] = code
        sys.exit(code)
    except Exception:
        traceback.print_exc()
        ledger[folder] = 1
    else:
        ledger[folder] = 0
        _close(summary, folder, command)
        return summary["test/acc"]
    return None


def _command(hydra: Any) -> str:
    """Return what to type to go on with this job alone."""
    if hydra.mode == RunMode.MULTIRUN:
        given = list(hydra.overrides.task)
        own = [
            source.path
            for source in hydra.runtime.config_sources
            if source.provider == "command-line"
        ]
        config_dir = [word for path in own for word in ("--config-dir", path)]
    else:
        given = sys.argv[1:]
        config_dir = []
    return shlex.join(
        ["python", "run.py", *config_dir, *(o for o in given if not o.startswith("fresh="))]
    )


def _facts(cfg: DictConfig, settings: dict[str, Any], hydra: Any, command: str) -> dict[str, Any]:
    chosen = {
        group: str(hydra.runtime.choices[group])
        for group in GROUPS
        if group in hydra.runtime.choices
    }
    method = ", ".join(
        f"{group}={chosen[group]}"
        for group in ("split", "algorithm", "transform")
        if group in chosen
    )
    tags = [
        chosen[group]
        for group in ("dataset", "model", "split", "algorithm", "transform")
        if group in chosen
    ]
    name = str(cfg.name)
    group = name.replace(f"-s{settings['seed']}-", "-") if name.endswith(digest(settings)) else name
    files = {
        "config.yaml": OmegaConf.to_yaml(cfg),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})),
        "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
    }
    conf = next(
        Path(source.path) for source in hydra.runtime.config_sources if source.provider == "main"
    )
    return {
        "name": name,
        "group": group,
        "tags": tags,
        "method": method,
        "command": command,
        "choices": chosen,
        "experiment": str(hydra.runtime.choices.get("experiment") or "") or None,
        "scale": settings["scale"],
        "difference": difference(settings, chosen, conf),
        "files": files,
    }


def _close(summary: dict[str, Any], folder: Path, command: str) -> None:
    from inco.run.console import closing, final_table

    names = [key.removeprefix("params/") for key in summary if key.startswith("params/")]
    final_table(
        (
            n,
            summary[f"params/{n}"],
            summary[f"flops/{n}"],
            summary[f"test/acc/{n}"],
            summary[f"test/acc/{n}_best"],
        )
        for n in names
    )
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    if summary.get("already"):
        accuracy = f"{summary['test/acc']:.2f} %" if summary["test/acc"] is not None else "unknown"
        print(
            f"already finished: {summary['rounds']} rounds, accuracy {accuracy}; raise rounds to go"
            " on, fresh=true to start over"
        )
    closing(folder, command)


def message(error: InCoError, so: str = "; nothing has been run") -> str:
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"{head} in the settings{so}:", *(f"  {p}" for p in error.problems)])
    return str(error)


def _sweep_end(points: Sequence[Point], ledger: Ledger) -> list[int]:
    """Print the table of a sweep, and return each job's exit code; of a job in another process,
    what its summary says.
    """
    from inco.records.record import RunRecord
    from inco.run.console import sweep_table

    rows = []
    codes = []
    for number, point in enumerate(points):
        summary = RunRecord(point.folder).read_summary() if point.folder.is_dir() else None
        finished = summary is not None and summary.get("status") == "finished"
        code = ledger.get(
            point.folder.absolute(), 0 if finished else (summary or {}).get("exit_code", 1)
        )
        status = (
            "finished"
            if code == 0
            else (
                "interrupted"
                if code in (INTERRUPTED, PREEMPTED)
                else "failed"
                if summary or point.folder.absolute() in ledger
                else "not run"
            )
        )
        rows.append(
            (
                number,
                shlex.join(point.overrides),
                status,
                summary.get("test/acc") if summary and finished else None,
                point.folder,
            )
        )
        codes.append(code)
    sweep_table(rows)
    _compare(points)
    return codes


def _compare(points: Sequence[Point]) -> None:
    """Write the comparison of a sweep's runs beside them; the same sweep finds its place again."""
    folders = [
        point.folder.absolute() for point in points if (point.folder / "metrics.jsonl").exists()
    ]
    if len(folders) < 2:
        return
    from inco.records.runs import find
    from inco.report import write_comparison
    from inco.run.console import short_path

    names = "\n".join(sorted(folder.name for folder in folders))
    place = (
        Path(os.path.commonpath([folder.parent for folder in folders]))
        / "sweeps"
        / hashlib.sha256(names.encode()).hexdigest()[:8]
    )
    try:
        write_comparison(find(folders), place, "Sweep")
        print(f"comparison  {short_path(place / 'comparison.html')}", flush=True)
    except Exception as error:  # the runs are there; nothing of them depends on it
        print(
            f"warning: the comparison could not be written: {type(error).__name__}: {error}",
            file=sys.stderr,
        )

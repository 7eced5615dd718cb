"""The front door: checks a whole command line before anything runs, runs each job, and ends with where to look and what to type."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from inco.config.launch import follow, lead, under_torchrun
from inco.config.naming import digest, plain
from inco.config.validate import GROUPS, OVERLAYS, did_you_mean, validate
from inco.errors import ConfigError, InCoError, StorageError

INTERRUPTED = 130


@dataclass(frozen=True)
class Point:
    """One job of a command line: its overrides and the folder that its record goes to."""

    overrides: tuple[str, ...]
    folder: Path


def front_door(main: Callable[[], Any], conf: Path, argv: Sequence[str]) -> int:
    """Check the command line, run it, and return the exit code. `main` is the Hydra entry, `conf` its folder."""
    try:
        points = check(conf, argv)
        for point in points or []:
            _check_writable(point.folder)
    except InCoError as error:
        print(_message(error), file=sys.stderr)
        return error.exit_code
    if points is None or len(points) == 1:
        main()
        return 0
    try:
        main()
    finally:
        codes = _sweep_end(points)
    return max(codes)


def _check_writable(folder: Path) -> None:
    """Say so before Hydra makes the run's folder, if it cannot."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(f"hydra.run.dir={folder}: cannot write below {place}; choose another folder, or change its permissions")


def check(conf: Path, argv: Sequence[str]) -> list[Point] | None:
    """Compose and validate every point of a command line; None where it asks for help or for another configuration."""
    args = get_args_parser().parse_args(list(argv))
    asks = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion, args.experimental_rerun)
    if any(asks) or args.config_name or args.config_path:
        return None
    try:
        overrides = OverridesParser.create().parse_overrides(args.overrides)
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    extra = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    problems: dict[str, None] = {}  # in order, each once
    points = []
    with initialize_config_dir(config_dir=str(conf), version_base="1.3", job_name="run"):
        for point in _expand(overrides):
            try:
                points.append(_compose(extra, point))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))
    return points


def _expand(overrides: Sequence[Override]) -> list[list[Override]]:
    """Return the points of a sweep, as Hydra's own sweeper makes them. Ranges that only an optimising sweeper draws from are left out."""
    parser, choices = OverridesParser.create(), []
    for override in overrides:
        if not override.is_sweep_override():
            choices.append([override])
        elif override.is_discrete_sweep():
            lines = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            choices.append(parser.parse_overrides(lines))
    return [list(point) for point in itertools.product(*choices)]


def _compose(extra: list[str], overrides: Sequence[Override]) -> Point:
    """Compose one point and raise ConfigError with all its problems."""
    groups, values, problems = _sort_out(extra, overrides)
    base = _try_compose(extra + [str(o.input_line) for o in groups])
    keep = list(groups)
    for override in values:
        problem = _unknown(base, override)
        if problem:
            problems.append(problem)
        else:
            keep.append(override)
    try:
        cfg = _try_compose(extra + [str(o.input_line) for o in keep])
        settings = plain(cfg)
        problems += validate(settings)
        HydraConfig.instance().set_config(cfg)
        folder = Path("" if problems else _folder(cfg, overrides))
    except (ConfigError, OmegaConfBaseException) as error:
        problems += error.problems if isinstance(error, ConfigError) else [str(error).splitlines()[0]]
    if problems:
        raise ConfigError(problems)
    return Point(tuple(str(o.input_line) for o in overrides if not _is_hydra(o)), folder)


def _folder(cfg: DictConfig, overrides: Sequence[Override]) -> str:
    if any(o.key_or_group == "hydra.run.dir" for o in overrides):
        return str(cfg.hydra.run.dir)
    return os.path.join(str(cfg.hydra.sweep.dir), str(cfg.name))


def _try_compose(lines: list[str]) -> DictConfig:
    try:
        return compose("config", overrides=lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split("\n")[:2])) from error


def _is_hydra(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _sort_out(extra: list[str], overrides: Sequence[Override]) -> tuple[list[Override], list[Override], list[str]]:
    """Tell choices of options from values, and name options that do not exist."""
    loader = GlobalHydra.instance().config_loader()
    groups: list[Override] = []
    values: list[Override] = []
    problems: list[str] = []
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if _is_hydra(override):
            groups.append(override)
        elif key in (*GROUPS, *OVERLAYS) and (value is None or isinstance(value, str | int | float)):
            options = loader.get_group_options(key, config_name="config", overrides=extra)
            if value is None:
                problems.append(f"{key}=null: leave it out, or choose one of {', '.join(options)}")
            elif str(value) in options:
                groups.append(override)
            else:
                problems.append(f"{key}={value}: no such option{did_you_mean(str(value), options)} (there are {', '.join(options)})")
        else:
            (groups if key in (*GROUPS, *OVERLAYS) else values).append(override)
    return groups, values, problems


def _unknown(base: DictConfig, override: Override) -> str | None:
    """Say so where nothing reads a key."""
    key = override.key_or_group
    if override.type == OverrideType.DEL or _exists(base, key):
        return None
    known = [*_flat_keys(plain(base)), "name", *GROUPS, *OVERLAYS]
    return f"{override.input_line}: no such setting{did_you_mean(key, known) or did_you_mean(key.split('.')[-1], known)}"


def _exists(cfg: Any, key: str) -> bool:
    for part in key.split("."):
        if not OmegaConf.is_dict(cfg) or part not in cfg.keys():  # noqa: SIM118  # `in cfg` passes over "???"
            return False
        cfg = cfg._get_node(part)
    return True


def _flat_keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += _flat_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found


def run_job(cfg: DictConfig) -> float | None:
    """Run one job, and return its last accuracy for a sweeper. Ends a single run with its exit code; a sweep goes on."""
    hydra = HydraConfig.get()
    settings, folder = plain(cfg), Path(hydra.runtime.output_dir).absolute()
    sweep = hydra.mode == RunMode.MULTIRUN
    command = shlex.join(["python", "run.py", *(o for o in hydra.overrides.task if not o.startswith("fresh="))])
    try:
        problems = validate(settings)
        if problems:
            raise ConfigError(problems)
        if under_torchrun() and int(os.environ["RANK"]) > 0:
            follow(settings, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None)
            return None
        summary = lead(settings, folder, _facts(cfg, settings, hydra.runtime.choices, command))
    except InCoError as error:
        print(_message(error), file=sys.stderr, flush=True)
        code = error.exit_code
    except KeyboardInterrupt:
        print(f"\ninterrupted; every finished round is kept. Go on with: {command}", file=sys.stderr, flush=True)
        code = INTERRUPTED
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        _close(summary, folder, command)
        return summary["test/acc"]
    if not sweep or code == INTERRUPTED:
        sys.exit(code)
    return None


def _facts(cfg: DictConfig, settings: dict[str, Any], choices: Any, command: str) -> dict[str, Any]:
    chosen = {group: str(choices[group]) for group in GROUPS if group in choices}
    method = ", ".join(f"{group}={chosen[group]}" for group in ("split", "algorithm", "transform") if group in chosen)
    tags = [chosen[group] for group in ("dataset", "model", "split", "algorithm", "transform") if group in chosen]
    group = str(cfg.name).replace(f"-s{settings['seed']}-", "-") if str(cfg.name).endswith(digest(settings)) else str(cfg.name)
    return {"name": str(cfg.name), "group": group, "tags": tags, "method": method, "command": command}


def _close(summary: dict[str, Any], folder: Path, command: str) -> None:
    from inco.progress import closing, final_table

    names = [key.removeprefix("params/") for key in summary if key.startswith("params/")]
    final_table((n, summary[f"params/{n}"], summary[f"flops/{n}"], summary[f"test/acc/{n}"], summary[f"test/acc/{n}_best"]) for n in names)
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    if summary.get("already"):
        accuracy = f"{summary['test/acc']:.2f} %" if summary["test/acc"] is not None else "unknown"
        print(f"already finished: {summary['rounds']} rounds, accuracy {accuracy}; raise rounds to go on, fresh=true to start over")
    closing(folder, command)


def _message(error: InCoError) -> str:
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        return "\n".join([f"{head} in the settings; nothing has been run:", *(f"  {p}" for p in error.problems)])
    return str(error)


def _sweep_end(points: Sequence[Point]) -> list[int]:
    """Print the table of a sweep, and return each job's exit code."""
    from inco.progress import sweep_table
    from inco.record import RunRecord

    rows, codes = [], []
    for number, point in enumerate(points):
        summary = RunRecord(point.folder).read_summary() if point.folder.is_dir() else None
        status = summary["status"] if summary else "not run"
        accuracy = summary["test/acc"] if summary else None
        rows.append((number, shlex.join(point.overrides), status, accuracy, point.folder))
        codes.append(0 if status == "finished" else summary.get("exit_code", 1) if summary else 1)
    sweep_table(rows)
    return codes

"""Check a whole command line before anything runs: every override, every point of a sweep, every
folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from inco.config import signatures
from inco.config.naming import plain
from inco.config.validate import validate
from inco.errors import ConfigError, StorageError
from inco.run.overrides import expand, is_hydra, misplaced, sort_out, unknown

_TAKEN = ("wandb", "tensorboard", "sweeps")  # folders beside those of runs


@dataclass(frozen=True)
class Point:
    """One job of a command line; `folder` is where its record goes."""

    overrides: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any] = field(hash=False)


def check(conf: Path, argv: Sequence[str], deep: bool = True) -> tuple[list[Point], bool] | None:
    """Compose and validate every point of a command line. Returns the points and whether they are a
    sweep.

    `deep`: also report what is wrong between groups, which imports their classes, and torch. A line
    with another problem is looked at so in any case.
    None where it asks for help or for another configuration. Raises ConfigError with all problems,
    StorageError for a folder.
    """
    args = get_args_parser().parse_args(list(argv))
    asks = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    others = (args.experimental_rerun, args.config_name, args.config_path)
    if any((*asks, *others)):
        return None
    try:
        overrides = OverridesParser.create().parse_overrides(args.overrides)
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    path = args.config_dir
    extra = [f"hydra.searchpath=[file://{Path(path).absolute()}]"] if path else []
    problems = misplaced(overrides, args.multirun)
    points: list[Point] = []
    with initialize_config_dir(config_dir=str(conf), version_base="1.3", job_name="run"):
        _chosen.cache_clear()
        signatures.forget()  # a class of the user's own may have changed
        if not problems:
            if args.multirun:
                overrides = [*_experiment_sweep(extra, overrides), *overrides]
            with _collected(problems):
                for job in expand(overrides):
                    with _collected(problems):
                        points.append(_compose(conf, extra, job, deep))
    if len({point.folder for point in points}) < len(points):
        problems.append(
            "two points of the sweep have one folder; leave `name` out, or sweep over what differs"
        )
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    for point in points:
        _check_writable(point.folder)
    return points, args.multirun


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    """Note what is wrong, and go on after the block."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems
    except OmegaConfBaseException as error:
        problems.append(str(error).splitlines()[0])


def _experiment_sweep(extra: list[str], overrides: Sequence[Override]) -> list[Override]:
    """Return what an experiment sweeps over by itself (`hydra.sweeper.params`).

    What is wrong with the rest is reported point by point.
    """
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    deleted = [o.key_or_group for o in overrides if o.type == OverrideType.DEL]
    try:
        params = _try_compose([*extra, *fixed]).hydra.sweeper.get("params") or {}
        kept = [f"{key}={value}" for key, value in params.items() if key not in deleted]
        return OverridesParser.create().parse_overrides(kept)
    except (ConfigError, HydraException):
        return []


def _compose(conf: Path, extra: list[str], overrides: Sequence[Override], deep: bool) -> Point:
    """Compose one point and raise ConfigError with all its problems."""
    choices, values, problems = sort_out(extra, overrides)
    base = _chosen((*extra, *choices))
    lines = [*extra, *choices]
    for override in values:
        problem = unknown(conf, base, override)
        if problem:
            problems.append(problem)
        else:
            lines.append(str(override.input_line))
    where = ""
    settings: Mapping[str, Any] = {}
    with _collected(problems):
        cfg = _try_compose(lines)
        HydraConfig.instance().set_config(cfg)  # what the settings are made of asks for the choices
        settings = plain(cfg)
        problems += _problems(cfg, settings, deep)
        if not problems:
            where = _folder(cfg, overrides)
            if not where.strip():
                problems.append("hydra.run.dir=: it names no folder; give one, or leave it out")
    if problems:
        raise ConfigError(problems)
    own = tuple(str(override.input_line) for override in overrides if not is_hydra(override))
    return Point(own, Path(where), settings)


@lru_cache(maxsize=64)
def _chosen(lines: tuple[str, ...]) -> Mapping[str, Any]:
    """Return what choices alone compose to, unresolved.

    Points of a sweep share them, and composing takes a tenth of a second.
    """
    chosen = OmegaConf.to_container(_try_compose(list(lines)))
    assert isinstance(chosen, dict)
    return {str(key): value for key, value in chosen.items()}


def _try_compose(lines: list[str]) -> DictConfig:
    try:
        return compose("config", overrides=lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(" ".join(str(error).split("\n")[:2])) from error


def _problems(cfg: DictConfig, settings: Mapping[str, Any], deep: bool) -> list[str]:
    found = validate(settings)
    if found or deep:
        from inco.parts import problems

        found = problems(settings)
    name = cfg.name
    if not isinstance(name, str) or name in _TAKEN or not re.fullmatch(r"[^/\\\s.][^/\\]*", name):
        found.append(
            f"name={name}: it names a folder below outputs/; use letters, digits, - and _, and none"
            f" of {', '.join(_TAKEN)}"
        )
    if cfg.scale in ("paper", "mini") and "${at_scale:" not in OmegaConf.to_yaml(cfg):
        found.append(
            f"scale={cfg.scale}: only experiments of the paper have scales (experiment=table...,"
            " figure..., see docs/paper.md); leave it out, or choose one"
        )
    return found


def _folder(cfg: DictConfig, overrides: Sequence[Override]) -> str:
    if any(override.key_or_group == "hydra.run.dir" for override in overrides):
        return str(cfg.hydra.run.dir)
    return os.path.join(str(cfg.hydra.sweep.dir), str(cfg.name))


def absent(folder: Path) -> list[Path]:
    """Return those of a folder and the folders above it that are not there, innermost first."""
    place = folder.absolute()
    return [path for path in (place, *place.parents) if not path.exists()]


def _check_writable(folder: Path) -> None:
    """Raise StorageError if the run's folder cannot be made.

    It is tried: permissions do not tell of all file systems.
    """
    place = folder.absolute()
    missing: list[Path] = []
    try:
        missing = absent(folder)
        place.mkdir(parents=True, exist_ok=True)
        good = os.access(place, os.W_OK | os.X_OK)
    except OSError:
        good = False
    for path in missing:
        with suppress(OSError):
            path.rmdir()
    if not good:
        above = missing[-1].parent if missing else place
        raise StorageError(
            f"hydra.run.dir={folder}: cannot write below {above}; choose another folder, or change"
            " its permissions"
        )

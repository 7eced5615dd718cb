"""Check a whole command line before anything runs: every override, every point of a sweep, every
folder.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from inco.config import signatures
from inco.config.naming import plain
from inco.config.targets import ALLOWED
from inco.config.validate import GROUPS, OVERLAYS, did_you_mean, validate
from inco.errors import ConfigError, StorageError
from inco.records.names import flat

_TAKEN = ("wandb", "tensorboard", "sweeps")  # folders beside those of runs


@dataclass(frozen=True)
class Point:
    """One job of a command line: its overrides, the folder that its record goes to, and its
    settings.
    """

    overrides: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any] = field(hash=False)


def check(conf: Path, argv: Sequence[str], deep: bool = True) -> tuple[list[Point], bool] | None:
    """Compose and validate every point of a command line. Returns the points and whether they are a
    sweep.

    `deep`: also tell what is wrong between groups, which imports their classes, and torch. A line
    with another problem is looked at so in any case.
    None where it asks for help or for another configuration. Raises ConfigError with all problems,
    StorageError for a folder.
    """
    args = get_args_parser().parse_args(list(argv))
    asks = (
        args.help,
        args.hydra_help,
        args.cfg,
        args.info,
        args.shell_completion,
        args.experimental_rerun,
    )
    if any(asks) or args.config_name or args.config_path:
        return None
    try:
        overrides = OverridesParser.create().parse_overrides(args.overrides)
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    problems = dict.fromkeys(_misplaced(overrides, args.multirun))  # in order, each once
    extra = (
        [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    )
    points: list[Point] = []
    with initialize_config_dir(config_dir=str(conf), version_base="1.3", job_name="run"):
        _chosen.cache_clear()
        signatures.forget()  # a class of the user's own may have changed
        if args.multirun and not problems:
            overrides = [*_brought(extra, overrides), *overrides]
        for point in _points(overrides, problems):
            try:
                points.append(_compose(conf, extra, point, deep))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
    if len({point.folder for point in points}) < len(points):
        problems[
            "two points of the sweep have one folder; leave `name` out, or sweep over what differs"
        ] = None
    if problems:
        raise ConfigError(list(problems))
    for folder in [point.folder for point in points]:
        _check_writable(folder)
    return points, args.multirun


def _misplaced(overrides: Sequence[Override], multirun: bool) -> list[str]:
    """Name what Hydra would take in another sense than the user's."""
    found = []
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            found.append(f"{override.input_line}: several values make a sweep; add -m")
        if multirun and override.key_or_group == "hydra.run.dir":
            found.append(
                f"{override.input_line}: a sweep makes a folder for each job; use hydra.sweep.dir,"
                " or leave it out"
            )
        if (
            multirun
            and override.is_sweep_override()
            and re.match(r"scale=|experiment=.*(table|figure)", str(override.input_line))
        ):
            found.append(
                f"{override.input_line}: an experiment of the paper brings a sweep of its own;"
                " start them one after the other"
            )
        if override.key_or_group == "hydra.job.chdir" and override.value():
            found.append(
                f"{override.input_line}: relative paths would change their meaning; leave it out"
            )
    return found


def _check_writable(folder: Path) -> None:
    """Say so before anything is made, if the run's folder cannot be.

    It is tried: permissions do not tell of all file systems.
    """
    place = folder.absolute()
    missing = []
    made: list[Path] = []
    try:
        while not place.exists() and place != place.parent:
            missing.append(place)
            place = place.parent
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
        good = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except OSError:
        good = False
    finally:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
    if not good:
        raise StorageError(
            f"hydra.run.dir={folder}: cannot write below {place}; choose another folder, or change"
            " its permissions"
        )


def _points(overrides: Sequence[Override], problems: dict[str, None]) -> list[list[Override]]:
    """Return the points of a command line without problems so far; what is wrong with its ranges is
    added to them.
    """
    try:
        return _expand(overrides) if not problems else []
    except ConfigError as error:
        problems |= dict.fromkeys(error.problems)
        return []


def _brought(extra: list[str], overrides: Sequence[Override]) -> list[Override]:
    """Return what an experiment sweeps over by itself (`hydra.sweeper.params`).

    What is wrong with the rest is told point by point.
    """
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    try:
        params = _try_compose([*extra, *fixed]).hydra.sweeper.get("params") or {}
        gone = {
            override.key_or_group for override in overrides if override.type == OverrideType.DEL
        }
        return OverridesParser.create().parse_overrides(
            [f"{key}={value}" for key, value in params.items() if key not in gone]
        )
    except (ConfigError, HydraException):
        return []


def _expand(overrides: Sequence[Override]) -> list[list[Override]]:
    """Return the points of a sweep, as Hydra's own sweeper makes them: the last word on a key
    holds, at the place of the first.

    Ranges that only an optimising sweeper draws from are left out.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [override]
        elif override.is_discrete_sweep():
            try:
                lines = [
                    f"{override.get_key_element()}={value}"
                    for value in override.sweep_string_iterator()
                ]
                choices[key] = parser.parse_overrides(lines)
            except (HydraException, ValueError) as error:
                raise ConfigError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
            if not lines:
                raise ConfigError(f"{override.input_line}: there is nothing to sweep over")
    return [list(point) for point in itertools.product(*choices.values())]


def _compose(conf: Path, extra: list[str], overrides: Sequence[Override], deep: bool) -> Point:
    """Compose one point and raise ConfigError with all its problems."""
    groups, values, problems = _sort_out(extra, overrides)
    base = _chosen((*extra, *(str(o.input_line) for o in groups)))
    keep = list(groups)
    for override in values:
        problem = _unknown(conf, base, override)
        if problem:
            problems.append(problem)
        else:
            keep.append(override)
    try:
        cfg = _try_compose(extra + [str(o.input_line) for o in keep])
        HydraConfig.instance().set_config(cfg)  # what the settings are made of asks for the choices
        settings = plain(cfg)
        problems += _problems(settings, deep)
        problems += _name_problems(cfg.name) + _scale_problems(cfg)
        where = "" if problems else _folder(cfg, overrides)
        if not problems and not where.strip():
            problems.append("hydra.run.dir=: it names no folder; give one, or leave it out")
        folder = Path(where)
    except (ConfigError, OmegaConfBaseException) as error:
        problems += (
            error.problems if isinstance(error, ConfigError) else [str(error).splitlines()[0]]
        )
    if problems:
        raise ConfigError(problems)
    return Point(tuple(str(o.input_line) for o in overrides if not _is_hydra(o)), folder, settings)


def _problems(settings: Mapping[str, Any], deep: bool) -> list[str]:
    found = validate(settings)
    if not (found or deep):
        return []
    from inco.assembly import problems

    return problems(settings)


def _name_problems(name: Any) -> list[str]:
    good = isinstance(name, str) and re.fullmatch(r"[^/\\\s.][^/\\]*", name) and name not in _TAKEN
    return (
        []
        if good
        else [
            f"name={name}: it names a folder below outputs/; use letters, digits, - and _, and none"
            f" of {', '.join(_TAKEN)}"
        ]
    )


def _scale_problems(cfg: DictConfig) -> list[str]:
    told = (
        "only experiments of the paper have scales (experiment=table..., figure..., see"
        " docs/paper.md); leave it out, or choose one"
    )
    if cfg.scale not in ("paper", "mini") or "${at_scale:" in OmegaConf.to_yaml(cfg):
        return []
    return [f"scale={cfg.scale}: {told}"]


def _folder(cfg: DictConfig, overrides: Sequence[Override]) -> str:
    if any(o.key_or_group == "hydra.run.dir" for o in overrides):
        return str(cfg.hydra.run.dir)
    return os.path.join(str(cfg.hydra.sweep.dir), str(cfg.name))


@lru_cache(maxsize=64)
def _chosen(lines: tuple[str, ...]) -> DictConfig:
    """Return what choices alone compose to.

    Points of a sweep share them, and composing takes a tenth of a second.
    """
    return _try_compose(list(lines))


def _try_compose(lines: list[str]) -> DictConfig:
    try:
        return compose("config", overrides=lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(" ".join(str(error).split("\n")[:2])) from error


def _is_hydra(override: Override) -> bool:
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _sort_out(
    extra: list[str], overrides: Sequence[Override]
) -> tuple[list[Override], list[Override], list[str]]:
    """Tell choices of options from values, and name options that do not exist."""
    loader = GlobalHydra.instance().config_loader()
    groups: list[Override] = []
    values: list[Override] = []
    problems: list[str] = []
    for override in overrides:
        key = override.key_or_group
        value = override.value()
        if _is_hydra(override):
            groups.append(override)
        elif key in (*GROUPS, *OVERLAYS) and isinstance(value, list | dict):
            problems.append(
                f"{override.input_line}: name one option of conf/{key}/, or set its values as"
                f" {key}.SETTING=VALUE"
            )
        elif key in (*GROUPS, *OVERLAYS) and (
            value is None or isinstance(value, str | int | float)
        ):
            options = loader.get_group_options(key, config_name="config", overrides=extra)
            if value is None:
                problems.append(f"{key}=null: leave it out, or choose one of {', '.join(options)}")
            elif str(value) in options:
                groups.append(override)
            else:
                problems.append(
                    f"{key}={value}: no such option{did_you_mean(str(value), options)} (there are"
                    f" {', '.join(options)})"
                )
        else:
            (groups if key in (*GROUPS, *OVERLAYS) else values).append(override)
    return groups, values, problems


def _unknown(conf: Path, base: DictConfig, override: Override) -> str | None:
    """Say so where nothing reads a key."""
    key = override.key_or_group
    if key.endswith("._target_") and str(override.value()).startswith(ALLOWED):
        return (
            f"{override.input_line}: choose an option of conf/{key.partition('.')[0]}/ instead; a"
            " run is known by its options' names"
        )
    if override.type == OverrideType.DEL or _exists(base, key):
        return None
    group, _, rest = key.partition(".")
    elsewhere = [
        p.stem
        for p in sorted((conf / group).glob("*.yaml"))
        if rest and re.search(rf"^{re.escape(rest)}:", p.read_text(), re.M)
    ]
    if elsewhere:
        return (
            f"{override.input_line}: the chosen {group} has no such setting;"
            f" {', '.join(f'{group}={e}' for e in elsewhere)} has"
        )
    known = [
        *(k for k in flat(plain(base)) if not k.endswith("_target_")),
        "name",
        *GROUPS,
        *OVERLAYS,
    ]
    return (
        f"{override.input_line}: no such"
        f" setting{did_you_mean(key, known) or did_you_mean(key.split('.')[-1], known)}"
    )


def _exists(cfg: Any, key: str) -> bool:
    for part in key.split("."):
        if not OmegaConf.is_dict(cfg) or part not in cfg.keys():  # noqa: SIM118  # `in cfg` passes over "???"
            return False
        cfg = cfg._get_node(part)
    return True

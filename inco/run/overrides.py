"""What the overrides of a command line ask for, and what is wrong with each by itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from inco.config.targets import ALLOWED
from inco.config.validate import GROUPS, OVERLAYS, did_you_mean
from inco.errors import ConfigError
from inco.records.names import flat

_CHOICES = (*GROUPS, *OVERLAYS)


def is_hydra(override: Override) -> bool:
    return re.split(r"[./]", override.key_or_group)[0] == "hydra"


def misplaced(overrides: Sequence[Override], multirun: bool) -> list[str]:
    """Name what Hydra would take in another sense than the user's."""
    found = []
    for override in overrides:
        line = str(override.input_line)
        sweep = override.is_sweep_override()
        if sweep and not multirun:
            found.append(f"{line}: several values make a sweep; add -m")
        if multirun and override.key_or_group == "hydra.run.dir":
            fix = "use hydra.sweep.dir, or leave it out"
            found.append(f"{line}: a sweep makes a folder for each job; {fix}")
        if multirun and sweep and re.match(r"scale=|experiment=.*(table|figure)", line):
            fix = "start them one after the other"
            found.append(f"{line}: an experiment of the paper brings a sweep of its own; {fix}")
        if override.key_or_group == "hydra.job.chdir" and override.value():
            found.append(f"{line}: relative paths would change their meaning; leave it out")
    return found


def expand(overrides: Sequence[Override]) -> list[list[Override]]:
    """Return the points of a sweep, as Hydra's own sweeper makes them: the last override of a key
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
                lines = [f"{key}={value}" for value in override.sweep_string_iterator()]
                choices[key] = parser.parse_overrides(lines)
            except (HydraException, ValueError) as error:
                raise ConfigError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
            if not lines:
                raise ConfigError(f"{override.input_line}: there is nothing to sweep over")
    return [list(point) for point in itertools.product(*choices.values())]


def sort_out(
    extra: list[str], overrides: Sequence[Override]
) -> tuple[list[str], list[Override], list[str]]:
    """Return the lines that choose options, the overrides of values, and what is wrong with
    options.
    """
    loader = GlobalHydra.instance().config_loader()
    choices: list[str] = []
    values: list[Override] = []
    problems: list[str] = []
    for override in overrides:
        key = override.key_or_group
        if not is_hydra(override) and key not in _CHOICES:
            values.append(override)
            continue
        problem = None
        if key in _CHOICES:
            options = loader.get_group_options(key, config_name="config", overrides=extra)
            problem = _option_problem(override, options)
        if problem:
            problems.append(problem)
        else:
            choices.append(str(override.input_line))
    return choices, values, problems


def _option_problem(override: Override, options: Sequence[str]) -> str | None:
    key = override.key_or_group
    value = override.value()
    listed = ", ".join(options)
    if isinstance(value, list | dict):
        fix = f"name one option of conf/{key}/, or set its values as {key}.SETTING=VALUE"
        return f"{override.input_line}: {fix}"
    if value is None:
        return f"{key}=null: leave it out, or choose one of {listed}"
    if isinstance(value, str | int | float) and str(value) not in options:
        closest = did_you_mean(str(value), options)
        return f"{key}={value}: no such option{closest} (there are {listed})"
    return None


def unknown(conf: Path, base: Mapping[str, Any], override: Override) -> str | None:
    """Return what is wrong with an override that nothing reads."""
    key = override.key_or_group
    line = override.input_line
    group, _, rest = key.partition(".")
    if key.endswith("._target_") and str(override.value()).startswith(ALLOWED):
        why = "a run is known by its options' names"
        return f"{line}: choose an option of conf/{group}/ instead; {why}"
    if override.type == OverrideType.DEL or _exists(base, key):
        return None
    setting = re.compile(rf"^{re.escape(rest)}:", re.M)
    files = sorted((conf / group).glob("*.yaml")) if rest else []
    having = [f"{group}={path.stem}" for path in files if setting.search(path.read_text())]
    if having:
        return f"{line}: the chosen {group} has no such setting; {', '.join(having)} has"
    keys = (name for name in flat(base) if not name.startswith("hydra."))
    known = [*(name for name in keys if not name.endswith("_target_")), *_CHOICES]
    closest = did_you_mean(key, known) or did_you_mean(key.split(".")[-1], known)
    return f"{line}: no such setting{closest}"


def _exists(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True

"""What a run's settings have that the defaults have not: what a reader of its report wants to know
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from inco.config.naming import plain
from inco.config.validate import GROUPS
from inco.records.names import flat

Change = tuple[str, Any, Any]
"""A setting, its value, and the default; None where there is no such."""


def difference(settings: Mapping[str, Any], choices: Mapping[str, str], conf: Path) -> list[Change]:
    """Return the chosen options that are not the default's, then the values that are not those of
    the chosen options.

    `conf`: the folder of config.yaml. An experiment's overlay counts as values given by the user.
    """
    lines = OmegaConf.to_container(OmegaConf.load(conf / "config.yaml").defaults)
    assert isinstance(lines, list)
    default: dict[Any, Any] = {}
    for line in lines:
        default |= line if isinstance(line, dict) else {}
    options = [
        (group, choices[group], default[group])
        for group in GROUPS
        if choices.get(group, default[group]) != default[group]
    ]
    base = plain(
        compose(
            "config",
            overrides=[f"{group}={choices[group]}" for group in GROUPS if group in choices],
        )
    )
    ours = flat(settings)
    theirs = flat(base)
    values = [
        (key, value, theirs.get(key))
        for key, value in ours.items()
        if key not in theirs or theirs[key] != value
    ]
    return options + [
        change
        for change in values
        if change[0].split(".")[0] not in ("recipe", "experiment", "debug", "options")
    ]

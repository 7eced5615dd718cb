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
from inco.config.validate import GROUPS, OVERLAYS
from inco.records.names import flat

Change = tuple[str, Any, Any]
"""A setting, its value, and the default; None where there is no such."""


def difference(settings: Mapping[str, Any], choices: Mapping[str, str], conf: Path) -> list[Change]:
    """Return the chosen options that are not the default's, then the values that are not those of
    the chosen options.

    `conf`: the folder of config.yaml. An experiment's overlay counts as values given by the user.
    """
    lines: Any = OmegaConf.to_container(OmegaConf.load(conf / "config.yaml").defaults)
    default: dict[Any, Any] = {}
    for line in lines:
        default |= line if isinstance(line, dict) else {}
    chosen = [(group, choices[group]) for group in GROUPS if group in choices]
    options = [(group, option, default[group]) for group, option in chosen]
    base = flat(plain(compose("config", overrides=[f"{group}={o}" for group, o in chosen])))
    values = [
        (key, value, base.get(key))
        for key, value in flat(settings).items()
        if key.split(".")[0] not in (*OVERLAYS, "options")
        and (key not in base or base[key] != value)
    ]
    return [change for change in options if change[1] != change[2]] + values

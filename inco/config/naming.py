"""A run's name and digest: the same settings find the same folder again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from inco.config.help import settings_help
from inco.config.signatures import attribute
from inco.config.targets import is_ours
from inco.config.validate import GROUPS, typed

# What may differ between two sessions of one run: nothing here changes a round's result.
FREE = (
    "name",
    "rounds",
    "checkpoint_every",
    "fresh",
    "scale",
    "engine",
    "tracker",
    "recipe",
    "experiment",
    "debug",
)
# Settings that came after a release, as `group.setting`, each with the value that does what runs
# did before it. At that value a setting is no part of what a run is, so the same command finds the
# folder of the older release and goes on from its checkpoints.
LATER: dict[str, Any] = {
    "dataset.channels": 3,
    "dataset.limit": None,
    "dataset.test_limit": None,
}
_SHOWN = ("dataset", "model", "split", "algorithm", "transform")


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a result depends on: options by their names, so that a class may
    move; users' classes by their paths.
    """
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in FREE:
            kept[key] = _without(value, "_target_") if is_ours(value) else value
    options = settings.get("options", {})
    kept["options"] = {group: option for group, option in options.items() if group not in FREE}
    for place, before in LATER.items():
        group, _, name = place.partition(".")
        part = kept.get(group, {})
        if name in part and part[name] == before:
            kept[group] = _without(part, name)
    return kept


def _without(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != name}


def digest(settings: Mapping[str, Any]) -> str:
    """Return eight hex digits of everything that a result depends on, but the seed."""
    kept = json.dumps(_without(identity(settings), "seed"), sort_keys=True, default=str)
    return hashlib.sha256(kept.encode()).hexdigest()[:8]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain, typed Python, without Hydra's own part and the
    name; `options` are the names of the chosen options by group.
    """
    keys = [str(key) for key in cfg if key not in ("hydra", "name")]
    chosen = OmegaConf.masked_copy(cfg, keys)
    settings = typed(OmegaConf.to_container(chosen, resolve=True, throw_on_missing=False))  # type: ignore[arg-type]
    choices = _choices()
    options = {group: str(choices[group]) for group in GROUPS if group in choices}
    return settings | {"options": options}


def _choices() -> Mapping[str, Any]:
    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def _run_name(*, _root_: DictConfig) -> str:
    choices = _choices()
    settings = plain(_root_)
    options = [str(choices[group]) for group in _SHOWN if group in choices]
    return "-".join([*options, f"s{settings['seed']}", digest(settings)])


def _at_scale(paper: Any, mini: Any, *, _root_: DictConfig) -> Any:
    chosen = mini if _root_.scale == "mini" else paper
    # a plain list cannot be resolved in place
    return OmegaConf.create(list(chosen)) if isinstance(chosen, list | ListConfig) else chosen


def _published_partition(alpha: Any, *, _root_: DictConfig) -> str:
    """Return the path of a dataset's published file; Fashion-MNIST's runs had CIFAR-10's, which has
    no prefix.
    """
    prefix = attribute(_root_.dataset._target_, "published_prefix") or ""
    folder = os.environ.get("INCO_OFFICIAL_PARTITIONS") or "fix_distribution"
    return os.path.join(folder, f"{prefix}hetero-fix-100-{float(alpha)}.npy")


def register() -> None:
    """Make known what conf/ interpolates: `${run_name:}`, `${at_scale:PAPER,MINI}` and others."""
    OmegaConf.register_new_resolver("settings_help", settings_help, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("at_scale", _at_scale, replace=True)
    OmegaConf.register_new_resolver("published_partition", _published_partition, replace=True)

"""One pass over a composed configuration that reports every problem at once: types, ranges, unknown
keys, impossible combinations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from inco.config.root import Engine
from inco.config.signatures import settings_of, structured
from inco.config.targets import target_problem
from inco.settings import Rule, satisfied

GROUPS = (
    "dataset",
    "partition",
    "capacity",
    "model",
    "split",
    "algorithm",
    "transform",
    "local",
    "server",
    "uplink",
    "diagnostics",
    "tracker",
    "engine",
)
OVERLAYS = ("recipe", "experiment", "debug")
ROOT = "inco.config.root.Root"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean x?" for the closest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as their schemas read them: `no` is false, `1` is 1.0 where a number is
    meant. Wrong values stay as they are.
    """
    out = _typed(ROOT, settings)
    for group in GROUPS:
        node = settings.get(group)
        if isinstance(node, Mapping) and target_problem(group, node.get("_target_")) is None:
            out[group] = _typed(node["_target_"], node)
    return out


def _typed(target: str, node: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(node)
    schema = structured(target)
    if schema is None:
        return out
    reader = OmegaConf.structured(schema)
    for key in (settings_of(target) or {}).keys() & set(out):
        try:
            reader[key] = out[key]
            if not OmegaConf.is_missing(reader, key):
                out[key] = OmegaConf.to_container(reader, throw_on_missing=False)[key]  # type: ignore[index, call-overload]
        except OmegaConfBaseException:  # reported by validate
            continue
    return out


def validate(settings: Mapping[str, Any]) -> list[str]:
    """Return the problems of each group by itself, in their order; no class is imported for it.

    `inco.parts.problems` returns what is wrong between groups as well.
    """
    below = (*GROUPS, *OVERLAYS, "options")
    problems = _check("", ROOT, {k: v for k, v in settings.items() if k not in below})
    for group in GROUPS:
        found = _check_group(group, settings.get(group))
        if group == "engine" and not found:
            own = {key: value for key, value in settings[group].items() if key != "_target_"}
            found += Engine(**own).conflicts()
        problems += found
    return problems


def _check_group(group: str, node: Any) -> list[str]:
    if not isinstance(node, Mapping) or "_target_" not in node:
        return [f"{group}={node!r}: choose an option of conf/{group}/"]
    refused = target_problem(group, node["_target_"])
    return [refused] if refused else _check(f"{group}.", node["_target_"], node)


def _check(prefix: str, target: str, node: Mapping[str, Any]) -> list[str]:
    settings = settings_of(target)
    if settings is None:
        return []  # its source is not to be found: its constructor will raise
    others = () if prefix else (*GROUPS, *OVERLAYS)
    reader = OmegaConf.structured(structured(target))
    problems = []
    for key, value in node.items():
        place = f"{prefix}{key}"
        if key == "_target_":
            continue
        if key not in settings:
            known = [*(f"{prefix}{name}" for name in settings), *others]
            problems.append(f"{place}: no such setting{did_you_mean(place, known)}")
        elif value == "???":
            problems.append(f"{place}: it has no default; give it a value")
        else:
            problems += _check_value(place, reader, key, value, settings[key].rule)
    missing = [k for k, s in settings.items() if s.required and k not in node and k != "name"]
    return problems + [f"{prefix}{key}: missing" for key in missing]


def _check_value(place: str, reader: Any, key: str, value: Any, rule: Rule | None) -> list[str]:
    try:
        reader[key] = value
    except OmegaConfBaseException as error:
        expected = f"; use {rule.text}" if rule else ""
        return [f"{place}={_shown(value)}: {str(error).splitlines()[0]}{expected}"]
    converted = OmegaConf.to_container(reader)[key]  # type: ignore[index, call-overload]
    if rule and not satisfied(rule, converted):
        return [f"{place}={_shown(value)}: must be {rule.text}"]
    return []


def _shown(value: Any) -> str:
    """Write a value as a user would: 1 where a number became 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)

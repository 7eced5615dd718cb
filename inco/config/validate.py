"""One pass over a composed configuration that tells every problem at once: types, ranges, unknown
keys, impossible combinations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from inco.config.cross import CROSS_RULES
from inco.config.registry import SCHEMAS
from inco.config.schema import Root
from inco.config.targets import target_problem

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
OVERLAYS = ("experiment", "debug")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean x?" for the closest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as their schemas read them: `no` is false, `1` is 1.0 where a number is
    meant. Wrong values stay as they are.
    """
    out = _typed(Root, settings)
    for group in GROUPS:
        node = settings.get(group)
        schema = SCHEMAS.get(str(node.get("_target_"))) if isinstance(node, Mapping) else None
        if schema:
            out[group] = _typed(schema, node or {})
    return out


def _typed(schema: type, node: Mapping[str, Any]) -> dict[str, Any]:
    reader = OmegaConf.structured(schema)
    known = {f.name for f in fields(schema)}
    out = dict(node)
    for key in known & set(out):
        try:
            reader[key] = out[key]
            if not OmegaConf.is_missing(reader, key):
                out[key] = OmegaConf.to_container(reader, throw_on_missing=False)[key]  # type: ignore[index, call-overload]
        except OmegaConfBaseException:  # told by validate
            continue
    return out


def validate(settings: Mapping[str, Any]) -> list[str]:
    """Return every problem of a configuration (plain Python), in the order of the groups.

    Empty: it can be built.
    """
    top = {
        key: value for key, value in settings.items() if key not in (*GROUPS, *OVERLAYS, "options")
    }
    problems = _check("", Root, top)
    # the groups without a problem of their own: rules across groups read checked values
    sound = {"": not problems}
    for group in GROUPS:
        found = _check_group(group, settings.get(group))
        node = settings.get(group)
        # of a user's own class nothing is known
        ours = isinstance(node, Mapping) and str(node.get("_target_")) in SCHEMAS
        problems, sound[group] = problems + found, ours and not found
    for groups, rule in CROSS_RULES:
        if all(sound[group] for group in groups):
            problems += rule(settings)
    return problems


def _check_group(group: str, node: Any) -> list[str]:
    if not isinstance(node, Mapping) or "_target_" not in node:
        return [f"{group}={node!r}: choose an option of conf/{group}/"]
    refused = target_problem(group, node["_target_"])
    schema = SCHEMAS.get(str(node["_target_"]))
    return [refused] if refused else _check(group, schema, node) if schema else []


def _check(group: str, schema: type, node: Mapping[str, Any]) -> list[str]:
    typed = OmegaConf.structured(schema)
    rules = {f.name: f.metadata.get("rule") for f in fields(schema)}
    problems = []
    for key, value in node.items():
        if key == "_target_":
            continue
        place = f"{group}.{key}" if group else str(key)
        if key not in rules:
            known = [
                f"{group}.{name}" if group else name
                for name in (*rules, *(() if group else (*GROUPS, *OVERLAYS)))
            ]
            problems.append(f"{place}: no such setting{did_you_mean(place, known)}")
        elif value == "???":
            problems.append(f"{place}: it has no default; give it a value")
        else:
            problems += _check_value(place, typed, key, value, rules[key])
    problems += [
        f"{group}.{key}: missing" if group else f"{key}: missing"
        for key in rules
        if key not in node and key != "name"
    ]
    return problems


def _check_value(place: str, typed: Any, key: str, value: Any, rule: Any) -> list[str]:
    try:
        typed[key] = value
    except OmegaConfBaseException as error:
        expected = f"; use {rule.text}" if rule else ""
        return [f"{place}={_shown(value)}: {str(error).splitlines()[0]}{expected}"]
    converted = OmegaConf.to_container(typed)[key]  # type: ignore[index, call-overload]
    if rule and not rule.holds(converted):
        return [f"{place}={_shown(value)}: must be {rule.text}"]
    return []


def _shown(value: Any) -> str:
    """Write a value as a user would: 1 where a number became 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Runs that differ in their seed alone are one group; groups that differ in their transform alone
are a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inco.records.groups import Group, Spread, facts, gather, spread
from inco.records.runs import Run
from inco.report.stats import sign_flip_p
from inco.report.text import setting

_BASES = ("none", "Identity")  # the option, or the class in a record that names no options
MEASURES = {"last": "test/acc", "best": "test/acc_best"}


@dataclass(frozen=True)
class Gain:
    """By how much a group's accuracy is above that of its base, seed by seed, in percentage
    points.
    """

    group: Group
    base: Group
    measure: str
    by_seed: Mapping[Any, float]

    @property
    def spread(self) -> Spread:
        return spread(list(self.by_seed.values()))

    @property
    def p(self) -> float | None:
        return sign_flip_p(list(self.by_seed.values()))


def group(runs: Iterable[Run]) -> list[Group]:
    """Return groups in the order of their first runs, each with a label of what differs."""
    plain = gather(runs, _identity)
    keys = varying(plain)
    return [replace(one, label=_label(one, keys)) for one in plain]


def _identity(run: Run) -> str:
    """Return what is equal for runs of one group; one that records no settings is alone."""
    return _same(facts(run)) + ("" if run.settings else f" {run.folder}")


def varying(groups: Sequence[Group]) -> list[str]:
    """Return what differs between groups: choices, then settings that differ between groups of the
    same choice.
    """
    keys = dict.fromkeys(key for one in groups for key in one.facts)
    return [key for key in keys if _varies(key, groups)]


def common(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the choices and settings that all groups have."""
    first = groups[0].facts
    return {
        key: value
        for key, value in first.items()
        if all(key in one.facts and _same(one.facts[key]) == _same(value) for one in groups)
    }


def gains(groups: Sequence[Group]) -> list[Gain]:
    """Return the gains of each group over the base that has all the same but the transform, paired
    by seed.
    """
    is_base = [one.facts.get("transform") in _BASES for one in groups]
    rest = [_but_transform(one) for one in groups]
    bases = {key: one for key, one, base in zip(rest, groups, is_base, strict=True) if base}
    return [
        Gain(one, bases[key], name, paired(one, bases[key], measure))
        for key, one, base in zip(rest, groups, is_base, strict=True)
        if not base and key in bases
        for name, measure in MEASURES.items()
    ]


def _but_transform(one: Group) -> str:
    """Return all facts but the transform's, to find the base by."""
    return _same({key: v for key, v in one.facts.items() if key.split(".")[0] != "transform"})


def paired(one: Group, base: Group, key: str) -> dict[Any, float]:
    """Return the differences of a number of the summary, by seed."""
    ours, theirs = (
        {run.seed: run.summary[key] for run in side.counted if run.summary.get(key) is not None}
        for side in (one, base)
    )
    return {s: ours[s] - theirs[s] for s in ours if s is not None and s in theirs}


def _varies(key: str, groups: Sequence[Group]) -> bool:
    owner = key.split(".")[0] if "." in key else None
    seen: dict[str, set[str]] = {}
    for one in groups:
        chosen = _same(one.facts.get(owner)) if owner else ""
        seen.setdefault(chosen, set()).add(_same(one.facts[key]) if key in one.facts else "absent")
    return any(len(values) > 1 for values in seen.values())


def _label(one: Group, keys: Sequence[str]) -> str:
    shorts = [key.rpartition(".")[2] for key in keys]
    words = []
    for key, short in zip(keys, shorts, strict=True):
        if key in one.facts:
            value = setting(one.facts[key])
            name = short if shorts.count(short) == 1 else key
            is_choice = "." not in key and isinstance(one.facts[key], str)
            words.append(value if is_choice else f"{name}={value}")
    return ", ".join(words) or one.runs[0].about.get("group") or one.runs[0].name


def _same(value: Any) -> str:
    """Return what is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)

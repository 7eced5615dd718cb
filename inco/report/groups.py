"""Runs that differ in their seed alone are a group; groups that differ in transform are a pair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inco.records.groups import Group, Spread, facts, gather, spread
from inco.records.runs import Run
from inco.report.text import setting

_BASES = ("none", "Identity")  # the option, or the class in a record that names no options
MOST_EXACT = 20  # pairs up to which every one of the 2^n flips is counted
LEVEL = 0.05
MEASURES = {"last": "test/acc", "best": "test/acc_best"}


@dataclass(frozen=True)
class Gain:
    """By how much a group's accuracy is above that of its base, in percentage points, by seed."""

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
    """Return labelled groups; a run that records no settings is a group of its own."""
    plain = gather(runs, lambda run: _same(facts(run)) + ("" if run.settings else f" {run.folder}"))
    keys = varying(plain)
    return [replace(one, label=_label(one, keys)) for one in plain]


def varying(groups: Sequence[Group]) -> list[str]:
    """Return the choices that differ, and the settings that differ among groups of one choice."""
    keys = dict.fromkeys(key for one in groups for key in one.facts)
    return [key for key in keys if _varies(key, groups)]


def common(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the choices and settings that all groups have."""
    return {
        key: value
        for key, value in groups[0].facts.items()
        if all(key in one.facts and _same(one.facts[key]) == _same(value) for one in groups)
    }


def gains(groups: Sequence[Group]) -> list[Gain]:
    """Return the gains of each group over the base that has all the same but the transform."""
    bases: dict[str, Group] = {}
    others = []
    for one in groups:
        rest = _same({k: v for k, v in one.facts.items() if k.split(".")[0] != "transform"})
        if one.facts.get("transform") in _BASES:
            bases[rest] = one
        else:
            others.append((rest, one))
    return [
        Gain(one, bases[rest], name, paired(one, bases[rest], key))
        for rest, one in others
        if rest in bases
        for name, key in MEASURES.items()
    ]


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


def sign_flip_p(gains: Sequence[float]) -> float | None:
    """Return the exact two-sided p-value of paired differences; None without pairs or above 20.

    Fisher, The Design of Experiments, 1935, Section 21: how often random signs give as large a sum.
    """
    if not gains or len(gains) > MOST_EXACT:
        return None
    sums = np.zeros(1)
    for gain in gains:
        sums = np.concatenate([sums + gain, sums - gain])
    seen = abs(sum(gains))
    rounding = 1e-9 * sum(map(abs, gains))
    return float(np.mean(np.abs(sums) >= seen - rounding))


def note(n: int) -> str:
    """Say what a p-value of n pairs can show."""
    if n == 0:
        return "no seed in both groups"
    if n > MOST_EXACT:
        return f"n = {n}: p is computed for {MOST_EXACT} pairs at most"
    least = 2.0 ** (1 - n)
    if least > LEVEL:
        return f"n = {n}: the smallest possible p is {least:g}; this cannot show significance"
    return f"n = {n}: the smallest possible p is {least:.2g}"

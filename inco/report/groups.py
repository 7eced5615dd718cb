"""Runs that differ in their seed alone are one group; groups that differ in their transform alone
are a pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inco.records.names import flat, natural
from inco.records.runs import Run
from inco.report.facts import planned, status
from inco.report.stats import Spread, sign_flip_p, spread
from inco.report.text import setting

_FREE = ("tracker", "engine", "experiment", "debug")  # no result depends on them
_BASES = ("none", "Identity")  # the option, or the class in a record that names no options
MEASURES = {"last": "test/acc", "best": "test/acc_best"}


def seed(run: Run) -> Any:
    """Return a run's seed; None where its record does not say."""
    return run.about.get("seed", run.summary.get("seed"))


def choices(run: Run) -> dict[str, str]:
    """Return the options that were chosen; of a run that does not say, the classes of its
    settings.
    """
    told = run.about.get("choices")
    if told:
        return {group: option for group, option in told.items() if group not in _FREE}
    return _recorded(run).get("options", {})


def settings(run: Run) -> Mapping[str, Any]:
    """Return the settings that a result depends on, the seed left out."""
    return {key: value for key, value in _recorded(run).items() if key not in ("seed", "options")}


def _recorded(run: Run) -> Mapping[str, Any]:
    return run.about.get("settings") or run.summary.get("settings") or {}


def facts(run: Run) -> dict[str, Any]:
    """Return what makes a run's group: choices, the number of rounds, and settings with dotted
    keys.
    """
    return {**choices(run), "rounds": planned(run), **flat(settings(run))}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, by seed.

    `label` says how it differs from the other groups.
    """

    facts: Mapping[str, Any]
    runs: Sequence[Run]
    label: str = ""

    @cached_property
    def counted(self) -> list[Run]:
        """The runs that means are of: finished ones, one a seed."""
        found: dict[Any, Run] = {}
        for run in self.runs:
            if run.status == "finished":
                found.setdefault(str(run.folder) if seed(run) is None else seed(run), run)
        return list(found.values())

    @property
    def experiment(self) -> str | None:
        """The experiment of the paper that its runs are of (table2_resnet): the first that one
        names; None of other runs.
        """
        named = (str(run.about.get("experiment") or "") for run in self.runs)
        return next((name for name in named if name.startswith(("table", "figure"))), None)

    @property
    def scale(self) -> str:
        """At which scale its experiment is: paper, or mini."""
        return str(
            next((run.about["scale"] for run in self.runs if run.about.get("scale")), "paper")
        )

    @property
    def left_out(self) -> list[str]:
        """Say which runs are not counted, and why."""
        others = [run for run in self.runs if run not in self.counted]
        return [
            f"seed {setting(seed(run))} {'repeated' if run.status == 'finished' else status(run)}"
            for run in others
        ]

    def spread(self, key: str) -> Spread:
        """Return mean and standard deviation of a number of the summary."""
        return spread([run.summary.get(key) for run in self.counted])

    def size(self, key: str) -> float | None:
        """Return the mean of a number that is known of a run from its start on."""
        return spread([{**run.summary, **run.about}.get(key) for run in self.runs]).mean

    def is_base(self) -> bool:
        """Say whether the update is added as it is."""
        return self.facts.get("transform") in _BASES

    def but_transform(self) -> str:
        """Return all but the transform, to find the pair by."""
        return _same(
            {key: value for key, value in self.facts.items() if key.split(".")[0] != "transform"}
        )


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
    found: dict[str, list[Run]] = {}
    for run in runs:
        # nothing is known of it that would make it another's like
        alone = f" {run.folder}" if not settings(run) else ""
        found.setdefault(_same(facts(run)) + alone, []).append(run)
    plain = [
        Group(facts(members[0]), sorted(members, key=lambda run: natural(str(seed(run)))))
        for members in found.values()
    ]
    keys = varying(plain)
    return [Group(one.facts, one.runs, _label(one, keys)) for one in plain]


def varying(groups: Sequence[Group]) -> list[str]:
    """Return what differs between groups: choices, then settings that differ between groups of the
    same choice.
    """
    return [
        key
        for key in dict.fromkeys(key for one in groups for key in one.facts)
        if _varies(key, groups)
    ]


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
    bases = {one.but_transform(): one for one in groups if one.is_base()}
    pairs = [
        (one, bases[one.but_transform()])
        for one in groups
        if not one.is_base() and one.but_transform() in bases
    ]
    return [
        Gain(one, base, name, paired(one, base, key))
        for one, base in pairs
        for name, key in MEASURES.items()
    ]


def paired(one: Group, base: Group, key: str) -> dict[Any, float]:
    """Return the differences of a number of the summary, by seed."""
    ours, theirs = (
        {seed(run): run.summary[key] for run in side.counted if run.summary.get(key) is not None}
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
            is_choice = "." not in key and isinstance(one.facts[key], str)
            words.append(
                value if is_choice else f"{short if shorts.count(short) == 1 else key}={value}"
            )
    return ", ".join(words) or one.runs[0].about.get("group") or one.runs[0].name


def _same(value: Any) -> str:
    """Return what is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)

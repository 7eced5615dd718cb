"""Which runs to keep: `algorithm=fedprox`, `partition.alpha=0.5`, `seed=0`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from inco.errors import ConfigError
from inco.records.groups import facts
from inco.records.runs import Run
from inco.report.text import plural, setting


def kept(runs: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    """Return the runs that have the value of each filter `key=value`; values of one key are
    alternatives.

    Raises ConfigError with all that is wrong: no `=`, a key that no run has, or nothing left and
    which values there are.
    """
    known = [(run, {**facts(run), "seed": run.seed, "status": run.outcome}) for run in runs]
    wanted: dict[str, list[str]] = {}
    problems = []
    for one in filters:
        key, equals, value = one.partition("=")
        if not equals:
            problems.append(
                f"--filter {one}: no =; write KEY=VALUE, as algorithm=fedprox (paths stand before"
                " --filter)"
            )
        elif not any(key in told for _, told in known):
            problems.append(
                f"--filter {one}: no run has a choice or setting {key}{_like(key, known)}"
            )
        wanted.setdefault(key, []).append(value)
    if problems:
        raise ConfigError(problems)
    left = known
    for key, values in wanted.items():
        before = [told[key] for _, told in left if key in told]
        count = len(left)
        left = [
            (run, told)
            for run, told in left
            if key in told and any(_is(told[key], value) for value in values)
        ]
        if not left:
            there = sorted(Counter(map(setting, before)).items())
            have = ", ".join(f"{value} ({plural(n, 'run')})" for value, n in there)
            raise ConfigError(
                f"--filter {key}={' or '.join(values)}: no run is left of {count}; there are"
                f" {have or 'none that are left has it'}"
            )
    return [run for run, _ in left]


def _is(value: Any, typed: str) -> bool:
    """Say whether a setting has the value that was typed: 0.50 is 0.5, True is true, null is
    none.
    """
    told = setting(value)
    same = told == typed or told.lower() == typed.replace(" ", "").lower()
    if same or (value is None and typed == "null"):
        return True
    try:
        return not isinstance(value, bool) and float(told) == float(typed)
    except ValueError:
        return False


def _like(key: str, known: Sequence[tuple[Run, Mapping[str, Any]]]) -> str:
    keys = sorted({name for _, told in known for name in told})
    close = get_close_matches(key, keys, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(keys)}"

"""Which runs to keep: `algorithm=fedprox`, `partition.alpha=0.5`, `seed=0`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from inco.errors import ConfigError
from inco.records.groups import facts
from inco.records.runs import Run
from inco.report.text import plural, setting


def kept(runs: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    """Return the runs that match each filter `key=value`; values of one key are alternatives.

    Raises ConfigError for a filter without `=`, a key that no run has, or where nothing is left.
    """
    left = [(run, {**facts(run), "seed": run.seed, "status": run.outcome}) for run in runs]
    for key, values in _wanted(filters, {key for _, known in left for key in known}).items():
        found = [(run, known, known[key]) for run, known in left if key in known]
        count = len(left)
        left = [(run, known) for run, known, own in found if any(_is(own, v) for v in values)]
        if not left:
            there = sorted(Counter(setting(own) for _, _, own in found).items())
            have = ", ".join(f"{value} ({plural(n, 'run')})" for value, n in there)
            raise ConfigError(
                f"--filter {key}={' or '.join(values)}: no run is left of {count}; there are"
                f" {have or 'none that are left has it'}"
            )
    return [run for run, _ in left]


def _wanted(filters: Sequence[str], keys: set[str]) -> dict[str, list[str]]:
    """Return the wanted values by key."""
    wanted: dict[str, list[str]] = {}
    problems = []
    for one in filters:
        key, equals, value = one.partition("=")
        if not equals:
            problems.append(
                f"--filter {one}: no =; write KEY=VALUE, as algorithm=fedprox (paths stand before"
                " --filter)"
            )
        elif key not in keys:
            close = get_close_matches(key, sorted(keys), 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(keys))}"
            problems.append(f"--filter {one}: no run has a choice or setting {key}; {hint}")
        wanted.setdefault(key, []).append(value)
    if problems:
        raise ConfigError(problems)
    return wanted


def _is(value: Any, typed: str) -> bool:
    """Compare a setting with what was typed: 0.50 is 0.5, True is true, null is none."""
    own = setting(value)
    if own == typed or own.lower() == typed.replace(" ", "").lower():
        return True
    if value is None or isinstance(value, bool):
        return value is None and typed == "null"
    try:
        return float(own) == float(typed)
    except ValueError:
        return False

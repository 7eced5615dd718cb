"""What a value must satisfy, and how to say it. Fields of schemas carry these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy, and how to say it."""

    holds: Callable[[Any], bool]
    text: str


def ruled(rule: Rule, default: Any = MISSING) -> Any:
    """Return a dataclass field that carries a rule."""
    return field(default=default, metadata={"rule": rule})


def _number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


def at_least(low: float) -> Rule:
    return Rule(lambda v: _number(v) and v >= low, f"at least {low}")


def above(low: float) -> Rule:
    return Rule(lambda v: _number(v) and v > low, f"above {low}")


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Rule:
    left = "(" if open_low else "["
    right = ")" if open_high else "]"

    def holds(v: Any) -> bool:
        return (
            _number(v)
            and (low < v if open_low else low <= v)
            and (v < high if open_high else v <= high)
        )

    return Rule(holds, f"in {left}{low}, {high}{right}")


def one_of(*options: str) -> Rule:
    return Rule(lambda v: v in options, "one of " + ", ".join(options))


def many(each: Rule, most: int | None = None) -> Rule:
    """A list whose entries all satisfy a rule."""
    count = "a list" if most is None else f"a list of {most}"
    return Rule(
        lambda v: len(v) > 0 and most in (None, len(v)) and all(each.holds(x) for x in v),
        f"{count}, each {each.text}",
    )


def null_or(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.holds(v), f"null, or {rule.text}")


def _count(v: Any) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and v >= 1


COUNT = Rule(_count, "a whole number of at least 1")
WEIGHTS = Rule(
    lambda v: isinstance(v, bool) or (isinstance(v, str) and v != ""),
    "true, false or the path of a file",
)
LEVELS = Rule(
    lambda v: (
        len(v) > 0
        and all(
            _count(x) or (isinstance(x, list) and len(x) > 0 and all(_count(y) for y in x))
            for x in v
        )
    ),
    "a list with one entry a level, each a number of blocks or a list of them",
)
RATES_AND_EXITS = Rule(
    lambda v: (
        len(v) > 0
        and all(
            isinstance(x, list) and len(x) == 2 and _number(x[0]) and 0 < x[0] <= 1 and _count(x[1])
            for x in v
        )
    ),
    "a list of [rate, exits], rates above 0 and at most 1, exits a whole number of at least 1",
)
PAIRS = Rule(
    lambda v: (
        v in ("auto", "official", "paper")
        or (isinstance(v, list) and all(isinstance(x, list) and len(x) == 2 for x in v))
    ),
    "auto, official, paper or a list of [target, reference]",
)
LAYERS = Rule(
    lambda v: (
        v == "auto" or (isinstance(v, list) and len(v) > 0 and all(isinstance(x, str) for x in v))
    ),
    "auto or a list of layers as [layer3.0.conv1,layer3.1.conv1]",
)
CHOSEN_PAIRS = Rule(
    lambda v: v != "auto" and PAIRS.holds(v), "official, paper or a list of [target, reference]"
)
NULL_OR_BOUND = Rule(
    lambda v: v is None or (isinstance(v, float) and v >= 0), "null, or at least 0 (inf: no bound)"
)
NULL_OR_CLIP = Rule(
    lambda v: v is None or (isinstance(v, float) and v > 0), "null, or above 0 (inf: no clip)"
)
INTEGER_OR_AUTO = Rule(lambda v: v == "auto" or _count(v), "auto or a whole number of at least 1")

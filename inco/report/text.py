"""Numbers and settings as a reader wants to see them."""

from __future__ import annotations

import json
import math
from typing import Any

MISSING = "\N{EN DASH}"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def sig4(value: float | None) -> float | int | None:
    """Round to 4 significant digits; None for what is missing or not finite.

    Whole numbers lose their point, so JSON is shorter.
    """
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}%"


def amount(value: float | None, unit: str = "") -> str:
    """Write a large number short: 11.2M, and with a unit 11.2 MB."""
    if value is None:
        return MISSING
    space = " " if unit else ""
    for size, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * size:
            digits = f"{value / size:#.3g}".rstrip(".")
            return f"{digits}{space}{prefix}{unit}"
    return f"{value:.3g}{space}{unit}"


def clock(seconds: float | None) -> str:
    """Write a time span: 7.3 s, 12:05 min, 3:04 h, 2 d 4 h."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 86400:
        return f"{whole // 3600}:{whole // 60 % 60:02d} h"
    return f"{whole // 86400} d {whole // 3600 % 24} h"


def setting(value: Any) -> str:
    """Write a value as a command line does: none, true, 0.5, [1,2]."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), default=str)


def plural(count: int, one: str, many: str = "") -> str:
    """Write a count with its noun: 1 run, 2 runs."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

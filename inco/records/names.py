"""Names of settings, and the order of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        below = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        found |= {f"{prefix}{key}": value} if below is None else below
    return found


def natural(name: str) -> list[tuple[int, str]]:
    """Return what sorts names with numbers as people do: layer2 before layer10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]

"""Ranks that torchrun has started: telling that they are, and where they meet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.config.naming import digest

if TYPE_CHECKING:
    from inco.engine import Meeting


def under_torchrun() -> bool:
    """Tell whether torchrun (or anything that speaks its environment) has started the ranks already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def meeting(settings: Mapping[str, Any], folder: Path) -> Meeting:
    """Return where torchrun's ranks meet for this job, the same on each."""
    from inco.engine import Meeting

    return Meeting(f"{folder}/{digest(settings)}/{settings['seed']}")

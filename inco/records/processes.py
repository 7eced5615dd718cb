"""Whether a process lives, as far as this machine can tell."""

import os
from pathlib import Path


def alive(pid: int, born: int | None) -> bool:
    """Say whether the process lives.

    One that only waits to be reaped does not, nor does a number that a later process has got again.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = born_at(pid)
    return (born is None or now is None or born == now) and _stat(pid)[:1] != ["Z"]


def born_at(pid: int) -> int | None:
    """Give the start time of a process in clock ticks since boot; None where /proc cannot tell."""
    words = _stat(pid)
    return int(words[19]) if len(words) > 19 else None


def _stat(pid: int) -> list[str]:
    """Give what /proc says of a process after its name, its state first; nothing where there is no
    /proc.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

"""Keep the memory that a step frees for the next step: activations are as large every time, and
pages from the system cost more.
"""

from __future__ import annotations

import ctypes
import sys

# of mallopt(3)
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST = 32 << 20  # bytes; the most that glibc takes for a block of the heap
_KEPT = 512 << 20  # bytes of freed heap that are not given back


def keep_freed_memory() -> bool:
    """Raise the C library's thresholds where it is glibc; return whether it has.

    Results do not depend on it.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))

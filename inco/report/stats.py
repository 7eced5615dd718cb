"""Means over seeds, and what a paired comparison can and cannot say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_EXACT = 20  # pairs up to which every one of the 2^n flips is counted
LEVEL = 0.05


def sign_flip_p(gains: Sequence[float]) -> float | None:
    """Return the exact two-sided p-value of paired differences: how often random signs give a sum
    at least as far from 0.

    None without pairs, and for more than 20. Fisher, The Design of Experiments, 1935, Section 21.
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

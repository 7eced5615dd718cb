"""Similarity of two matrices, rank correlation, densities of histograms."""

from __future__ import annotations

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear CKA of [m, a] and [m, b]: 0 to 1, NaN where one is the same in all rows.

    Columns are centred, and HSIC is the biased estimator.
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019.
    """
    a, b = (np.asarray(z, dtype=np.float64) for z in (x, y))
    a, b = (z - z.mean(0) for z in (a, b))
    if len(a) <= max(a.shape[1], b.shape[1]):  # the smaller products: of rows, or of columns
        own_a = a @ a.T
        own_b = b @ b.T
        together = float((own_a * own_b).sum())
    else:
        own_a = a.T @ a
        own_b = b.T @ b
        together = float(np.square(a.T @ b).sum())
    scale = float(np.linalg.norm(own_a) * np.linalg.norm(own_b))
    return together / scale if scale > 0 else float("nan")


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return the cosine of two arrays of one shape, taken as vectors; NaN where one is zero."""
    a, b = (np.asarray(z, dtype=np.float64).ravel() for z in (x, y))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else float("nan")


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation; NaN for fewer than three points or a constant."""
    if len(x) < 3:
        return float("nan")
    return cosine(*(_ranks(z) - (len(z) - 1) / 2 for z in (x, y)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[place])


def density(edges: np.ndarray, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return a histogram's density between each two points `at`: bins are spread evenly."""
    return np.diff(np.interp(at, edges, _cumulative(counts))) / np.diff(at)


def coarse(edges: np.ndarray, wide: float, parts: int = 40) -> np.ndarray:
    """Return edges symmetric around zero, to `wide` or just beyond, 2 * wide / parts apart or more.

    Bins equally wide in log |x| are so narrow around zero that chance decides what falls in each.
    """
    kept = [-wide / parts]  # so that the bin around zero is as wide as the least
    for edge in edges[edges > 0]:
        if edge >= kept[-1] + 2 * wide / parts and kept[-1] < wide:
            kept.append(float(edge))
    return np.array([*(-x for x in reversed(kept[1:])), *kept[1:]])


def reach(edges: np.ndarray, counts: np.ndarray, mass: float = 0.98) -> float:
    """Return the x so that the share `mass` of a histogram, or a little more, lies in [-x, x]."""
    cumulative = _cumulative(counts)
    inner = np.flatnonzero(np.diff(cumulative) > 0)
    low = np.searchsorted(cumulative, (1 - mass) / 2, "right") - 1
    high = np.searchsorted(cumulative, (1 + mass) / 2, "left")
    ends = edges[[max(low, inner[0]), min(high, inner[-1] + 1)]]
    return float(np.abs(ends).max())


def _cumulative(counts: np.ndarray) -> np.ndarray:
    summed = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    return summed / summed[-1]

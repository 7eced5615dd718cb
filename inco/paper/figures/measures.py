"""Numbers that figures state: similarity of two matrices, rank correlation, densities of
histograms. NumPy alone.
"""

from __future__ import annotations

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear CKA of two matrices with as many rows, [m, a] and [m, b]: 0 to 1, NaN where
    one is the same in all rows.

    Columns are centred, and HSIC is the biased estimator.
    Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019.
    """
    a, b = (np.asarray(z, dtype=np.float64) for z in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
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
    """Return the cosine of two arrays of one shape, taken as vectors: -1 to 1, NaN where one is
    zero.
    """
    a, b = (np.asarray(z, dtype=np.float64).ravel() for z in (x, y))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else float("nan")


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation, equal values sharing their mean rank; NaN for fewer than
    three points or a constant.
    """
    if len(x) < 3:
        return float("nan")
    a, b = (_ranks(z) - (len(z) - 1) / 2 for z in (x, y))
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts + 1) / 2)[place])


def density(edges: np.ndarray, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return a histogram's density between each two points `at`, [len(at) - 1]; in each bin the
    counts are spread evenly.

    With `at` = `edges` it is count / (total * width of the bin).
    """
    return np.diff(np.interp(at, edges, _cumulative(counts))) / np.diff(at)


def coarse(edges: np.ndarray, wide: float, parts: int = 40) -> np.ndarray:
    """Return edges of a histogram symmetric around zero, out to `wide` or just beyond, none closer
    than 2 * wide / parts.

    Bins that are equally wide in log |x| are so narrow around zero that chance decides what falls
    in each.
    """
    # so that the bin around zero is as wide as the least
    own = edges[edges > 0]
    kept = [-wide / parts]
    for edge in own:
        if edge >= kept[-1] + 2 * wide / parts and kept[-1] < wide:
            kept.append(float(edge))
    return np.array([*(-x for x in reversed(kept[1:])), *kept[1:]])


def reach(edges: np.ndarray, counts: np.ndarray, mass: float = 0.98) -> float:
    """Return the x so that the share `mass` of a histogram, or a little more, lies in [-x, x]."""
    cumulative = _cumulative(counts)
    inner = np.flatnonzero(np.diff(cumulative) > 0)
    low = np.searchsorted(cumulative, (1 - mass) / 2, "right") - 1
    high = np.searchsorted(cumulative, (1 + mass) / 2, "left")
    low, high = max(low, inner[0]), min(high, inner[-1] + 1)
    return float(max(abs(edges[low]), abs(edges[high])))


def _cumulative(counts: np.ndarray) -> np.ndarray:
    summed = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    return summed / summed[-1]

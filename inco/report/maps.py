"""Maps and histograms: who holds what, how alike models are, and how gradients are distributed,
made small enough for a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from inco.errors import DataError
from inco.records.names import natural
from inco.records.runs import Run
from inco.report.text import sig4

MOST_CLIENTS = MOST_CLASSES = 100
MOST_MODELS = 20
MOST_ROUNDS = 50
# numbers of all maps together: with more taps or models, fewer of the measured rounds are shown
CKA_CELLS = 30_000
HISTOGRAM_CELLS = 30_000
MOST_LAYERS = 24
MOST_BINS = 60  # on each side of the middle bin: six decades
MERGED = 2  # bins of a histogram that become one: 10 a decade are left


def partition(run: Run) -> dict[str, Any] | None:
    """Return how many examples of each class the clients hold, [clients][classes], sorted by
    capacity; None before round 1.
    """
    found = run.partition()
    if found is None:
        return None
    counts = found["counts"]
    levels = found["levels"]
    shown = counts[:MOST_CLIENTS, :MOST_CLASSES]
    order = np.argsort(levels[:MOST_CLIENTS], kind="stable")
    names = run.about.get("capacities") or []
    classes = run.about.get("classes") or []
    return {
        "counts": shown[order].tolist(),
        "clients": order.tolist(),
        "capacities": [_named(names, int(level)) for level in levels[order]],
        "classes": [_named(classes, k, "") for k in range(shown.shape[1])],
        "totals": counts[:MOST_CLIENTS].sum(1)[order].tolist(),
        "of": int(found["clients"]),
        "classes_of": counts.shape[1],
    }


def _named(names: Sequence[str], k: int, prefix: str = "level ") -> str:
    return str(names[k]) if k < len(names) else f"{prefix}{k}"


def cka(run: Run) -> dict[str, Any] | None:
    """Return the similarities of models by tap and measured round; None where none has been
    measured.

    A matrix is symmetric: its upper triangle is kept, row by row, in thousandths, null where there
    is no number.
    """
    measured = run.arrays.rounds("cka")
    if not measured:
        return None
    last = _cka_of(run.folder, measured[-1])
    size = len(last["names"]) * (len(last["names"]) + 1) // 2 * max(1, len(last["cka"]))
    shown = some(measured, min(MOST_ROUNDS, max(2, CKA_CELLS // max(1, size))))
    return {
        "taps": list(last["cka"]),
        "rounds": [_cka_of(run.folder, k) for k in shown],
        "measured": len(measured),
        "models": last["of"],
    }


def _cka_of(folder: Path, round: int) -> dict[str, Any]:
    path = folder / "cka" / f"round_{round:05d}.npz"
    return _read_cka(str(path), round, path.stat().st_mtime_ns)


# a report is written every round while a run goes on, and what was measured does not change
@lru_cache(maxsize=256)
def _read_cka(path: str, round: int, _stamp: int) -> dict[str, Any]:
    with _opened(path) as file:
        order = np.argsort(file["level"][:MOST_MODELS], kind="stable")
        upper = np.triu_indices(len(order))
        matrices = {
            key.removeprefix("cka/"): file[key][np.ix_(order, order)][upper]
            for key in file.files
            if key.startswith("cka/")
        }
        return {
            "round": round,
            "names": [str(name) for name in file["name"][order]],
            "clients": file["client"][order].tolist(),
            "cka": {tap: _thousandths(values) for tap, values in matrices.items()},
            "of": len(file["level"]),
        }


def _thousandths(values: np.ndarray) -> list[int | None]:
    return [int(np.rint(1000 * v)) if np.isfinite(v) else None for v in values]


def histograms(run: Run) -> dict[str, Any] | None:
    """Return how the entries of clients' deltas and of the server's update are distributed; None
    where that was not measured.

    Bins are equally spaced in log |x|; `edges` are |x|, the same on both sides of one bin around 0.
    A histogram is a list of shares in ten thousandths, from the most negative bin on. A layer that
    nobody has sent in a round has none there.
    """
    measured = run.arrays.rounds("gradients")
    if not measured:
        return None
    last = _gradients_of(run.folder, measured[-1])
    at_once = min(len(last["counts"]), 2 * MOST_LAYERS) * MOST_BINS
    shown = some(measured, min(MOST_ROUNDS, max(2, HISTOGRAM_CELLS // max(1, at_once))))
    read = {k: _gradients_of(run.folder, k) for k in shown}
    each = [part["counts"] for part in read.values()]
    layers = sorted({key.split("/", 1)[1] for counts in each for key in counts}, key=natural)
    places = np.linspace(0, len(layers) - 1, min(MOST_LAYERS, len(layers))).round()
    shown_layers = [layers[int(k)] for k in places]
    sizes = last["sizes"]
    low, high = _range([counts for part in each for counts in part.values()])
    return {
        "edges": [sig4(float(size)) for size in sizes[low : high + 1]],
        "layers": shown_layers,
        "rounds": [
            {"round": k, **_shares(read[k]["counts"], shown_layers, low, high)}
            for k in sorted(read)
        ],
        "measured": len(measured),
        "of": len(layers),
    }


def _gradients_of(folder: Path, round: int) -> dict[str, Any]:
    path = folder / "gradients" / f"round_{round:05d}.npz"
    return _read_gradients(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=128)
def _read_gradients(path: str, _stamp: int) -> dict[str, Any]:
    """Read what is drawn, bins merged, and not `values/`, which is far larger.

    `sizes`: |x| at the edges from the middle outwards, [bins + 1]; `counts`: histograms [2 bins +
    1], the bin around 0 in the middle.
    """
    with _opened(path) as file:
        edges = file["edges"]
        drawn = [name for name in file.files if name.split("/", 1)[0] in ("clients", "update")]
        return {
            "sizes": edges[len(edges) // 2 :: MERGED],
            "counts": {name: _merged(file[name]) for name in drawn},
        }


def _merged(counts: np.ndarray) -> np.ndarray:
    """Join each `MERGED` neighbours on both sides of the middle bin."""
    middle = len(counts) // 2
    sides = (counts[:middle], counts[middle + 1 :])
    left, right = (side.reshape(-1, MERGED).sum(1) for side in sides)
    return np.concatenate([left, counts[middle : middle + 1], right])


def _range(histograms: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return which bins on each side of the middle, [low, high), hold nearly all of every
    histogram; the middle takes what is smaller.
    """
    lows = []
    highs = [1]
    for counts in histograms:
        middle = len(counts) // 2
        side = counts[middle + 1 :] + counts[:middle][::-1]
        if side.sum():
            below = np.cumsum(side) / side.sum()
            lows.append(int(np.searchsorted(below, 0.02)))
            highs.append(int(np.searchsorted(below, 0.9999)) + 1)
    high = min(max(highs), len(histograms[0]) // 2) if histograms else 1
    return max(min(lows, default=0), high - MOST_BINS, 0), high


def _shares(
    named: Mapping[str, np.ndarray], layers: Sequence[str], low: int, high: int
) -> dict[str, list[list[int] | None]]:
    """Return one round's histograms of clients and update, a list a layer, null where the layer has
    none.
    """
    return {
        kind: [_share(named.get(f"{kind}/{layer}"), low, high) for layer in layers]
        for kind in ("clients", "update")
    }


def _share(counts: np.ndarray | None, low: int, high: int) -> list[int] | None:
    if counts is None or not counts.sum():
        return None
    middle = len(counts) // 2
    left = counts[:middle][::-1]
    right = counts[middle + 1 :]
    inner = counts[middle] + left[:low].sum() + right[:low].sum()
    kept = np.concatenate([left[low:high][::-1], [inner], right[low:high]])
    return [int(v) for v in np.rint(10_000 * kept / counts.sum())]


def some(items: Sequence[Any], most: int) -> list[Any]:
    """Return every n-th item and the last, at most `most`; which ones changes seldom while the list
    grows.
    """
    step = ceil((len(items) - 1) / max(1, most - 1)) if len(items) > most else 1
    return [item for k, item in enumerate(items) if k % step == 0 or k == len(items) - 1]


def _opened(path: str) -> Any:
    """Open a .npz file whose arrays are read one by one."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, BadZipFile) as error:
        raise DataError(
            f"{path}: not an array file ({error}); restore it from a copy, or delete it to leave"
            " this round out"
        ) from error

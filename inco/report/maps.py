"""Maps and histograms of data, similarities and gradients, made small enough for a page."""

from __future__ import annotations

from collections.abc import Sequence
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
MERGED = 2  # bins of a histogram that become one: 10 per decade are left


def partition(run: Run) -> dict[str, Any] | None:
    """Return examples per class, [clients][classes], sorted by capacity; None before round 1."""
    found = run.partition()
    if found is None:
        return None
    counts = found["counts"]
    levels = found["levels"]
    shown = counts[:MOST_CLIENTS, :MOST_CLASSES]
    order = np.argsort(levels[:MOST_CLIENTS], kind="stable")
    names = dict(enumerate(run.about.get("capacities") or []))
    classes = dict(enumerate(run.about.get("classes") or []))
    return {
        "counts": shown[order].tolist(),
        "clients": order.tolist(),
        "capacities": [str(names.get(k, f"level {k}")) for k in levels[order].tolist()],
        "classes": [str(classes.get(k, k)) for k in range(shown.shape[1])],
        "totals": counts[:MOST_CLIENTS].sum(1)[order].tolist(),
        "of": int(found["clients"]),
        "classes_of": counts.shape[1],
    }


def cka(run: Run) -> dict[str, Any] | None:
    """Return the similarities of models by tap and measured round; None where there are none.

    A matrix is symmetric: its upper triangle is kept, row by row, in thousandths, null where there
    is no number.
    """
    measured = run.arrays.rounds("cka")
    if not measured:
        return None
    last = _cka(*_file(run, "cka", measured[-1]))
    size = len(last["names"]) * (len(last["names"]) + 1) // 2 * max(1, len(last["cka"]))
    shown = some(measured, min(MOST_ROUNDS, max(2, CKA_CELLS // max(1, size))))
    return {
        "taps": list(last["cka"]),
        "rounds": [{"round": k, **_cka(*_file(run, "cka", k))} for k in shown],
        "measured": len(measured),
        "models": last["of"],
    }


def _file(run: Run, kind: str, round: int) -> tuple[Path, int]:
    """Return a file of arrays, and when it was written."""
    path = run.folder / kind / f"round_{round:05d}.npz"
    return path, path.stat().st_mtime_ns


# a report is written every round while a run goes on, and what was measured does not change
@lru_cache(maxsize=256)
def _cka(path: Path, _stamp: int) -> dict[str, Any]:
    with _opened(path) as file:
        order = np.argsort(file["level"][:MOST_MODELS], kind="stable")
        upper = np.triu_indices(len(order))
        matrices = {
            key.removeprefix("cka/"): file[key][np.ix_(order, order)][upper]
            for key in file.files
            if key.startswith("cka/")
        }
        return {
            "names": [str(name) for name in file["name"][order]],
            "clients": file["client"][order].tolist(),
            "cka": {tap: _thousandths(values) for tap, values in matrices.items()},
            "of": len(file["level"]),
        }


def _thousandths(values: np.ndarray) -> list[int | None]:
    return [int(np.rint(1000 * v)) if np.isfinite(v) else None for v in values]


def histograms(run: Run) -> dict[str, Any] | None:
    """Return the distributions of clients' deltas and of the server's update; None for none.

    Bins are equally spaced in log |x|; `edges` are |x|, the same on both sides of one bin around 0.
    A histogram is a list of shares in ten thousandths, from the most negative bin on; null where
    nobody has sent a layer.
    """
    measured = run.arrays.rounds("gradients")
    if not measured:
        return None
    sizes, last = _gradients(*_file(run, "gradients", measured[-1]))
    at_once = min(len(last), 2 * MOST_LAYERS) * MOST_BINS
    chosen = some(measured, min(MOST_ROUNDS, max(2, HISTOGRAM_CELLS // max(1, at_once))))
    counts = {k: _gradients(*_file(run, "gradients", k))[1] for k in chosen}
    layers = sorted(
        {key.split("/", 1)[1] for named in counts.values() for key in named}, key=natural
    )
    places = np.linspace(0, len(layers) - 1, min(MOST_LAYERS, len(layers))).round()
    shown = [layers[int(k)] for k in places]
    low, high = _range([histogram for named in counts.values() for histogram in named.values()])
    rounds = [
        {"round": k}
        | {
            kind: [_shares(named.get(f"{kind}/{layer}"), low, high) for layer in shown]
            for kind in ("clients", "update")
        }
        for k, named in counts.items()
    ]
    return {
        "edges": [sig4(float(size)) for size in sizes[low : high + 1]],
        "layers": shown,
        "rounds": rounds,
        "measured": len(measured),
        "of": len(layers),
    }


@lru_cache(maxsize=128)
def _gradients(path: Path, _stamp: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read edges [bins + 1] from the middle outwards, and histograms [2 bins + 1], bins merged."""
    with _opened(path) as file:
        edges = file["edges"]
        drawn = [name for name in file.files if name.split("/", 1)[0] in ("clients", "update")]
        return edges[len(edges) // 2 :: MERGED], {name: _merged(file[name]) for name in drawn}


def _merged(counts: np.ndarray) -> np.ndarray:
    """Join each `MERGED` neighbours on both sides of the middle bin."""
    left, inner, right = _parts(counts)
    left = left.reshape(-1, MERGED).sum(1)[::-1]
    return np.concatenate([left, [inner], right.reshape(-1, MERGED).sum(1)])


def _parts(counts: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
    """Return the bins left of the middle from there outwards, the middle one, and those right."""
    middle = len(counts) // 2
    return counts[:middle][::-1], counts[middle], counts[middle + 1 :]


def _range(histograms: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return the bins [low, high) from the middle that hold nearly all of every histogram."""
    lows = []
    highs = [1]
    for counts in histograms:
        left, _, right = _parts(counts)
        side = left + right
        if side.sum():
            below = np.cumsum(side) / side.sum()
            lows.append(int(np.searchsorted(below, 0.02)))
            highs.append(int(np.searchsorted(below, 0.9999)) + 1)
    high = min(max(highs), len(histograms[0]) // 2) if histograms else 1
    return max(min(lows, default=0), high - MOST_BINS, 0), high


def _shares(counts: np.ndarray | None, low: int, high: int) -> list[int] | None:
    if counts is None or not counts.sum():
        return None
    left, inner, right = _parts(counts)
    inner = inner + left[:low].sum() + right[:low].sum()
    kept = np.concatenate([left[low:high][::-1], [inner], right[low:high]])
    return [int(v) for v in np.rint(10_000 * kept / counts.sum())]


def some(items: Sequence[Any], most: int) -> list[Any]:
    """Return every n-th item and the last, at most `most`; the choice seldom changes."""
    step = ceil((len(items) - 1) / max(1, most - 1)) if len(items) > most else 1
    return [item for k, item in enumerate(items) if k % step == 0 or k == len(items) - 1]


def _opened(path: Path) -> Any:
    """Open a .npz file whose arrays are read one by one."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, BadZipFile) as error:
        raise DataError(
            f"{path}: not an array file ({error}); restore it from a copy, or delete it to leave"
            " this round out"
        ) from error

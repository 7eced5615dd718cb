"""The pictures that a run leaves in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.records.arrays import write_npz

if TYPE_CHECKING:
    from inco.assembly import Assembly

_COLUMNS = ("round", "tap", "model", "other", "cka")
_MOST_CLIENTS = 1000  # whose examples partition.npz counts, the first of the population


def draw(run: Assembly, folder: Path, round: int) -> Iterator[tuple[str, Path]]:
    """Draw what is new after a round: its name and its file.

    Importing what draws takes half a second, so not before the first.
    """
    partition = folder / "partition.png"
    if not partition.exists():
        _draw_partition(run, partition)
        yield "partition", partition
    arrays = run.simulator.diagnostics.arrays
    if "cka" in arrays:
        from inco.run.drawings import draw_cka

        draw_cka(arrays["cka"], f"Similarity of models, round {round}", folder / "cka.png")
        yield "cka", folder / "cka.png"
    if any(name.startswith("update/") for name in arrays.get("gradients", ())):
        from inco.run.drawings import draw_gradients

        draw_gradients(arrays["gradients"], f"Round {round}", folder / "gradients.png")
        yield "gradients", folder / "gradients.png"


def _draw_partition(run: Assembly, path: Path) -> None:
    """Draw who holds what, and keep the numbers beside the picture."""
    import numpy as np

    from inco.data.picture import draw_partition

    classes = run.dataset.classes
    counts = run.partition.class_counts(run.dataset.train.labels.numpy(), len(classes))
    draw_partition(counts, classes, path)
    capacity = run.simulator.population.capacity
    shown = counts[:_MOST_CLIENTS].astype("int32")
    levels = np.array([capacity.level(client, 1) for client in range(len(shown))], dtype="int32")
    named = {"counts": shown, "levels": levels, "clients": np.array(len(counts))}
    write_npz(path.with_suffix(".npz"), named)


def tables(run: Assembly, round: int) -> Iterator[tuple[str, tuple[str, ...], list[list[Any]]]]:
    """Return what is new after a round as tables: name, columns, rows.

    Of CKA, one row a pair of models and tap.
    """
    arrays = run.simulator.diagnostics.arrays.get("cka")
    if arrays is None:
        return
    import numpy as np

    models = zip(arrays["client"], arrays["name"], strict=True)
    names = [f"{name} client {k}" if k >= 0 else str(name) for k, name in models]
    rows: list[list[Any]] = []
    for key, matrix in arrays.items():
        if key.startswith("cka/"):
            tap = key.removeprefix("cka/")
            pairs = np.argwhere(np.tril(np.isfinite(matrix), -1))
            rows += [[round, tap, names[i], names[j], float(matrix[i, j])] for i, j in pairs]
    yield "cka/pairs", _COLUMNS, rows

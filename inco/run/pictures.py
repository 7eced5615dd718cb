"""The pictures that a run leaves in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.records.arrays import write_npz

if TYPE_CHECKING:
    from inco.assembly import Assembly

PAIR = ("round", "tap", "model", "other", "cka")
MOST_CLIENTS = 1000  # whose examples partition.npz counts, the first of the population


def draw(run: Assembly, folder: Path, round: int) -> Iterator[tuple[str, Path]]:
    """Draw what is new after a round: its name and its file.

    Importing what draws takes half a second, so not before the first.
    """
    partition = folder / "partition.png"
    if not partition.exists():
        import numpy as np

        from inco.data.picture import draw_partition

        counts = run.partition.class_counts(
            run.dataset.train.labels.numpy(), len(run.dataset.classes)
        )
        draw_partition(counts, run.dataset.classes, partition)
        capacity = run.simulator.population.capacity
        shown = counts[:MOST_CLIENTS].astype("int32")
        levels = np.array(
            [capacity.level(client, 1) for client in range(len(shown))], dtype="int32"
        )
        write_npz(
            folder / "partition.npz",
            {"counts": shown, "levels": levels, "clients": np.array(len(counts))},
        )
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


def tables(run: Assembly, round: int) -> Iterator[tuple[str, tuple[str, ...], list[list[Any]]]]:
    """Return what is new after a round as tables: name, columns, rows.

    Of CKA, one row a pair of models and tap.
    """
    arrays = run.simulator.diagnostics.arrays.get("cka")
    if arrays is not None:
        names = [
            f"{name} client {client}" if client >= 0 else str(name)
            for client, name in zip(arrays["client"], arrays["name"], strict=True)
        ]
        rows = [
            [round, key.removeprefix("cka/"), names[i], names[j], float(matrix[i, j])]
            for key, matrix in arrays.items()
            if key.startswith("cka/")
            for i in range(len(names))
            for j in range(i)
            if math.isfinite(matrix[i, j])
        ]
        yield "cka/pairs", PAIR, rows

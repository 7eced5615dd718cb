"""The pictures that a run leaves in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inco.config.wiring import Assembly


def draw(run: Assembly, folder: Path, round: int) -> Iterator[tuple[str, Path]]:
    """Draw what is new after a round: its name and its file. Importing what draws takes half a second, so not before the first."""
    partition = folder / "partition.png"
    if not partition.exists():
        from inco.data.picture import draw_partition

        counts = run.partition.class_counts(run.dataset.train.labels.numpy(), len(run.dataset.classes))
        draw_partition(counts, run.dataset.classes, partition)
        yield "partition", partition
    arrays = run.simulator.diagnostics.arrays
    if arrays:
        from inco.diagnostics.picture import draw_cka

        draw_cka(arrays, f"Similarity of models, round {round}", folder / "cka.png")
        yield "cka", folder / "cka.png"

"""What a figure can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Options of all figures; each figure names those that it heeds.

    `last`: measured rounds that are averaged; `layers`: layers or taps to draw, in this order;
    `of`: whose gradients, "clients" or "update"; `measure`: "cka" or "cosine"; `score`: "last" or
    "best" accuracy; `x`: the setting along the x axis; `paper`: the paper's values beside ours;
    `tsne`: features.npz of runs.
    """

    last: int = 1
    layers: tuple[str, ...] = ()
    of: str = "clients"
    measure: str = "cka"
    score: str = "last"
    x: str = ""
    paper: bool = False
    tsne: tuple[Path, ...] = ()

"""Options of figures, as arguments of the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(map(Path, names(text)))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def _option(default: Any, help: str, **argument: Any) -> Any:
    return field(default=default, metadata={"help": help, **argument})


@dataclass(frozen=True)
class Options:
    """Options of all figures; each figure names those that it heeds."""

    last: int = _option(
        1, "average the last K measured rounds (default: 1)", type=_positive, metavar="K"
    )
    layers: tuple[str, ...] = _option(
        (), "layers (or taps, for CKA) to draw, in this order", type=names, metavar="A,B"
    )
    of: str = _option(
        "clients",
        "gradients of the clients (default), or of the server's update",
        choices=("clients", "update"),
    )
    measure: str = _option(
        "cka", "of the similarity of updates (default: cka)", choices=("cka", "cosine")
    )
    score: str = _option(
        "last", "which accuracy of a run counts (default: last)", choices=("last", "best")
    )
    x: str = _option(
        "", "the setting along the x axis, as local.lr (default: what varies)", metavar="KEY"
    )
    paper: bool = _option(
        False,
        "mark the paper's values where data and alpha are its own",
        action="store_const",
        const=True,
    )
    tsne: tuple[Path, ...] = _option(
        (),
        "features.npz files of python -m inco.paper.features, a panel each",
        type=_paths,
        metavar="A,B",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an argument per option; those that are not given stay None."""
    for option in fields(Options):
        parser.add_argument(f"--{option.name}", **option.metadata)

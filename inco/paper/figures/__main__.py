"""`python -m inco.paper.figures NUMBER RUNS...`: draw a figure of the paper from run folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from inco.errors import ConfigError, InCoError
from inco.paper.figures.groups import grouped
from inco.paper.figures.options import Options
from inco.paper.figures.registry import check_options, find, listing
from inco.paper.figures.style import paper_style, save, targets
from inco.records.groups import Group
from inco.records.runs import find as find_runs

_EXAMPLES = """\
examples:
  python -m inco.paper.figures --list
  python -m inco.paper.figures 10 outputs/ --labels FedAvg,InCo
  python -m inco.paper.figures 3 outputs/a outputs/b \\
      --layers layer3.0.conv2,layer3.2.conv2 --of update --out figure3.pdf
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; options that are not given stay None."""
    made = argparse.ArgumentParser(
        prog="python -m inco.paper.figures",
        description=(
            "Draw a figure of the InCo paper (Chan et al., ICLR 2024) from run folders, as PNG and"
            " PDF."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "number", nargs="?", type=int, help="of the figure in the paper; --list has them"
    )
    made.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", help="run folders, or folders above them"
    )
    made.add_argument(
        "--list", action="store_true", help="list the figures, what they show and what they need"
    )
    made.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="without a suffix: FILE.png and FILE.pdf (default: figureNUMBER)",
    )
    made.add_argument(
        "--labels",
        type=_words,
        metavar="A,B",
        help="names of the groups, one each, in the order of the runs",
    )
    made.add_argument(
        "--last",
        type=_positive,
        metavar="K",
        help="average the last K measured rounds (default: 1)",
    )
    made.add_argument(
        "--layers",
        type=_words,
        metavar="A,B",
        help="layers (or taps, for CKA) to draw, in this order",
    )
    made.add_argument(
        "--of",
        choices=("clients", "update"),
        help="gradients of the clients (default), or of the server's update",
    )
    made.add_argument(
        "--measure", choices=("cka", "cosine"), help="of the similarity of updates (default: cka)"
    )
    made.add_argument(
        "--score", choices=("last", "best"), help="which accuracy of a run counts (default: last)"
    )
    made.add_argument(
        "--x",
        metavar="KEY",
        help="the setting along the x axis, as local.lr (default: what varies)",
    )
    made.add_argument(
        "--paper",
        action="store_true",
        default=None,
        help="mark the paper's values where data and alpha are its own",
    )
    made.add_argument(
        "--tsne",
        type=_paths,
        metavar="A,B",
        help="features.npz files of python -m inco.paper.features, a panel each",
    )
    return made


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(map(Path, _words(text)))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (0, or the error's)."""
    args = parser().parse_args(arguments)
    if args.list:
        print(listing())
        return 0
    try:
        _draw(args)
    except InCoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _draw(args: argparse.Namespace) -> None:
    if args.number is None:
        raise ConfigError(
            "which figure? give a number and run folders, or --list; --help has examples"
        )
    entry = find(args.number)
    names = ("labels", *(f.name for f in fields(Options)))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    check_options(args.number, entry, list(given))
    if not args.runs:
        raise ConfigError(
            f"figure {args.number} of which runs? give their folders, or one above them, as"
            " outputs/"
        )
    out = args.out or Path(f"figure{args.number}")
    targets(out)  # a wrong suffix is told before anything is read
    groups = grouped([find_runs([path]) for path in args.runs], given.pop("labels", ()))
    options = Options(**given)
    for line in unfinished(groups):
        print(line, file=sys.stderr)
    with paper_style():
        paths = save(entry.draw(groups, options), out)
    if entry.table:
        print(entry.table(groups, options) + "\n")
    for path in paths:
        print(path)


def unfinished(groups: Sequence[Group]) -> list[str]:
    """Return a note for each run that has not finished: it is drawn as far as it is."""
    lines = []
    for run in (run for group in groups for run in group.runs if run.status != "finished"):
        of = f" of {run.about['rounds']}" if run.about.get("rounds") else ""
        lines.append(
            f"note: {run.folder} is {run.status}, after round {run.done}{of}; it is drawn as far as"
            " it is"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())

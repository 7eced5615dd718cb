"""`python -m inco.paper.figures NUMBER RUNS...`: draw a figure of the paper from run folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from inco.errors import ConfigError, InCoError
from inco.paper.figures.groups import grouped
from inco.paper.figures.options import Options, add_options, names
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
        description="Draw a figure of the InCo paper (Chan et al., ICLR 2024) from run folders, as"
        " PNG and PDF.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("number", nargs="?", type=int, help="of the figure in the paper; --list has them")
    add("runs", nargs="*", type=Path, metavar="RUNS", help="run folders, or folders above them")
    listed = "list the figures, what they show and what they need"
    add("--list", action="store_true", help=listed)
    out = "without a suffix: FILE.png and FILE.pdf (default: figureNUMBER)"
    add("--out", type=Path, metavar="FILE", help=out)
    labels = "names of the groups, one each, in the order of the runs"
    add("--labels", type=names, metavar="A,B", help=labels)
    add_options(made)
    return made


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
    every = ("labels", *(option.name for option in fields(Options)))
    given = {name: getattr(args, name) for name in every if getattr(args, name) is not None}
    check_options(args.number, entry, list(given))
    if not args.runs:
        raise ConfigError(
            f"figure {args.number} of which runs? give their folders, or one above them, as"
            " outputs/"
        )
    out = args.out or Path(f"figure{args.number}")
    targets(out)  # a wrong suffix is reported before anything is read
    groups = grouped([find_runs([path]) for path in args.runs], given.pop("labels", ()))
    options = Options(**given)
    _note_unfinished(groups)
    with paper_style():
        paths = save(entry.draw(groups, options), out)
    if entry.table:
        print(entry.table(groups, options) + "\n")
    for path in paths:
        print(path)


def _note_unfinished(groups: Sequence[Group]) -> None:
    for run in (run for group in groups for run in group.runs if run.status != "finished"):
        of = f" of {run.about['rounds']}" if run.about.get("rounds") else ""
        note = f"note: {run.folder} is {run.status}, after round {run.done}{of}"
        print(f"{note}; it is drawn as far as it is", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

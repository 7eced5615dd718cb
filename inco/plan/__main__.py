"""`python -m inco.plan WORDS`: what `python run.py -m WORDS` will take on this machine, before it
is started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from inco.errors import ConfigError, InCoError

_EXAMPLES = """\
examples:
  python -m inco.plan transform=none,inco seed=0,1,2
  python -m inco.plan experiment=table2_resnet scale=paper --jobs 4
  python -m inco.plan experiment=table2_resnet --no-measure
  python -m inco.plan split=stage,width --sizes

Two rounds of each kind of run are measured, with few local steps, in a process of their own on
one core or GPU; nothing is recorded.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="python -m inco.plan",
        description=(
            "Say how many runs and rounds a sweep has, and estimate hours, memory and disk on this"
            " machine."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "words",
        nargs="*",
        metavar="WORD",
        help="the words of `python run.py -m WORD ...`; none: the default run",
    )
    made.add_argument(
        "--measure",
        choices=("steps", "full"),
        help="a few steps of each kind (default), or two whole rounds",
    )
    made.add_argument("--no-measure", action="store_true", help="counts, parameters and disk alone")
    made.add_argument(
        "--sizes",
        action="store_true",
        help="parameters, FLOPs and bytes by capacity instead of time",
    )
    made.add_argument(
        "--limit",
        type=_above_zero,
        metavar="S",
        help="seconds for each kind (default: 60; --measure full: none)",
    )
    made.add_argument(
        "--folders", action="store_true", help="nothing but the runs' folders, a line each"
    )
    made.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="runs side by side (default: 1)"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the plan as JSON as well")
    made.add_argument(
        "--conf",
        type=Path,
        metavar="DIR",
        help="conf/ of a checkout (default: the working directory's, or inco's own)",
    )
    made.add_argument(
        "--config-dir", metavar="DIR", help="a folder with options of your own, as for run.py"
    )
    return made


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (0, or the error's)."""
    args = parser().parse_intermixed_args(arguments)
    try:
        _check(args)
        if args.folders:
            from inco.plan.points import plan_jobs

            print(
                *(job.folder for job in plan_jobs(_conf(args.conf), args.words, args.config_dir)),
                sep="\n",
            )
            return 0
        from inco.plan.plan import plan

        plan(args, _conf(args.conf))
    except ConfigError as error:
        from inco.run.cli import message  # run.py's own words

        print(message(error), file=sys.stderr)
        return error.exit_code
    except InCoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect, and a file that cannot be written, before anything
    is measured.
    """
    without = [
        name for name, given in (("--measure", args.measure), ("--limit", args.limit)) if given
    ]
    quiet = [
        name
        for name, given in (
            ("--no-measure", args.no_measure),
            ("--sizes", args.sizes),
            ("--folders", args.folders),
        )
        if given
    ]
    if without and quiet:
        raise ConfigError(
            f"{' '.join(without)} with {' '.join(quiet)}: nothing is measured; leave one of"
            " them out"
        )
    if args.json:
        try:
            args.json.open("a").close()  # what an earlier plan wrote stays, should this one fail
        except OSError as error:
            raise ConfigError(
                f"--json {args.json}: cannot be written ({error.strerror}); choose another file"
            ) from error


def _conf(given: Path | None) -> Path:
    """Return the folder of config.yaml: as given, of the working directory, or beside the package
    (a checkout).
    """
    places = (
        [given] if given else [Path.cwd() / "conf", Path(__file__).resolve().parents[2] / "conf"]
    )
    for place in places:
        if (place / "config.yaml").is_file():
            return place.resolve()
    raise ConfigError(
        f"no config.yaml in {' or '.join(map(str, places))}; give InCo's conf folder with"
        " --conf DIR"
    )


if __name__ == "__main__":
    sys.exit(main())

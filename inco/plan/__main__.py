"""`python -m inco.plan OVERRIDES`: what `python run.py -m OVERRIDES` will take on this machine,
before it is started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from inco.errors import ConfigError, InCoError

_EXAMPLES = """\
examples:
  python -m inco.plan transform=none,inco seed=0,1,2
  python -m inco.plan experiment=table2_resnet scale=paper --jobs 4
  python -m inco.plan experiment=table2_resnet --no-measure
  python -m inco.plan split=stage,width --sizes

A few rounds of each kind of run are measured, with few local steps, in a process of their own on
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
    option = made.add_argument
    option(
        "words",
        nargs="*",
        metavar="OVERRIDE",
        help="the overrides of `python run.py -m OVERRIDE ...`; none: the default run",
    )
    measures = "a few steps of each kind (default), or two whole rounds"
    option("--measure", choices=("steps", "full"), help=measures)
    option("--no-measure", action="store_true", help="counts, parameters and disk alone")
    sizes = "parameters, FLOPs and bytes by capacity instead of time"
    option("--sizes", action="store_true", help=sizes)
    limit = "seconds for each kind (default: 60; --measure full: none)"
    option("--limit", type=_above_zero, metavar="S", help=limit)
    folders = "nothing but the runs' folders, a line each"
    option("--folders", action="store_true", help=folders)
    option("--jobs", type=_count, default=1, metavar="N", help="runs side by side (default: 1)")
    option("--json", type=Path, metavar="FILE", help="write the plan as JSON as well")
    conf = "conf/ of a checkout (default: the working directory's, or inco's own)"
    option("--conf", type=Path, metavar="DIR", help=conf)
    config_dir = "a folder with options of your own, as for run.py"
    option("--config-dir", metavar="DIR", help=config_dir)
    return made


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def _above_zero(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (0, or the error's)."""
    args = parser().parse_intermixed_args(arguments)
    try:
        _check(args)
        conf = _conf(args.conf)
        if args.folders:
            from inco.plan.points import plan_jobs

            for job in plan_jobs(conf, args.words, args.config_dir):
                print(job.folder)
        else:
            from inco.plan.plan import plan

            plan(args, conf)
    except InCoError as error:
        from inco.run.cli import message

        print(message(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; nothing has been run", file=sys.stderr)
        return 130
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that would have no effect, and a file that cannot be written."""
    given = [f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value]
    useless = [name for name in given if name in ("--measure", "--limit")]
    quiet = [name for name in given if name in ("--no-measure", "--sizes", "--folders")]
    if useless and quiet:
        raise ConfigError(
            f"{' '.join(useless)} with {' '.join(quiet)}: nothing is measured; leave one of"
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
    """Return the folder of config.yaml; by default the working directory's or the checkout's."""
    usual = [Path.cwd() / "conf", Path(__file__).resolve().parents[2] / "conf"]
    places = [given] if given else usual
    for place in places:
        if (place / "config.yaml").is_file():
            return place.resolve()
    raise ConfigError(
        f"no config.yaml in {' or '.join(map(str, places))}; give InCo's conf folder with"
        " --conf DIR"
    )


if __name__ == "__main__":
    sys.exit(main())

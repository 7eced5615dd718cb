"""The command: `python -m benchmarks w1|w2|scale|gpu|startup`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from inco.errors import InCoError

WHAT = {"w1": "rounds", "w2": "rounds", "scale": "scale", "gpu": "gpu", "startup": "startup"}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="How fast InCo is, beside the floor and other frameworks.",
    )
    parser.add_argument(
        "what",
        choices=WHAT,
        help="w1, w2: a round; scale: many clients; gpu: what a GPU makes of it; startup: run.py",
    )
    parser.add_argument(
        "--repeats", type=_count, help="starts of each system, in turns (default 3)"
    )
    parser.add_argument(
        "--rounds",
        type=_count,
        help="rounds of each start, after its warm-up (default 3; scale 10, startup 12)",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="w1, w2: Flower and pfl-research too (benchmarks/requirements.txt)",
    )
    parser.add_argument("--minutes", type=_count, help="gpu: all that it may take (default 8)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, in seconds: whether it works, not how fast",
    )
    parser.add_argument(
        "--out", help="where the JSON goes (default: a new file below outputs/benchmarks)"
    )
    return parser.parse_args(argv)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Run one benchmark and return the exit code."""
    args = parse(argv)
    try:
        importlib.import_module(f"benchmarks.{WHAT[args.what]}").main(args)
    except InCoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

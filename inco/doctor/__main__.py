"""`python -m inco.doctor`: what this machine is, and whether InCo computes rightly on it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence

from inco.doctor import checks
from inco.doctor.checks import Line

_MARK = {True: "ok", False: "WRONG", None: ""}


def lines() -> Iterator[Line]:
    """Yield the lines of all checks as they are found."""
    for check in checks.ALL:
        try:
            yield from check()
        except subprocess.TimeoutExpired as late:
            text = f"no answer in {late.timeout:g} s; is the machine busy?"
            yield Line(check.__name__, text, False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report and return the exit code: 0 where all is right, else 1."""
    argparse.ArgumentParser(prog="python -m inco.doctor", description=__doc__).parse_args(arguments)
    wrong = 0
    for line in lines():
        print(f"{_MARK[line.right]:<6}{line.label:<11}{line.text}", flush=True)
        wrong += line.right is False
    end = f"{wrong} of these lines say what is wrong, and what to do" if wrong else "all right"
    print(f"\n{end}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

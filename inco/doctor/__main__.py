"""`python -m inco.doctor`: what this machine is, and whether InCo computes rightly on it; in under
a minute.
"""

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
    for check in (
        checks.versions,
        checks.hardware,
        checks.products,
        checks.runs,
        checks.tracker,
        checks.data,
    ):
        try:
            yield from check()
        except subprocess.TimeoutExpired as late:
            yield Line(
                check.__name__, f"no answer in {late.timeout:g} s; is the machine busy?", False
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report and return the exit code: 0 where all is right, else 1."""
    argparse.ArgumentParser(prog="python -m inco.doctor", description=__doc__).parse_args(arguments)
    wrong = 0
    for line in lines():
        print(f"{_MARK[line.fine]:<6}{line.what:<11}{line.said}", flush=True)
        wrong += line.fine is False
    print(
        "\nall right"
        if not wrong
        else f"\n{wrong} of these lines say what is wrong, and what to do"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Fuzz the command line: composing and checking ends in a valid configuration or in a clean
message, and a valid one runs or is refused.

`python -m tests.fuzz.configurations --count 10000 --seed 0 --runs 20`, in the checkout. Ends with 1
if a fault was found.
"""

from __future__ import annotations

import argparse
import io
import random
import runpy
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from support import ROOT

from fuzz import words
from fuzz.mild import mild_line
from fuzz.outcomes import LIMIT_S, Fault, Report, judged
from inco.run import front
from inco.run.front import check

RUN_LIMIT_S = 60.0
# an experiment of the paper brings hundreds of points, and composing one takes a fifth of a second
SWEEP_LIMIT_S = 120.0


@contextmanager
def fast() -> Iterator[None]:
    """Let checks share Hydra's reading of conf/, and compositions without values: what is checked
    is the same, in half the time.
    """
    real, compositions = front._try_compose, {}
    groups = {
        f"{group}={option}"
        for group, options in words.space().options.items()
        for option in options
    }

    def remembered(lines: list[str]) -> Any:
        if not set(lines) <= groups:
            return real(lines)
        key = tuple(lines)
        if key not in compositions:
            compositions[key] = real(lines)
        return compositions[key]

    @contextmanager
    def open_already(**_: Any) -> Iterator[None]:
        yield

    with ExitStack() as stack:
        stack.enter_context(
            initialize_config_dir(config_dir=str(words.CONF), version_base="1.3", job_name="run")
        )
        stack.enter_context(mock.patch.object(front, "initialize_config_dir", open_already))
        stack.enter_context(mock.patch.object(front, "_try_compose", remembered))
        yield


def check_one(report: Report, argv: Sequence[str]) -> None:
    """Check one command line. argparse's own refusal is as good as ours: it says what is wrong and
    means exit code 2.
    """
    said = io.StringIO()

    def work() -> Any:
        try:
            return check(words.CONF, argv)
        except SystemExit as left:
            return left

    def judge(result: Any) -> str | None:
        if isinstance(result, SystemExit):
            return (
                None
                if result.code == 2 and "error:" in said.getvalue()
                else f"left with {result.code}"
            )
        if result is None:
            return None
        points, _ = result
        return (
            None
            if all(p.folder.name and "\x00" not in str(p.folder) for p in points)
            else f"a folder without a name: {points}"
        )

    limit = (
        SWEEP_LIMIT_S
        if {"-m", "--multirun"} & set(argv) and any(word.startswith("experiment=") for word in argv)
        else LIMIT_S
    )
    with redirect_stderr(said), redirect_stdout(said):
        judged(report, shlex.join(argv), work, judge, limit)


def run_one(report: Report, argv: Sequence[str], folder: Path) -> None:
    """Type a command line that has passed the check, in this process: a round, and an end that says
    what it is.
    """
    said = io.StringIO()

    def work() -> int:
        GlobalHydra.instance().clear()
        try:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 1
        return 1

    def judge(code: int) -> str | None:
        if "Traceback" in said.getvalue() or code not in (0, 2, 3, 4, 74):
            last = [text for text in said.getvalue().splitlines() if text.strip()][-1:]
            return f"ended with {code}: {last}"
        if code == 0 and not (folder / "summary.json").exists():
            return "ended with 0 without a summary"
        report.ends[f"run: exit code {code}"] += 1
        return None

    with (
        redirect_stderr(said),
        redirect_stdout(said),
        mock.patch.object(sys, "argv", ["run.py", *argv]),
    ):
        judged(report, shlex.join(argv), work, judge, RUN_LIMIT_S)


def smaller(argv: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """Leave out words that a fault does not need."""
    kept = list(argv)
    for at in reversed(range(len(argv))):
        fewer = kept[:at] + kept[at + 1 :]
        if fails(fewer):
            kept = fewer
    return kept


def shrunk(fault: Fault, key: tuple[str, str]) -> Fault:
    """Return a fault with the shortest command line found that shows it."""

    def fails(argv: Sequence[str]) -> bool:
        again = Report()
        check_one(again, argv)
        return key in again.faults

    return Fault(fault.what, fault.where, shlex.join(smaller(shlex.split(fault.case), fails)))


def fuzz(count: int, seed: int, runs: int) -> Report:
    """Check `count` command lines, and run `runs` valid ones."""
    report, rng = Report(), random.Random(seed)
    with fast():
        with suppress(KeyboardInterrupt):  # what has been found until then is told
            for _ in range(count):
                check_one(report, words.line(rng))
        for key, fault in report.faults.items():
            report.faults[key] = shrunk(fault, key)
    with tempfile.TemporaryDirectory() as place:
        done = 0
        for _ in range(50 * runs):  # about half of such lines are valid
            if done == runs:
                break
            folder = Path(place) / f"run{done}"
            argv, tried = [*mild_line(rng), f"hydra.run.dir={folder}"], Report()
            check_one(tried, argv)
            if tried.ends["valid"]:
                done += 1
                run_one(report, argv, folder)
    if done < runs:
        report.ends["runs that no valid line was found for"] += runs - done
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("count", 10_000), ("seed", 0), ("runs", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    began = time.monotonic()
    report = fuzz(chosen.count, chosen.seed, chosen.runs)
    print(
        f"{report}\n{time.monotonic() - began:.0f} s; a case may take {LIMIT_S:g} s, a run"
        f" {RUN_LIMIT_S:g} s"
    )
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())

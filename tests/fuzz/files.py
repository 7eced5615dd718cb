"""Fuzz the readers: a damaged file ends in a clean refusal or in equal content; nothing in it is
run, and nothing hangs.

`python -m tests.fuzz.files --count 10000 --seed 0 [--only Partition] [--keep FOLDER]`, in the
checkout. Ends with 1 if a fault was found.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from fuzz.outcomes import Report, judged
from fuzz.subject import Subject
from fuzz.subjects import SUBJECTS

# bytes of address space: a file that asks for more is to end in an error, not in a dead machine
MEMORY = 8 << 30


def case(report: Report, subject: Subject, number: int, marker: Path, keep: Path | None) -> None:
    """Damage a file and read it."""
    what = f"{type(subject).__name__}, case {number}, {subject.damage(marker)}"

    def judge(got: Any) -> str | None:
        return "something in a file was run" if marker.exists() else subject.judge(got)

    before = dict(report.seen)
    judged(report, what, subject.read, judge)
    if marker.exists():  # also where the reader has refused the file afterwards
        judged(report, what, lambda: None, judge)
        marker.unlink()
    new = [key for key in report.seen if key not in before]
    if new and keep is not None:
        shutil.copytree(
            subject.folder, keep / f"{type(subject).__name__}-{number}", dirs_exist_ok=True
        )


def fuzz(count: int, seed: int, only: str = "", keep: Path | None = None) -> dict[str, Report]:
    """Damage and read `count` files, all kinds in turn.

    Returns a report a kind. `keep`: where files go that show a fault.
    """
    rng, reports = random.Random(seed), dict[str, Report]()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PIL and NumPy about strange files
        marker = Path(place) / "ran"
        chosen = [kind for kind in SUBJECTS if only in ("", kind.__name__)]
        subjects = [kind(Path(place) / kind.__name__ / "files", rng) for kind in chosen]
        for number in range(count):
            subject = subjects[number % len(subjects)]
            case(
                reports.setdefault(type(subject).__name__, Report()), subject, number, marker, keep
            )
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=["", *(kind.__name__ for kind in SUBJECTS)])
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    began = time.monotonic()
    reports = fuzz(chosen.count, chosen.seed, chosen.only, chosen.keep)
    for name, report in reports.items():
        print(f"{name}: {report}")
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if any(report.faults for report in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

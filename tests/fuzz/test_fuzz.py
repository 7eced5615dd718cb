"""A few hundred cases of each fuzzer; `docs/reliability.md` says how to run ten thousand.

Fuzzers are shown to see faults.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from fuzz import configurations, files, words
from fuzz.outcomes import Report, judged
from fuzz.subject import Subject
from fuzz.subjects import SUBJECTS
from inco.errors import DataError


@pytest.mark.full
def test_command_lines_end_in_a_configuration_or_in_a_message() -> None:
    report = configurations.fuzz(count=80, seed=1, runs=1)
    assert not report.faults, report
    assert report.ends["valid"] > 10 and report.ends["refused (2)"] > 30, "both happen"


@pytest.mark.parametrize("kind", SUBJECTS, ids=lambda kind: kind.__name__)
def test_damaged_files_end_in_a_refusal_or_in_what_they_held(kind: type[Subject]) -> None:
    report = files.fuzz(count=40, seed=1, only=kind.__name__)[kind.__name__]
    assert not report.faults, report
    assert sum(report.ends.values()) >= 40


def test_files_as_they_were_written_are_read(tmp_path: Path) -> None:
    """Otherwise a refusal would mean nothing."""
    for kind in SUBJECTS:
        subject = kind(tmp_path / kind.__name__ / "files", random.Random(0))
        if kind.__name__ == "Batches":  # nobody has the pickles of the published MD5 here
            continue
        for name in [str(path.relative_to(subject.folder)) for path in subject.good]:
            if hasattr(subject, "damage") and kind.__name__ in ("Partition", "Weights"):
                subject.name = name
            assert subject.judge(subject.read()) is None, (kind, name)


def test_what_the_fuzzers_must_see_they_see(tmp_path: Path) -> None:
    """An error of no kind of ours, a wrong result, an empty message, and a case that never ends;
    the shortest case of each is kept.
    """

    def fails() -> None:
        raise KeyError("settings")

    def empty() -> None:
        raise DataError(" ")

    def hangs() -> None:
        while time.monotonic():
            pass

    report = Report()
    for case in ("long case", "case"):
        judged(report, case, fails, lambda got: None)
    judged(report, "c", lambda: 3, lambda got: f"{got} is wrong")
    judged(report, "d", empty, lambda got: None)
    judged(report, "e", hangs, lambda got: None, seconds=0.1)
    judged(report, "f", lambda: None, lambda got: None)
    assert report.ends == {"FAULT": 5, "valid": 1}
    whats = sorted((fault.what.split(":")[0], fault.case) for fault in report.faults.values())
    assert whats == [
        ("3 is wrong", "c"),
        ("Hang", "e"),
        ("KeyError", "case"),
        ("empty message of DataError", "d"),
    ]


def test_code_that_a_file_runs_is_seen(tmp_path: Path) -> None:
    class Trusting(Subject):
        def make(self) -> None:
            (self.folder / "x").write_bytes(b"")

        def damage(self, marker: Path) -> str:
            marker.touch()
            return "x"

        def read(self) -> None:
            raise DataError("refused, but too late")

        def judge(self, got: object) -> str | None:
            return None

    report = Report()
    files.case(
        report,
        Trusting(tmp_path / "files", random.Random(0)),
        1,
        tmp_path / "ran",
        tmp_path / "kept",
    )
    assert [fault.what for fault in report.faults.values()] == ["something in a file was run"]
    assert (tmp_path / "kept" / "Trusting-1" / "x").exists() and not (tmp_path / "ran").exists()


def test_a_seed_draws_the_same_lines() -> None:
    lines = [[words.line(random.Random(seed)) for _ in range(3)] for seed in (5, 5, 6)]
    assert lines[0] == lines[1] != lines[2]


def test_a_fault_is_shrunk_to_the_words_that_it_needs() -> None:
    kept = configurations.smaller(["a=1", "b=2", "c=3", "b=2"], lambda argv: "b=2" in argv)
    assert kept == ["b=2"]

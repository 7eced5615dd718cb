"""python -m inco.doctor: right on this machine, and not silent where something is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from support import ROOT

from inco import machine
from inco.doctor import __main__ as doctor
from inco.doctor import checks
from inco.doctor.checks import Line


def judged(lines: Iterator[Line]) -> dict[str, bool | None]:
    """The verdict of each kind of line; false where one of them is."""
    found: dict[str, bool | None] = {}
    for line in lines:
        found[line.label] = False if found.get(line.label) is False else line.right
    return found


@pytest.mark.full
def test_as_typed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inco.doctor"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "two workers and one leave the same bits",
        "of float64",
        "digits",
        "runs would be",
        machine.cpu_model(),
    ):
        assert said in done.stdout
    assert done.stdout.rstrip().endswith("all right")


def test_products_here() -> None:
    lines = list(checks.products())
    assert len(lines) == 2 and all(line.right for line in lines)


def test_a_library_that_computes_wrongly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from inco.doctor import products

    monkeypatch.setattr(products, "FARTHEST", {"fp32": 1e-12, "bf16": 3e-2})
    lines = list(checks.products())
    assert [line.right for line in lines] == [False, True]
    assert "Results here are wrong" in lines[0].text


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    died = subprocess.CompletedProcess([], -11, "", "free(): invalid pointer\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: died)
    (line,) = checks.products()
    assert (
        line.right is False and "signal 11" in line.text and "free(): invalid pointer" in line.text
    )


def test_a_library_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.version
    monkeypatch.setattr(
        machine, "version", lambda package: "1.0.22" if package == "timm" else real(package)
    )
    (line,) = (line for line in checks.versions() if line.label == "libraries")
    assert line.right is False and 'timm is 1.0.22: pip install "timm>=1.0.23"' in line.text
    monkeypatch.undo()
    assert judged(checks.versions())["libraries"] is True


@pytest.mark.parametrize("second", ["same", "other", "fails"])
def test_runs_that_must_be_equal(second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = {"same": (), "other": ("seed=1",), "fails": ("no.such=1",)}[second]
    line = checks._same("ranks", "two runs", ("engine.workers=1",), ("engine.workers=1", *seed))
    assert line.right is (second == "same")
    assert {"same": "same bits", "other": "other bits", "fails": "failed with exit code 2"}[
        second
    ] in line.text


def test_the_exit_code_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        doctor, "lines", lambda: iter([Line("a", "fine", True), Line("b", "only said")])
    )
    assert doctor.main([]) == 0
    monkeypatch.setattr(
        doctor, "lines", lambda: iter([Line("a", "fine", True), Line("b", "bad", False)])
    )
    assert doctor.main([]) == 1
    assert "WRONG b          bad\n\n1 of these" in capsys.readouterr().out

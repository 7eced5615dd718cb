"""A refactor changes no bits: the losses of a handful of settings, as recorded. Exact where torch and the CPU are those of the record."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("record_rounds", Path(__file__).parent / "golden" / "record_rounds.py")
assert SPEC and SPEC.loader
recorder = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recorder)
GOLDEN = json.loads(recorder.PATH.read_text())


@pytest.mark.parametrize("case", recorder.CASES)
def test_rounds_are_as_recorded(case: str) -> None:
    now, then = recorder.rounds_of(case), GOLDEN["cases"][case]
    for key in ("train/loss", "test/loss"):
        assert now[key] == pytest.approx(then[key], rel=1e-3)
    if recorder.machine() == GOLDEN["machine"]:
        assert now == then, "bits have changed: if that is meant, record anew and say why in the commit"

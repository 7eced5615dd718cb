"""A refactor changes no bits: rounds of a handful of settings are as recorded, to the bit where the machine has a record, near elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from inco.machine import arithmetic

SPEC = importlib.util.spec_from_file_location("record_rounds", Path(__file__).parent / "golden" / "record_rounds.py")
assert SPEC and SPEC.loader
recorder = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recorder)
RECORDS = recorder.records()
NEAR = {"test/acc": {"abs": 1.0}}  # one of 360 images is 0.28 %


@pytest.mark.parametrize("case", recorder.CASES)
def test_rounds_are_as_recorded(case: str) -> None:
    now = recorder.rounds_of(case)
    for machine, record in RECORDS.items():
        for key in recorder.KEYS:
            assert now[key] == pytest.approx(record[case][key], **NEAR.get(key, {"rel": 1e-3})), f"{key}, against {machine}"
    if arithmetic() in RECORDS:
        assert now == RECORDS[arithmetic()][case], "bits have changed: if that is meant, record anew and say why in the commit"

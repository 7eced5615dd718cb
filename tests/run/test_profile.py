"""`debug=profile`: stretches that add up to a round, operations of some steps, and the same weights
as without.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, TINY

from inco.run.profile import RoundProfile
from inco.spans import Times, span, timed

SMALL = [word for word in TINY if word != "debug=tiny"] + [
    "num_clients=5",
    "sample_ratio=1.0",
    "local.epochs=1",
    "engine.workers=1",
]


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run.py", *SMALL, f"hydra.run.dir={folder}", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.full
def test_a_run_tells_where_its_time_goes(tmp_path: Path) -> None:
    done = run(tmp_path / "seen", "debug=profile")
    assert done.returncode == 0 and "profiler" not in done.stderr, done.stderr
    text = (tmp_path / "seen" / "profile.txt").read_text()
    assert text in done.stdout
    whole = float(re.search(r"One round, ([\d.]+) s", text)[1])  # type: ignore[index]
    rows = re.findall(r"^(\S.*?) +([\d,]+) +([\d.]+) +([\d.]+)%$", text, re.M)
    assert sum(float(row[2]) for row in rows) == pytest.approx(whole, abs=1e-3)
    assert {
        "forward",
        "backward",
        "optimizer",
        "scoring",
        "server",
        "record and checkpoint",
        "elsewhere",
    } <= {row[0] for row in rows}
    steps = {row[0]: int(row[1]) for row in rows}
    assert steps["forward"] == steps["backward"] == steps["optimizer"] >= 5
    assert "aten::convolution_backward" in text, "operations"
    plain = run(tmp_path / "plain", "rounds=3", "tracker=none")
    assert plain.returncode == 0, plain.stderr
    one, other = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("seen", "plain")
    )
    assert (
        one["weights_sha256"] == other["weights_sha256"]
        and not (tmp_path / "plain" / "profile.txt").exists()
    )


@pytest.mark.full
def test_one_round_is_too_few_and_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "debug=profile", "rounds=1")
    assert (
        done.returncode == 0
        and "it takes two rounds" in done.stdout
        and not (tmp_path / "run" / "profile.txt").exists()
    )


def test_nothing_is_told_of_a_round_that_is_not_over(tmp_path: Path) -> None:
    """A run that ends by an error in its second or third round leaves what was known before."""
    path = tmp_path / "p.txt"
    path.write_text("of a former session")
    with pytest.raises(KeyError), RoundProfile(path, torch.device("cpu"), 0, 1) as profile:
        profile.on_round(None, {})
        raise KeyError
    assert not path.exists()
    with RoundProfile(path, torch.device("cpu"), 0, 1) as profile:
        profile.on_round(None, {})
        profile.on_round(None, {})
        before = path.read_text()
    assert "One round" in before and path.read_text() == before


def test_stretches_count_only_while_somebody_times_them() -> None:
    waited = []
    with span("before"):
        pass
    with timed(Times(lambda: waited.append(1))) as times:
        for _ in range(3):
            with span("within"):
                pass
    with span("after"):
        pass
    assert times.calls == {"within": 3} and times.seconds["within"] >= 0 and len(waited) == 6

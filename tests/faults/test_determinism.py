"""R1 to R3, R27: the same run again, with other workers, in two sittings, by another version.

R28 is tests/test_golden.py.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from support import ROOT, read_summary, settings_of

from faults.sitting import ONE, after_round, same_end, sit
from inco.config import naming
from inco.errors import ConfigError
from inco.run.signals import Preempted

pytestmark = pytest.mark.full

GOLDEN = ROOT / "tests" / "golden"


def test_r01_the_same_settings_twice_give_the_same_bits(type_command, tmp_path: Path) -> None:
    """In two processes, whose hashes of strings and whose pasts differ.

    Another seed gives other bits.
    """
    words = ("rounds=5", "transform=inco", "algorithm=fedprox")
    first = sit(tmp_path / "first", *words)
    done = type_command(*ONE, *words, "hydra.run.dir=second", env={"PYTHONHASHSEED": "77"})
    assert done.returncode == 0, done.stderr
    same_end(tmp_path / "first", tmp_path / "second")
    assert sit(tmp_path / "other", *words, "seed=1")["weights_sha256"] != first["weights_sha256"]


def test_r02_any_number_of_workers_gives_the_same_bits(type_command, tmp_path: Path) -> None:
    words = (*ONE[:-1], "rounds=3", "transform=inco", "sample_ratio=0.8")
    sit(tmp_path / "one", *words[len(ONE) - 1 :])
    for workers in (2, 4):  # two of the workers of four train one client each
        done = type_command(*words, f"engine.workers={workers}", f"hydra.run.dir={workers}")
        assert done.returncode == 0, done.stderr
        assert read_summary(tmp_path / str(workers))["workers"] == workers
        same_end(tmp_path / "one", tmp_path / str(workers))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_r02_a_gpu_gives_the_same_bits_again_and_with_two_workers(
    type_command, tmp_path: Path
) -> None:
    """Deterministic mode is always on there. Two workers share the GPU, and meet over gloo."""
    for name, workers in (("a", 1), ("b", 1), ("c", 2)):
        done = type_command(
            *ONE[:-1],
            "rounds=3",
            "engine.device=cuda",
            f"engine.workers={workers}",
            f"hydra.run.dir={name}",
        )
        assert done.returncode == 0, done.stderr
        assert read_summary(tmp_path / name)["device"] == "cuda"
        same_end(tmp_path / "a", tmp_path / name)


CASES = {
    "scaffold": (
        "algorithm=scaffold",
        "local=sgd",
        "local.momentum=0",
        "server=yogi",
        "capacity=resampled",
    ),
    "inclusive": ("algorithm=moon", "split=inclusive", "sample_ratio=0.6"),
}


@pytest.mark.parametrize("case", CASES)
def test_r03_a_run_in_two_sittings_is_the_run_in_one(tmp_path: Path, case: str) -> None:
    """Stopped after the first round, amid, and after the last: vectors of server, optimizer and
    clients, cohorts and levels, and rows.
    """
    rounds, words = 4, CASES[case]
    sit(tmp_path / "whole", *words, rounds=rounds)
    for k in (1, 2, rounds):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
            after_round(patch, k, lambda: signal.raise_signal(signal.SIGTERM))
            sit(tmp_path / f"stopped{k}", *words, rounds=rounds)
        stopped = read_summary(tmp_path / f"stopped{k}")
        assert (stopped["status"], stopped["rounds"]) == ("interrupted", k)
        again = sit(tmp_path / f"stopped{k}", *words, rounds=rounds)
        assert again["status"] == "finished"
        same_end(tmp_path / f"stopped{k}", tmp_path / "whole")


def test_r27_a_setting_that_came_later_changes_no_older_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder's name and its checkpoints are those of a release that did not know the setting,
    unless the setting is used.
    """
    today = settings_of()
    older = {
        **today,
        "uplink": {key: value for key, value in today["uplink"].items() if key != "nonfinite"},
    }
    assert naming.digest(today) != naming.digest(older)
    monkeypatch.setattr(naming, "LATER", {"uplink.nonfinite": "stop"})
    assert naming.digest(today) == naming.digest(older)
    sit(tmp_path / "run", rounds=1)
    assert "nonfinite" not in read_summary(tmp_path / "run")["settings"]["uplink"], (
        "as the older release would have left it"
    )
    assert sit(tmp_path / "run", rounds=2)["rounds"] == 2
    with pytest.raises(ConfigError, match="nonfinite"):
        sit(tmp_path / "run", "uplink.nonfinite=skip", rounds=3)

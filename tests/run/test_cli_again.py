"""The command line where it goes wrong or is used again: what is refused, what is kept, what is
said.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT, TINY, read_summary

from inco.records.record import RunLock

pytestmark = pytest.mark.full

SMALL = (*TINY, "rounds=2", "engine.workers=1")


def test_words_for_yes_and_no_are_read_as_such(type_command, tmp_path: Path) -> None:
    """`no` is false and 1 is 1.0, in the run, in its name and in its digest."""
    common = ("-m", *SMALL, "rounds=1")
    done = type_command(*common, "transform.normalize=true,false,no", "hydra.sweep.dir=a")
    assert done.returncode == 2 and "one folder" in done.stderr, "false and no are the same run"
    assert type_command(*SMALL, "rounds=1", "local.lr=1", "fresh=no").returncode == 0
    again = type_command(
        *SMALL, "rounds=1", "local.lr=1.0", "fresh=no", "transform.clip=inf", "transform.clip=null"
    )
    assert again.returncode == 2 or "already finished" in again.stdout
    again = type_command(*SMALL, "rounds=1", "local.lr=1.0", "fresh=no")
    assert "already finished" in again.stdout, again.stderr


def test_a_bound_of_infinity_finds_its_own_run_again(type_command) -> None:
    for words in ("round 1/1", "already finished"):
        done = type_command(*SMALL, "rounds=1", "transform.clip=inf")
        assert done.returncode == 0 and words in done.stdout, done.stderr


def test_a_run_that_cannot_start_leaves_the_former_one_whole(type_command, tmp_path: Path) -> None:
    """A refused extension, and fresh=true without the data: summary, metrics, checkpoint and .hydra
    stay as they were.
    """
    assert type_command(*SMALL, "rounds=1", "name=kept").returncode == 0
    folder = tmp_path / "outputs" / "kept"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.log"}
    refused = type_command(*SMALL, "rounds=2", "name=kept", "seed=1")
    assert refused.returncode == 2 and "seed" in refused.stderr
    missing = type_command(
        "name=kept",
        "fresh=true",
        "dataset=cifar10",
        "dataset.root=nowhere",
        "tracker=none",
        "engine.workers=1",
    )
    assert missing.returncode == 3
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    unusable = type_command(*SMALL, "name=kept", "fresh=true", "model.pretrained=weights.pt")
    assert unusable.returncode == 3 and "weights.pt" in unusable.stderr
    assert {
        p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.log"
    } == before


def test_other_data_behind_the_same_name_is_refused(type_command, tmp_path: Path) -> None:
    def clients(shift: int) -> str:
        return json.dumps(
            {str(c): [(10 * c + i + shift) % 60 for i in range(10)] for c in range(5)}
        )

    (tmp_path / "p.json").write_text(clients(0))
    assert (
        type_command(*SMALL, "rounds=1", "partition=fixed", "partition.path=p.json").returncode == 0
    )
    (tmp_path / "p.json").write_text(clients(7))
    done = type_command(*SMALL, "rounds=2", "partition=fixed", "partition.path=p.json")
    assert done.returncode == 2 and "partition: not what this run began with" in done.stderr, (
        done.stderr
    )


def test_sweeps_say_what_happened(type_command) -> None:
    one = type_command(
        "-m", "dataset=cifar10", "dataset.root=nowhere", "tracker=none", "engine.workers=1"
    )
    assert one.returncode == 3 and "failed" in one.stdout, (
        "a sweep of one job ends with its code and a table"
    )
    assert "add -m" in type_command("seed=0,1").stderr
    assert "hydra.sweep.dir" in type_command("-m", "seed=0,1", "hydra.run.dir=x").stderr
    assert "one folder" in type_command("-m", "seed=0,1", "name=same").stderr


@pytest.mark.parametrize("name", ["", "null", "../out", "wandb", ".hidden", "a/b"])
def test_names_that_are_no_folder_below_outputs(type_command, name: str) -> None:
    done = type_command(f"name={name}")
    assert done.returncode == 2 and "name=" in done.stderr


def test_torchrun_on_a_finished_run_says_so(type_command) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    assert type_command(*SMALL, "hydra.run.dir=done").returncode == 0
    again = type_command(*SMALL, "hydra.run.dir=done", launcher=torchrun, timeout=60)
    assert again.returncode == 0 and "already finished" in again.stdout, again.stderr


def test_a_worker_that_cannot_start_is_told(type_command, tmp_path: Path) -> None:
    """Its death before the workers have met must not leave the others waiting."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('LOCAL_RANK') == '1':\n    os._exit(7)\n"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = type_command(*SMALL, "engine.workers=2", env=env, timeout=60)
    assert done.returncode == 1 and "worker 1" in done.stderr and "exit code 7" in done.stderr, (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def test_the_command_to_go_on_is_the_one_that_was_typed(type_command) -> None:
    done = type_command(*SMALL, "rounds=1", "hydra.run.dir=some/where", "fresh=true")
    last = done.stdout.strip().splitlines()[-1]
    assert "hydra.run.dir=some/where" in last and "fresh" not in last


def test_a_sweep_under_torchrun_goes_past_a_job_that_rank_0_alone_refuses(
    type_command, tmp_path: Path
) -> None:
    """The folder of the first job is locked: its ranks part, and meet again in the next, which has
    the bits that it has alone.
    """
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    alone = type_command(*SMALL, "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    with RunLock(tmp_path / "outputs" / "first"):
        done = type_command("-m", *SMALL, "name=first,second", launcher=torchrun, timeout=180)
    assert done.returncode != 0, "the first has not run"
    second = tmp_path / "outputs" / "second"
    assert (
        read_summary(second)["weights_sha256"] == read_summary(tmp_path / "alone")["weights_sha256"]
    )
    assert not (tmp_path / "outputs" / "first" / "metrics.jsonl").exists()

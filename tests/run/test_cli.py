"""The command line as a user types it: help, mistakes, a run, its folder, a sweep, resuming, and
other ways to start.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, TINY, read_rows, read_summary, timeless

SMALL = (*TINY, "rounds=2", "engine.workers=1")


def only_run(tmp_path: Path) -> Path:
    """Return the one run folder below outputs/."""
    (folder,) = [p for p in (tmp_path / "outputs").iterdir() if p.is_dir() and p.name != "wandb"]
    return folder


def test_help_is_quick_and_lists_groups(type_command) -> None:
    began = time.monotonic()
    done = type_command("--help")
    # measured: 0.6 s; a loaded machine may take longer
    assert done.returncode == 0 and time.monotonic() - began < 5
    assert "transform: add_noise, inco, neither" in done.stdout
    assert "  num_clients=20\n        population N (a whole number of at least 1)" in done.stdout
    assert "  local.lr=0.001\n" in done.stdout and "name=${run_name:}" in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_wrong_between_groups_leaves_nothing(type_command, tmp_path, workers: int) -> None:
    """It is found when the classes are there, beside the workers that import them too."""
    words = ("algorithm=scaffold", "split.bn_images=5", f"engine.workers={workers}")
    done = type_command("debug=tiny", *words)
    assert (
        done.returncode == 2 and "2 problems in the settings; nothing has been run" in done.stderr
    )
    assert "split.bn_images=5 with split.bn=aggregated" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_problems_of_groups_and_between_them_are_one_message(type_command, tmp_path) -> None:
    done = type_command("algorithm=fednova", "partition.alpha=0", "model.widths=[8,8]", "locl.lr=1")
    assert done.returncode == 2 and "4 problems" in done.stderr, done.stderr
    for part in ("local=adam", "partition.alpha=0", "model.widths=[8, 8]", "locl.lr=1"):
        assert part in done.stderr


def test_the_front_door_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv=['run.py']; import run; print([m for m in"
        " ('torch','timm','wandb','torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_two_problems_in_one_message(type_command, tmp_path: Path) -> None:
    done = type_command("local.lr=-1", "algoritm=fedavg")
    assert done.returncode == 2
    assert "2 problems" in done.stderr and "local.lr=-1: must be above 0" in done.stderr
    assert "algoritm=fedavg: no such setting; did you mean algorithm?" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "outputs").exists(), (
        "nothing has been run"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["split=stag"], ["split=stag: no such option; did you mean stage?"]),
        (["local.lrr=1"], ["local.lrr=1: no such setting; did you mean local.lr?"]),
        (["+local.extra=1"], ["+local.extra=1: no such setting"]),
        (["rounds=1e3"], ["rounds=1000", "whole number"]),
        (["-m", "seed=0,1", "local.lr=0.1,-2"], ["1 problem", "local.lr=-2"]),
        (
            ["-m", "algorithm=fedavg,fedavgg"],
            ["algorithm=fedavgg: no such option; did you mean fedavg?"],
        ),
        (["partition=fixed"], ["partition.path", "give it a value"]),
        (["local.lr="], ["local.lr="]),
        (["debug=null"], ["debug=null: leave it out", "tiny"]),
        (["foo"], ["foo"]),
    ],
)
def test_mistakes_get_a_clean_message(type_command, arguments: list[str], words: list[str]) -> None:
    done = type_command(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_a_folder_that_cannot_be_written(type_command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = type_command(*SMALL, "hydra.run.dir=file/run")
    assert done.returncode == 74 and "Traceback" not in done.stderr and "file" in done.stderr


@pytest.mark.full
def test_missing_data_is_one_screen_and_exit_3(type_command) -> None:
    done = type_command(
        "dataset=cifar10", "dataset.root=nowhere", "tracker=none", "engine.workers=1"
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert (
        "nowhere" in done.stderr
        and "python -m inco.data fetch cifar10" in done.stderr
        and "experiment=quickstart" in done.stderr
    )
    assert len(done.stderr.splitlines()) < 40


def test_a_run_leaves_what_the_contract_says(type_command, tmp_path: Path) -> None:
    done = type_command(*SMALL)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path)
    assert folder.name.startswith("synthetic-resnet_tiny-stage-fedavg-inco-s0-")
    for name in (
        ".hydra/config.yaml",
        "metrics.jsonl",
        "summary.json",
        "checkpoint",
        "run.log",
        "partition.png",
    ):
        assert (folder / name).exists(), name
    rows, summary = read_rows(folder), read_summary(folder)
    names = [key.removeprefix("params/") for key in summary if key.startswith("params/")]
    assert names == ["resnet10", "resnet14", "resnet18", "resnet22", "resnet26"]
    per_round = {
        "round",
        "test/acc",
        "test/loss",
        "train/loss",
        "update/norm",
        "comm/up_bytes",
        "comm/down_bytes",
        "compute/flops",
    }
    times = {"time/train_s", "time/eval_s", "time/round_s"}
    assert all(per_round | times | {f"test/acc/{n}" for n in names} <= set(row) for row in rows)
    assert {
        "test/acc",
        "test/acc_best",
        "round_best",
        "rounds",
        "wall_s",
        "peak_rss_bytes",
        "seed",
        "digest",
        "versions",
    } <= set(summary)
    assert (
        summary["status"] == "finished"
        and summary["rounds"] == 2 == len(rows)
        and {f"flops/{n}" for n in names} <= set(summary)
    )
    assert abs(rows[-1]["test/acc"] - sum(rows[-1][f"test/acc/{n}"] for n in names) / 5) < 1e-9
    last = done.stdout.strip().splitlines()[-2:]
    assert folder.name in last[0] and "python run.py" in last[1]

    again = type_command(*SMALL)
    assert again.returncode == 0 and "already finished" in again.stdout
    assert read_rows(folder) == rows, "a finished run does nothing"

    more = type_command(*SMALL, "rounds=4")
    assert more.returncode == 0 and "going on after round 2" in more.stdout
    assert read_rows(folder)[:2] == rows and len(read_rows(folder)) == 4

    fresh = type_command(*SMALL, "rounds=2", "fresh=true")
    assert fresh.returncode == 0 and timeless(read_rows(folder)) == timeless(rows)


@pytest.mark.full
def test_hydra_run_dir_is_honoured_and_guarded(type_command, tmp_path: Path) -> None:
    assert type_command(*SMALL, "hydra.run.dir=here/run").returncode == 0
    assert (tmp_path / "here/run/summary.json").exists()
    other = type_command(*SMALL, "hydra.run.dir=here/run", "local.lr=0.5")
    assert (
        other.returncode == 2
        and "local.lr: this folder's run has 0.001, this command 0.5" in other.stderr
    )
    assert read_summary(tmp_path / "here/run")["status"] == "finished", (
        "the record of the other run is untouched"
    )


@pytest.mark.full
def test_workers_resume_and_wandb_leave_every_bit(type_command, tmp_path: Path) -> None:
    """Six rounds: 1, 2 and 3 workers, W&B on, and 3 + resume + 3 with other worker counts: one
    sha256, one record.
    """
    ways = {
        "one": [("rounds=6", "engine.workers=1")],
        "two": [("rounds=6", "engine.workers=2")],
        "three": [("rounds=6", "engine.workers=3")],
        "wandb": [("rounds=6", "engine.workers=1", "tracker=wandb", "tracker.mode=offline")],
        "resumed": [("rounds=3", "engine.workers=2"), ("rounds=6", "engine.workers=1")],
    }
    found = {}
    for name, sessions in ways.items():
        for arguments in sessions:
            done = type_command(*TINY, *arguments, f"hydra.run.dir={name}")
            assert done.returncode == 0, done.stderr
        found[name] = (
            read_summary(tmp_path / name)["weights_sha256"],
            json.dumps(timeless(read_rows(tmp_path / name))),
        )
    assert len(set(found.values())) == 1, {name: sha for name, (sha, _) in found.items()}


@pytest.mark.full
def test_torchrun_joins_its_ranks(type_command, tmp_path: Path) -> None:
    alone = type_command(*SMALL, "hydra.run.dir=alone")
    assert alone.returncode == 0, alone.stderr
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = type_command(*SMALL, "hydra.run.dir=torchrun", launcher=torchrun)
    assert done.returncode == 0, done.stderr
    one, two = read_summary(tmp_path / "alone"), read_summary(tmp_path / "torchrun")
    assert one["weights_sha256"] == two["weights_sha256"] and two["workers"] == 2


@pytest.mark.full
def test_a_sweep_makes_a_folder_and_a_wandb_run_each_and_a_table(
    type_command, tmp_path: Path
) -> None:
    done = type_command(
        "-m",
        *SMALL,
        "transform=none,inco",
        "seed=0,1",
        "tracker=wandb",
        "tracker.mode=offline",
        "rounds=1",
    )
    assert done.returncode == 0, done.stderr
    outputs = tmp_path / "outputs"
    folders = [p for p in outputs.iterdir() if p.is_dir() and p.name not in ("wandb", "sweeps")]
    assert len(folders) == 4 and all(read_summary(p)["status"] == "finished" for p in folders)
    assert len(list((outputs / "wandb").glob("offline-run-*"))) == 4
    table = done.stdout[done.stdout.rindex("job") :]
    assert table.count("finished") == 4 and all(p.name[:30] in done.stdout for p in folders)


@pytest.mark.full
def test_a_sweep_goes_on_past_a_failed_job(type_command, tmp_path: Path) -> None:
    done = type_command("-m", *SMALL, "local=sgd", "local.lr=1e30,0.01", "rounds=1")
    assert done.returncode == 4, "the worst exit code of its jobs"
    table = done.stdout[done.stdout.rindex("job") :]
    assert "failed" in table and "finished" in table
    assert (
        "nothing of this round has been applied" in done.stderr and "Traceback" not in done.stderr
    )


@pytest.mark.full
def test_a_setting_without_default_can_be_given(type_command, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(
        json.dumps({str(c): list(range(10 * c, 10 * c + 10)) for c in range(5)})
    )
    done = type_command(*SMALL, "rounds=1", "partition=fixed", "partition.path=p.json")
    assert done.returncode == 0 and "10 to 10 examples each" in done.stdout, done.stderr


@pytest.mark.full
def test_own_config_folder_and_own_class(type_command, tmp_path: Path) -> None:
    """A user's own algorithm: one file, one YAML, no change of this project."""
    (tmp_path / "mine.py").write_text(
        "from inco.algorithms.fedavg import Algorithm\n\n\n"
        "class Halved(Algorithm):\n"
        "    def server_update(self, server, aggregate):\n"
        "        return aggregate.mean['delta'] / 2\n"
    )
    (tmp_path / "conf" / "algorithm").mkdir(parents=True)
    (tmp_path / "conf" / "algorithm" / "halved.yaml").write_text("_target_: mine.Halved\n")
    arguments = (
        "--config-dir",
        "conf",
        *SMALL,
        "algorithm=halved",
        "rounds=1",
        "engine.workers=2",
        "hydra.run.dir=own",
    )
    refused = type_command(*arguments)
    assert refused.returncode == 2 and "INCO_ALLOW_TARGETS=mine" in refused.stderr
    env = {"INCO_ALLOW_TARGETS": "mine", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = type_command(*arguments, env=env)
    assert done.returncode == 0, done.stderr
    assert type_command(*SMALL, "rounds=1", "hydra.run.dir=plain").returncode == 0
    own, plain = read_rows(tmp_path / "own")[0], read_rows(tmp_path / "plain")[0]
    assert own["train/loss"] == plain["train/loss"] and own["update/norm"] < plain["update/norm"]

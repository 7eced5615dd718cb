"""The planner: what it counts, what it adds up, what it measures, and that it records nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import heard
from support import ROOT, TINY, read_summary

from inco.clients.local import SGD
from inco.errors import ConfigError
from inco.plan.__main__ import main
from inco.plan.arithmetic import (
    Client,
    Counts,
    LevelTimes,
    Schedule,
    Times,
    disk_bytes,
    estimate,
    side_by_side,
    training_seconds,
)
from inco.plan.counting import batch_sizes
from inco.plan.points import kinds, plan_jobs
from inco.plan.standin import prepared
from inco.plan.survey import survey

pytestmark = pytest.mark.full

CONF = ROOT / "conf"
QUIET = (*TINY, "tracker=none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(tmp_path: Path, *words: str) -> dict:
    """Plan with a JSON file, and return what it holds."""
    assert main([*words, "--json", str(tmp_path / "plan.json"), "--conf", str(CONF)]) == 0
    return json.loads((tmp_path / "plan.json").read_text())


def test_runs_of_one_cost_are_one_kind() -> None:
    jobs = plan_jobs(CONF, ["transform=none,inco", "seed=0,1,2", "local.lr=0.1,0.01"])
    found = kinds(jobs)
    assert len(jobs) == 12 and [len(kind.jobs) for kind in found] == [6, 6]
    assert [kind.label for kind in found] == ["transform=none", "transform=inco"]
    assert found[0].unit == found[1].unit, "the transform is timed beside"
    assert [job.settings["seed"] for job in found[0].jobs] == [0, 0, 1, 1, 2, 2]
    assert len(kinds(plan_jobs(CONF, ["algorithm=fedavg,moon", "num_clients=20,40"]))) == 4


def test_a_zero_is_another_kind() -> None:
    assert len(kinds(plan_jobs(CONF, ["algorithm=moon", "algorithm.mu=0,1,5"]))) == 2


def test_a_step_on_the_line_through_what_was_measured() -> None:
    level = LevelTimes([(64, 0.64), (4, 0.10)])
    assert level.step(64) == pytest.approx(0.64) and level.step(4) == pytest.approx(0.10)
    assert level.step(34) == pytest.approx(0.37)
    assert LevelTimes([(10, 0.5)]).step(20) == pytest.approx(1.0)
    assert LevelTimes([(64, 0.1), (4, 0.2)]).step(64) == pytest.approx(0.1), (
        "noise makes no step cheaper for having more images"
    )


def test_batches_of_an_epoch() -> None:
    assert batch_sizes(SGD(3, 64, 0.1), 150, 2) == [64, 64, 22]
    assert batch_sizes(SGD(3, 64, 0.1, drop_last=True), 150, 2) == [64, 64]
    assert batch_sizes(SGD(3, 64, 0.1), 129, 2) == [64, 65], "one example joins the batch before"
    assert batch_sizes(SGD(3, 64, 0.1), 10, 2) == [10]


SMALL, LARGE = (Client(level, 200, [64, 64, 64, 16]) for level in (0, 1))
COUNTS = Counts(epochs=5, cohorts=[[SMALL, SMALL, LARGE]])
TIMES = Times(
    {0: LevelTimes([(64, 0.1), (16, 0.04)], overhead=0.5), 1: LevelTimes([(64, 0.2), (16, 0.08)], overhead=1.0, start=0.01)},
    server=0.3, transform=0.2, image=0.001, images=1000, norm=0.5, watched=2.0, checkpoint=0.25, fixed=7.0,
)  # fmt: skip


def test_a_round_by_hand() -> None:
    small, large = 0.5 + 5 * (3 * 0.1 + 0.04), 1.0 + 2.0 + 5 * (3 * 0.2 + 0.08)
    assert COUNTS.steps == 60
    assert training_seconds(COUNTS, TIMES, 1) == pytest.approx(2 * small + large)
    found = estimate(
        COUNTS, TIMES, Schedule(rounds=10, eval_every=4, checkpoint_every=5, every=5), workers=1
    )
    assert found.training == pytest.approx(
        10 * (2 * small + large)
    ) and found.server == pytest.approx(5.0)
    assert found.scoring == pytest.approx(3 * 1.5), "rounds 4, 8 and the last"
    assert found.rest == pytest.approx(3 * 2.0 + 2 * 0.25), (
        "rounds 1, 5, 10 are watched, 5 and 10 saved"
    )
    assert found.seconds(4) == pytest.approx(7 + 4 * found.a_round) and found.seconds(0) == 0


def test_workers_share_a_cohort_as_well_as_clients_can_be_dealt_out() -> None:
    small, large = 2.2, 6.4
    assert training_seconds(COUNTS, TIMES, 1) == pytest.approx(2 * small + large)
    assert training_seconds(COUNTS, TIMES, 2) == pytest.approx(large)
    assert training_seconds(COUNTS, TIMES, 3) == pytest.approx(large)
    many = Schedule(rounds=10, eval_every=4, checkpoint_every=5)
    found = estimate(COUNTS, TIMES, many, workers=8)
    assert found.training == pytest.approx(10 * large), "no more workers than clients"
    assert found.scoring == pytest.approx(3 * 1.5 / 3)


def test_steps_of_an_average_round() -> None:
    assert Counts(5, [[SMALL, LARGE], [LARGE]]).steps == 5 * (8 + 4) / 2


def test_side_by_side() -> None:
    assert (
        side_by_side([3, 3, 2, 2, 2], 2) == 7
        and side_by_side([5.0], 4) == 5
        and side_by_side([], 2) == 0
    )


def test_disk_of_clients_that_have_taken_part() -> None:
    sizes = {
        "cohort": 10,
        "checkpoint_bytes": 1000,
        "client_bytes": 7,
        "row_bytes": 3,
        "fixed_bytes": 50,
    }
    everybody = disk_bytes({**sizes, "cohort": 100}, Schedule(20, 1, 5), 100)
    assert everybody == {
        "checkpoint": 2000,
        "clients": (100 + 5 * 100) * 7,
        "rest": 50 + 3 * 20 * 3,
    }
    first = disk_bytes(sizes, Schedule(1, 1, 1), 100)
    assert first["checkpoint"] == 1000 and first["clients"] == pytest.approx(70)


def test_a_real_folder_holds_what_was_planned(type_command, tmp_path: Path) -> None:
    """SCAFFOLD: two checkpoints, and each client's vectors in a file.

    A finished run is counted as such, and costs nothing more.
    """
    words = (
        *QUIET,
        "algorithm=scaffold",
        "local=sgd",
        "local.momentum=0",
        "engine.workers=1",
        "server=adam",
    )
    plan = planned(tmp_path, *words, "--no-measure")
    assert (plan["totals"]["runs"], plan["totals"]["finished"], plan["totals"]["rounds_left"]) == (
        1,
        0,
        2,
    )
    assert type_command(*words).returncode == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    disk = plan["kinds"][0]["disk"]
    for part, place in (("checkpoint", "checkpoint"), ("clients", "clients")):
        real = sum(path.stat().st_size for path in (folder / place).rglob("*") if path.is_file())
        assert disk[part] == pytest.approx(real, rel=0.05), part
    again = planned(tmp_path, *words, "seed=0,1", "--no-measure")
    assert (
        again["totals"]["runs"],
        again["totals"]["finished"],
        again["totals"]["rounds_left"],
    ) == (2, 1, 2)
    more = planned(tmp_path, *words, "rounds=5", "--no-measure")
    assert (more["totals"]["finished"], more["totals"]["rounds_left"]) == (
        0,
        3,
    ), "a longer run goes on after its last checkpoint"


@pytest.mark.parametrize("algorithm", ["moon", "feddyn"])
@pytest.mark.parametrize("split", ["stage", "rolling"])
def test_clients_vectors_have_the_planned_size(
    algorithm: str, split: str, tmp_path: Path, type_command
) -> None:
    words = (
        *QUIET,
        f"algorithm={algorithm}",
        f"split={split}",
        "engine.workers=1",
        "rounds=1",
        "capacity=all_small",
    )
    (sizes,) = [survey(kind.settings) for kind in kinds(plan_jobs(CONF, words))]
    assert type_command(*words).returncode == 0
    files = [path for path in (tmp_path / "outputs").glob("*/clients/*/*")]
    assert len(files) == 5 and {path.stat().st_size for path in files} == {sizes["client_bytes"]}


def test_a_tiny_run_takes_what_was_planned_and_nothing_is_recorded(
    type_command, tmp_path: Path
) -> None:
    words = (*QUIET, "rounds=8", "engine.workers=1", "local.epochs=3")
    plan = planned(tmp_path, *words, "--limit", "60")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"], "no outputs/"
    (kind,) = plan["kinds"]
    assert type_command(*words).returncode == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    real = read_summary(folder)
    assert kind["seconds"] > 0 and 1 / 3 < kind["seconds"] / real["wall_s"] < 3
    assert 0.5 < kind["memory_bytes"] / real["peak_rss_bytes"] < 1.5
    assert plan["totals"]["seconds"] == kind["seconds"] and "steps" in kind["measured"]


@pytest.mark.parametrize(
    "words",
    [
        [
            "algorithm=moon",
            "diagnostics=all",
            "diagnostics.images=20",
            "diagnostics.batch=20",
            "diagnostics.layers=[conv1]",
            "split=width",
        ],
        ["split=inclusive", "capacity=resampled", "transform=none"],
    ],
    ids=["moon, static BatchNorm, diagnostics", "resampled levels"],
)
def test_other_methods_are_measured(words: list[str], tmp_path: Path) -> None:
    plan = planned(tmp_path, *QUIET, *words, "--limit", "60")
    (kind,) = plan["kinds"]
    assert kind["notes"] in (
        [],
        [note for note in kind["notes"] if "busy" in note],
    ), "measured whole"
    assert kind["estimate"]["training"] > 0 and kind["estimate"]["scoring"] > 0
    assert ("arrays_bytes" in kind["sizes"]) == ("diagnostics=all" in words)


def test_two_whole_rounds(tmp_path: Path) -> None:
    (kind,) = planned(tmp_path, *QUIET, "--measure", "full")["kinds"]
    assert kind["estimate"]["training"] > 0 and kind["measured"].endswith("40 images")


def test_absent_data_have_a_stand_in(tmp_path: Path) -> None:
    (job,) = plan_jobs(CONF, ["dataset=cifar10", "dataset.root=nothing"])
    whole, notes = prepared(job.settings)
    assert "cifar10 is not on this machine" in notes[0]
    from inco.config.targets import build

    source = build("dataset", whole["dataset"])
    data = source.load()
    assert data.train.images.shape == (50_000, 3, 32, 32) and data.train.images.dtype == torch.uint8
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert source.recipe("resnet", None).shape == (3, 32, 32)
    assert job.settings["dataset"]["_target_"].endswith("CIFAR10"), "the run's own settings stay"


def test_absent_partition_files_are_replaced_by_draws() -> None:
    jobs = plan_jobs(
        CONF, ["partition=fixed", "partition.path=fix-100-0.5.npy,fix-100-1.0.npy", "seed=0,1"]
    )
    assert sorted(job.settings["partition"]["alpha"] for job in jobs) == [0.5, 0.5, 1.0, 1.0]
    assert (
        "fix-100-1.0.npy: no such file; counted with a Dirichlet partition (alpha 0.5, 1.0)"
        in jobs[0].note
    )
    with pytest.raises(ConfigError, match=r"local\.lr=-1"):
        plan_jobs(CONF, ["partition=fixed", "partition.path=nowhere.npy", "local.lr=-1"])


@pytest.mark.parametrize(
    "words",
    [[], ["dataset=fashion_mnist", "partition.path=hetero-fix-100-0.5.npy,hetero-fix-100-1.0.npy"]],
)
def test_partition_files_that_an_experiment_names(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a folder without the files, also where somebody has the published ones
    monkeypatch.setenv("INCO_OFFICIAL_PARTITIONS", str(tmp_path))
    jobs = plan_jobs(
        CONF,
        [
            "experiment=table2_resnet_official",
            "algorithm=fedavg",
            "transform=none",
            "seed=0",
            *words,
        ],
    )
    assert [job.settings["partition"]["alpha"] for job in jobs] == [0.5, 1.0] * (1 if words else 4)
    assert "no such file; counted with" in jobs[0].note and (
        "/SVHN_hetero-fix-100-1.0.npy" in jobs[0].note
    ) == (not words)


def test_folders_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seed=0,1", "name=a${seed}", "--folders", "--conf", str(CONF)]) == 0
    assert capsys.readouterr().out.split() == ["outputs/a0", "outputs/a1"]


def test_wrong_words_get_the_messages_of_run_py(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local.lr=-1", "split=stagee", "--conf", str(CONF)]) == 2
    said = capsys.readouterr().err
    assert (
        "2 problems in the settings; nothing has been run" in said and "did you mean stage?" in said
    )
    assert (
        main(["--limit", "3", "--no-measure", "--conf", str(CONF)]) == 2
        and "nothing is measured" in capsys.readouterr().err
    )
    assert main(["--conf", "nowhere"]) == 2 and "--conf DIR" in capsys.readouterr().err


def test_too_little_time_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    plan = planned(tmp_path, *QUIET, "--limit", "0.05")
    assert plan["kinds"][0]["estimate"] is None and time.monotonic() - began < 60
    assert "nothing was measured within 0.05 s" in capsys.readouterr().out


def test_sizes_by_capacity(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split=width", "--sizes", "--conf", str(CONF)]) == 0
    said = capsys.readouterr().out
    assert "w1/16" in said and "1,093,818" in said and "mean" in said


def test_counts_come_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from inco.plan.__main__ import main\n"
        f"assert main(['seed=0,1', '--no-measure', '--conf', {str(CONF)!r}]) == 0\n"
        "print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.stdout.splitlines()[-1] == "[]" and "python run.py -m seed=0,1" in done.stdout, (
        done.stderr
    )


def test_a_planner_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inco.plan", "--conf", str(CONF)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None and "measuring 1/1" in process.stderr.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 10
    while not (mine := children.read_text().split()) and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert mine
    while (
        Path(f"/proc/{mine[0]}").exists()
        and "State:\tZ" not in Path(f"/proc/{mine[0]}/status").read_text()
    ):
        assert time.monotonic() < until + 20, "it goes on"
        time.sleep(0.2)


def test_ctrl_c_ends_quietly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inco.plan", "--conf", str(CONF)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, preexec_fn=heard, **pipes)
    assert process.stderr is not None and "measuring 1/1" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors and out == ""

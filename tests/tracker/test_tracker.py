"""W&B mirrors a run and never stops one: offline runs read back, broken servers, errors on the way,
secrets.
"""

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TINY, read_summary
from wandb_server import KEY

from inco.errors import ConfigError
from inco.tracker import NoTracker, RunInfo, Wandb
from inco.tracker.workspace import CHARTS, workspace
from inco.tracker.workspace import main as save_workspace

pytest.importorskip("wandb")
WANDB = Path(sys.executable).with_name("wandb")
# 2 x 2, grey
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGMQUGAwcAAAAXYAoewwivQAAAAASUVORK5CYII="


def info(folder, **more):
    config = {"seed": 1, "algorithm": {"name": "fedprox", "mu": 0.05}}
    return RunInfo(
        name=folder.name,
        folder=folder,
        tags=("digits", "stage"),
        group="table2",
        config=config,
        **more,
    )


def play(tracker, run, accuracies=(20.0, 60.0, 50.0), exit_code=0):
    run.folder.mkdir(parents=True, exist_ok=True)
    line = tracker.start(run)
    for round_, acc in enumerate(accuracies, 1):
        tracker.log(
            {"round": round_, "test/acc": acc, "train/loss": 1 / round_, "bad": float("nan")},
            round_,
        )
    tracker.finish(
        {"test/acc": accuracies[-1], "test/acc_best": max(accuracies), "none": float("inf")},
        exit_code,
    )
    return line


def inspect(folder, *options):
    """Read a run back with W&B's own reader."""
    args = [str(WANDB), "leet", "inspect", "--json", *options, str(folder)]
    done = (
        subprocess.run(args, capture_output=True, text=True, timeout=60) if WANDB.exists() else None
    )
    if done is None or done.returncode:
        pytest.skip("wandb leet inspect does not run here")
    return (
        [json.loads(text) for text in done.stdout.splitlines()]
        if not options
        else json.loads(done.stdout)
    )


def runs(outputs):
    return sorted((outputs / "wandb").glob("*run-*"))


@pytest.mark.full
def test_two_runs_in_one_process_are_two_runs_and_read_back(tmp_path, capfd):
    outputs = tmp_path / "outputs"
    first, second = Wandb(tags=["mine"]), Wandb()
    line = play(first, info(outputs / "a"))
    play(second, info(outputs / "b"), (30.0, 10.0), exit_code=1)
    assert (
        "offline (no API key)" in line
        and "wandb sync" in line
        and first.warnings == second.warnings == []
    )
    assert capfd.readouterr() == ("", "")  # nothing of W&B's own chatter
    ids = [(outputs / name / "wandb_id").read_text().strip() for name in "ab"]
    folders = {path.name.rsplit("-", 1)[1]: path for path in runs(outputs)}
    assert set(folders) == set(ids) and str(folders[ids[0]]) in line
    told = [inspect(folders[id_], "--summary") for id_ in ids]
    assert [(one["state"], one["exit_code"], one["name"], one["project"]) for one in told] == [
        ("finished", 0, "a", "inco"), ("failed", 1, "b", "inco"),
    ]  # fmt: skip
    assert told[0]["config"] == {"seed": 1, "algorithm": {"name": "fedprox", "mu": 0.05}}
    assert told[0]["tags"] == ["digits", "stage", "mine"] and told[1]["tags"] == ["digits", "stage"]
    last = told[0]["summary"]
    assert last["test/acc"] == {"last": 50, "max": 60} and last["test/acc_best"] == 60
    assert last["round"] == 3 and last["bad"] == "NaN"
    assert told[1]["summary"]["test/acc"] == {"last": 10, "max": 30}
    records = inspect(folders[ids[0]])  # the axis is round, and every value is there
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["round"], row["test/acc"], row["train/loss"]) for row in rows] == [
        (1, 20, 1),
        (2, 60, 0.5),
        (3, 50, 1 / 3),
    ]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert {metric.get("glob_name") or metric["name"]: metric.get("step_metric") for metric in metrics} == {
        "round": None, "*": "round", "test/acc": "round",
    }  # fmt: skip
    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["run_group"] == "table2" and run["job_type"] == "train"


@pytest.mark.full
def test_an_image_is_kept_and_a_bad_one_stops_only_images(tmp_path):
    tracker, run = Wandb(), info(tmp_path / "outputs/a")
    run.folder.mkdir(parents=True)
    (tmp_path / "map.png").write_bytes(base64.b64decode(PNG))
    tracker.start(run)
    tracker.image("cka", tmp_path / "map.png", 1)
    tracker.image("cka", tmp_path / "missing.png", 2)
    tracker.image("cka", tmp_path / "map.png", 3)
    tracker.log({"test/acc": 5.0}, 3)
    tracker.finish({}, 0)
    home = runs(tmp_path / "outputs")[0]
    assert len(list(home.glob("files/media/images/*.png"))) == 1
    assert (
        len(tracker.warnings) == 1
        and "no more images" in tracker.warnings[0]
        and "missing.png" in tracker.warnings[0]
    )
    assert inspect(home, "--summary")["summary"]["round"] == 3


def test_a_resumed_run_goes_on_under_its_id_and_a_fresh_one_does_not(tmp_path):
    run = info(tmp_path / "outputs/a")
    for _ in range(2):
        play(Wandb(), run)
    first = (run.folder / "wandb_id").read_text()
    assert [first.strip() in path.name for path in runs(tmp_path / "outputs")] == [True, True]
    shutil.rmtree(run.folder)
    play(Wandb(), run)
    assert (run.folder / "wandb_id").read_text() != first


def leaks(folder):
    return [
        path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
    ]


def test_a_server_that_cannot_be_reached_means_offline_and_no_key_is_stored(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    began = time.monotonic()
    tracker = Wandb()
    line = play(tracker, info(tmp_path / "outputs/a"))
    assert (
        time.monotonic() - began < 15
        and "offline (127.0.0.1 not reachable" in line
        and tracker.warnings == []
    )
    assert inspect(runs(tmp_path / "outputs")[0], "--summary")["summary"]["round"] == 3
    assert leaks(tmp_path) == [] and capfd.readouterr() == ("", "") and KEY not in line


@pytest.mark.parametrize(
    ("front", "key", "why"), [(503, KEY, "127.0.0.1 answered 503"), (200, "short", "")]
)
def test_a_server_out_of_order_or_a_malformed_key_means_offline(
    tmp_path, monkeypatch, server, front, key, why
):
    monkeypatch.setenv("WANDB_BASE_URL", server(front))
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert f"offline ({why}" in play(Wandb(timeout_s=1), info(tmp_path / "outputs/a"))


@pytest.mark.full
def test_a_server_that_stalls_at_the_start_means_offline_in_time(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_BASE_URL", server(200))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker, run = Wandb(mode="online", timeout_s=1), info(tmp_path / "outputs/a")
    began = time.monotonic()
    line = play(tracker, run)
    assert time.monotonic() - began < 8 and tracker.warnings == []
    id_ = (run.folder / "wandb_id").read_text().strip()
    assert "offline (" in line and f"wandb sync --id {id_} " in line and leaks(tmp_path) == []
    assert len(runs(tmp_path / "outputs")) == 1  # nothing half-made left of the online start
    assert inspect(runs(tmp_path / "outputs")[0], "--summary")["summary"]["test/acc"] == {
        "last": 50,
        "max": 60,
    }


@pytest.mark.full
def test_a_server_that_stalls_at_the_end_is_not_waited_for(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_BASE_URL", server(200, lets_in=True))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("inco.tracker.TOTAL_S", 4.0)
    tracker, began = Wandb(), time.monotonic()
    line = play(tracker, info(tmp_path / "outputs/a"))
    assert time.monotonic() - began < 8 and line.startswith("W&B: online at http://127.0.0.1:")
    home = runs(tmp_path / "outputs")[0]
    assert (
        len(tracker.warnings) == 1
        and tracker.warnings[0].endswith(f"wandb sync {home}")
        and leaks(tmp_path) == []
    )
    assert inspect(home, "--summary")["summary"]["round"] == 3  # all of it is on the disk


def test_a_silent_socket_is_waited_for_no_longer_than_told(monkeypatch):
    from inco.tracker.wandb_tools import no_answer

    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        said = no_answer(f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}", 0.4)
    assert time.monotonic() - began < 2 and said.startswith("127.0.0.1 ") and "secret" not in said


def test_netrc_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (tmp_path / "home/.netrc").write_text(f"machine 127.0.0.1:9 login user password {KEY}\n")
    (tmp_path / "home/.netrc").chmod(0o600)
    assert (
        "not reachable" in play(Wandb(), info(tmp_path / "outputs/a"))
        and leaks(tmp_path / "outputs") == []
    )


class Broken:
    """A W&B run whose every call fails."""

    def __getattr__(self, name):
        def fail(*_args, **_kwargs):
            raise RuntimeError(f"{name} is broken")

        return fail


def test_an_error_on_the_way_turns_it_off_with_one_warning(tmp_path):
    tracker, run = Wandb(mode="offline"), info(tmp_path / "outputs/a")
    run.folder.mkdir(parents=True)
    tracker.start(run)
    tracker._run = Broken()
    for round_ in (1, 2, 3):
        tracker.log({"x": 1.0}, round_)
        tracker.image("i", tmp_path / "x.png", round_)
    tracker.finish({"x": 1}, 0)
    assert tracker.warnings == [
        "W&B stopped at round 1 and is off for this run: log is broken; metrics.jsonl has every"
        " round"
    ]


def test_an_error_at_the_start_or_the_end_is_a_warning(tmp_path, monkeypatch):
    import wandb

    tracker = Wandb(mode="offline")
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", Broken().init)
        line = play(tracker, info(tmp_path / "outputs/a"))
    assert line == tracker.warnings[0] and "could not start" in line and len(tracker.warnings) == 1
    tracker._run = Broken()
    tracker.finish({}, 0)
    assert "could not close" in tracker.warnings[1]
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "off for this run" in Wandb().start(info(tmp_path / "outputs/a"))
    monkeypatch.undo()


def test_wandb_mode_of_the_environment_counts_where_the_setting_is_auto(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (
        play(Wandb(), info(tmp_path / "outputs/a")) is None
        and not (tmp_path / "outputs/wandb").exists()
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "offline (as asked)" in play(Wandb(), info(tmp_path / "outputs/a"))


def test_wrong_settings_are_told_together():
    with pytest.raises(ConfigError) as caught:
        Wandb(mode="on", timeout_s=60)
    mode, timeout = caught.value.problems
    assert mode == "tracker.mode=on: must be one of auto, online, offline"
    assert timeout == "tracker.timeout_s=60: must be in (0, 10]"


DYING = """
import os, signal, subprocess, sys, time
from pathlib import Path
import inco.tracker as tracker
assert "wandb" not in sys.modules
it = tracker.Wandb(mode="offline")
folder = Path(sys.argv[1]) / "outputs/a"; folder.mkdir(parents=True)
it.start(tracker.RunInfo("a", folder))
it.log({"x": 1.0}, 1)
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
for child in children: os.kill(int(child), signal.SIGKILL)
time.sleep(0.3)
began = time.monotonic()
for r in range(2, 6): it.log({"x": 1.0}, r); time.sleep(0.05)
it.finish({"x": 1}, 0)
again = tracker.Wandb(mode="offline")
line = again.start(tracker.RunInfo("b", folder.parent / "b"))
again.log({"x": 1.0}, 1); again.finish({}, 0)
assert "offline (as asked)" in line and again.warnings == [], (line, again.warnings)
print(len(children), len(it.warnings), time.monotonic() - began)
"""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds W&B's service by /proc")
def test_the_death_of_wandbs_own_service_stops_nothing(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    children, warnings, took = done.stdout.split()
    assert done.stderr == ""  # no traceback of W&B's at the exit either
    assert (
        int(children) >= 1 and warnings == "1" and float(took) < 5 and time.monotonic() - began < 15
    )


def test_no_tracker_is_a_tracker(tmp_path):
    assert play(NoTracker(), info(tmp_path / "outputs/a")) is None and NoTracker().warnings == []


@pytest.mark.full
def test_a_run_mirrors_its_similarities_as_numbers_table_and_picture(type_command, tmp_path):
    words = [
        *TINY,
        "diagnostics=cka",
        "diagnostics.every=1",
        "diagnostics.images=16",
        "diagnostics.batch=8",
    ]
    done = type_command(
        *words, "tracker=wandb", "tracker.report=true", "name=one", env={"WANDB_MODE": "offline"}
    )
    assert done.returncode == 0, done.stderr
    (folder,) = runs(tmp_path / "outputs")
    told = inspect(folder, "--summary")
    assert (told["state"], told["summary"]["round"]) == ("finished", 2)
    assert {key for key in told["summary"] if key.startswith("cka/layer")} == {
        f"cka/layer{k}" for k in (1, 2, 3, 4)
    }
    table, picture = told["summary"]["cka/pairs"], told["summary"]["cka"]
    assert (table["_type"], table["ncols"], picture["_type"]) == (
        "table-file",
        5,
        "image-file",
    ) and table["nrows"] >= 20
    kept = json.loads((folder / "files" / table["path"]).read_text())
    assert kept["columns"] == ["round", "tap", "model", "other", "cka"] and {
        row[0] for row in kept["data"]
    } == {2}
    metrics = [record["metric"] for record in inspect(folder) if record["type"] == "metric"]
    assert ("*", "round") in [
        (metric.get("glob_name"), metric.get("step_metric")) for metric in metrics
    ]
    assert read_summary(tmp_path / "outputs" / "one")["warnings"] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_workspace_charts_everything_over_rounds_and_groups_seeds():
    pytest.importorskip("wandb_workspaces")
    model = workspace("me", "inco", "InCo")._to_model().model_dump(by_alias=True)
    sections = model["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [
        *dict.fromkeys(section for section, _, _ in CHARTS),
        "Pictures",
    ]
    charts = [
        panel["config"]
        for section in sections
        for panel in section["panels"]
        if panel["viewType"] == "Run History Line Plot"
    ]
    assert len(charts) == 12 and all(
        chart["xAxis"] == "round" and chart["groupBy"] == "group.value" for chart in charts
    )
    keys = [re.compile(chart["metricRegex"]) for chart in charts]
    for metric in (
        "test/acc",
        "test/acc/resnet10",
        "cka/layer4",
        "cka/blocks.7",
        "inco/theta/layer1.1.conv1",
        "time/train_s",
    ):
        assert sum(key.match(metric) is not None for key in keys) == 1, metric


def test_a_workspace_that_cannot_be_saved_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert save_workspace(["me"]) == 2 and "pip install" in capsys.readouterr().err

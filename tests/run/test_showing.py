"""What a run shows beside its record: it never stops the run, and comes again after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import TINY, read_rows, read_summary

from inco.run.pictures import tables
from inco.run.showing import Showing
from inco.tracker import NoTracker, RunInfo
from inco.tracker.tensorboard import TensorBoard

ALL = ("diagnostics=all", "diagnostics.every=1", "diagnostics.images=16", "diagnostics.batch=8")


class Noting(NoTracker):
    """A tracker that notes what it is given."""

    report = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def log(self, *given: Any) -> None:  # type: ignore[override]
        self.calls.append(("log", *given))

    def file(self, path: Path) -> None:  # type: ignore[override]
        self.calls.append(("file", path.name))

    def finish(self, *given: Any) -> None:  # type: ignore[override]
        self.calls.append(("finish", given[1]))


def test_a_picture_or_report_that_fails_is_a_warning_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    warnings: list[str] = []
    tracker = Noting()
    monkeypatch.setattr("inco.run.showing.draw", broken)
    monkeypatch.setattr("inco.report.write_run", broken)
    shown = Showing(tracker, tmp_path, warnings.append)
    shown.round(None, {"test/acc": 1.0}, 1)  # type: ignore[arg-type]
    shown.close({}, 0)
    assert [call[0] for call in tracker.calls] == ["log", "finish"]
    assert len(warnings) == 3 and all(
        "no space left" in line and "the numbers are complete" in line for line in warnings
    )


def test_the_report_is_refreshed_now_and_then_and_given_to_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []

    def write_run(folder: Path, live: bool) -> None:
        written.append(live)
        (folder / "report.html").write_text("x")

    monkeypatch.setattr("inco.report.write_run", write_run)
    monkeypatch.setattr("inco.run.showing.draw", lambda *_: iter(()))
    monkeypatch.setattr("inco.run.showing.tables", lambda *_: iter(()))
    clock = [100.0]
    monkeypatch.setattr("inco.run.showing.time.monotonic", lambda: clock[0])
    tracker = Noting()
    shown = Showing(tracker, tmp_path, print)
    for clock[0] in (100.0, 105.0, 109.0, 110.5, 112.0):
        shown.round(None, {}, 1)  # type: ignore[arg-type]
    assert written == [True, True], "in the first round, and ten seconds later"
    shown.close({}, 0)
    assert written == [True, True, False] and tracker.calls[-2:] == [
        ("file", "report.html"),
        ("finish", 0),
    ]


def test_a_table_has_a_row_for_each_pair_and_tap() -> None:
    matrix = np.array([[1, 0.5, np.nan], [0.5, 1, 0.25], [np.nan, 0.25, 1]])
    arrays = {
        "client": np.array([3, 7, -1]),
        "level": np.array([0, 1, 1]),
        "name": np.array(["small", "large", "large"]),
        "cka/a": matrix,
    }
    run: Any = SimpleNamespace(
        simulator=SimpleNamespace(diagnostics=SimpleNamespace(arrays={"cka": arrays}))
    )
    ((name, columns, rows),) = tables(run, 4)
    assert (name, columns) == ("cka/pairs", ("round", "tap", "model", "other", "cka"))
    assert rows == [
        [4, "a", "large client 7", "small client 3", 0.5],
        [4, "a", "large", "large client 7", 0.25],
    ]
    run.simulator.diagnostics.arrays = {}
    assert list(tables(run, 5)) == []


@pytest.mark.full
def test_a_run_leaves_its_report_and_a_sweep_its_comparison(type_command, tmp_path: Path) -> None:
    done = type_command("-m", *TINY, "tracker=none", "transform=none,inco")
    assert done.returncode == 0, done.stderr
    folders = [path.parent for path in (tmp_path / "outputs").glob("*/report.html")]
    assert len(folders) == 2 and all(
        f"report  outputs/{folder.name}/report.html" in done.stdout for folder in folders
    )
    (comparison,) = (tmp_path / "outputs" / "sweeps").glob("*/comparison.html")
    assert f"comparison  {comparison.relative_to(tmp_path)}" in done.stdout and done.stderr == ""
    again = type_command("-m", *TINY, "tracker=none", "transform=none,inco")
    assert again.returncode == 0 and list(
        (tmp_path / "outputs" / "sweeps").glob("*/comparison.html")
    ) == [comparison]


@pytest.mark.full
def test_about_says_what_is_known_from_the_start(type_command, tmp_path: Path) -> None:
    assert (
        type_command(
            *TINY, "tracker=none", "algorithm=fedprox", "algorithm.mu=0.5", "name=one"
        ).returncode
        == 0
    )
    about, summary = (
        json.loads((tmp_path / "outputs/one/about.json").read_text()),
        read_summary(tmp_path / "outputs/one"),
    )
    assert (
        about["choices"]["algorithm"] == "fedprox"
        and about["seed"] == 0
        and about["settings"] == summary["settings"]
    )
    assert about["capacities"] == [
        key.removeprefix("params/") for key in summary if key.startswith("params/")
    ]
    changes = {key: (value, default) for key, value, default in about["difference"]}
    assert (
        changes["algorithm"] == ("fedprox", "fedavg")
        and changes["algorithm.mu"] == (0.5, 0.1)
        and changes["rounds"] == (2, 25)
    )
    assert (
        changes["dataset.shape"] == ([1, 8, 8], [3, 32, 32])
        and "split" not in changes
        and "name" not in changes
    )


def test_tensorboard_has_the_numbers_by_round_and_hides_repeated_ones(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    first = TensorBoard()
    assert str(tmp_path / "tensorboard") in str(
        first.start(RunInfo("run", run, config={"seed": 1}))
    )
    for number in (1, 2, 3):
        first.log({"test/acc": 10.0 * number, "round": number}, number)
    first.table("cka/pairs", ("a", "b"), [[1, 2]], 3)
    first.finish({"rounds": 3}, 1)
    second = TensorBoard()
    second.start(RunInfo("run", run, config={"seed": 1}, rounds=2))
    second.log({"test/acc": 31.0}, 3)
    second.finish({"rounds": 3}, 0)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("test/acc")] == [
        (1, 10.0),
        (2, 20.0),
        (3, 31.0),
    ]
    assert {"settings/text_summary", "summary/text_summary"} <= set(
        events.Tags()["tensors"]
    ) and first.warnings == second.warnings == []


def test_tensorboard_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorBoard()
    tracker.start(RunInfo("run", tmp_path / "run"))
    tracker.image("cka", tmp_path / "missing.png", 1)
    tracker.log({"x": 1.0}, 1)
    tracker.finish({}, 0)
    assert (
        len(tracker.warnings) == 1
        and "missing.png" in tracker.warnings[0]
        and "is off for this run" in tracker.warnings[0]
    )
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    absent = TensorBoard()
    assert (
        absent.start(RunInfo("run", tmp_path / "run")) == absent.warnings[0]
        and "pip install" in absent.warnings[0]
    )
    absent.log({"x": 1.0}, 1)
    absent.finish({}, 0)


@pytest.mark.full
def test_a_run_with_tensorboard_is_the_same_run(type_command, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for name, tracker in (("with", "tensorboard"), ("without", "none")):
        done = type_command(*TINY, *ALL, f"name={name}", f"tracker={tracker}")
        assert done.returncode == 0, done.stderr
    outputs = tmp_path / "outputs"
    assert (
        read_summary(outputs / "with")["weights_sha256"]
        == read_summary(outputs / "without")["weights_sha256"]
    )
    assert (
        read_summary(outputs / "with")["warnings"] == [] and len(read_rows(outputs / "with")) == 2
    )
    assert list((outputs / "tensorboard" / "with").glob("events.*"))

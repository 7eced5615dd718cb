"""The benchmarks at tiny sizes: what a table holds, that every system does the product's work, and
what does not count as a measurement.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import ROOT

import inco.clients.trainer
from benchmarks.__main__ import main, parse
from benchmarks.driver import Round, Trial, run_trial
from benchmarks.events import Mover
from benchmarks.gpu import Session, timed
from benchmarks.machine import MARK, Sample, Watch
from benchmarks.material import Material
from benchmarks.report import rows_of
from benchmarks.systems import OURS, PEERS, System
from benchmarks.systems.floor import preload
from benchmarks.workloads import WORKLOADS
from inco.assembly import assemble
from inco.engine.ranks import Ranks


def quick(name: str, tmp_path: Path) -> dict:
    settings = WORKLOADS[name].settings(quick=True)
    return settings | {"engine": settings["engine"] | {"state_dir": str(tmp_path)}}


@pytest.mark.nightly
def test_w2_is_measured_shown_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The floor, InCo in float32 and with two real workers in bfloat16, and a plain loop."""
    out = tmp_path / "w2.json"
    assert main(["w2", "--quick", "--rounds", "1", "--out", str(out)]) == 0
    kept, shown = json.loads(out.read_text()), capsys.readouterr().out
    names = ["floor", "inco fp32, 1 worker", "inco bf16, 2 workers", "plain loop"]
    assert [row["system"] for row in kept["rows"]] == names and all(name in shown for name in names)
    for row in kept["rows"]:
        assert (
            not row["failed"]
            and row["rounds"] == 1
            and row["peak_mb"] > 50
            and row["start"]["median"] > 0
        )
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        both = row["clean"] and kept["rows"][0]["clean"]  # other tests run meanwhile
        assert (row["to_floor"] is not None) == bool(both)
    assert kept["rows"][2]["peak_mb"] > 1.5 * kept["rows"][1]["peak_mb"], (
        "both workers' memory is counted"
    )
    assert (
        kept["machine"]["cpu"]
        and kept["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    )
    assert all(
        r["number"] == 2 and r["moved"] > 0 and r["foreign"] >= 0
        for t in kept["trials"]
        for r in t["rounds"]
    )
    assert str(out) in shown.replace("\n", "") and "s/round" in shown


@pytest.mark.full
@pytest.mark.parametrize("name", ["w1", "w2", "gpu"])
def test_the_floor_takes_the_batches_of_the_products_round(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number, sizes and images, in the same order; levels too."""
    settings, taken = quick(name, tmp_path), []
    run = assemble(settings, Ranks(0, 1, torch.device("cpu")))
    order = [t.client for t in run.simulator.population.tasks(1)]
    plan = run.simulator.engine.assignment(run.simulator.population.tasks(1))[0]
    take = inco.clients.trainer.take
    monkeypatch.setattr(
        inco.clients.trainer,
        "take",
        lambda images, *rest: taken.append(take(images, *rest)) or taken[-1],
    )
    run.simulator.engine.map_reduce(*_round(run.simulator, settings["seed"]))
    monkeypatch.undo()
    material = Material(settings)
    clients = material.clients(1)
    assert [c.number for c in clients] == order and {c.level for c in clients} <= set(
        material.levels
    )
    wanted = [material.batch(index) for position in plan for index in clients[position].batches]
    assert [len(y) for _, y in wanted] == [len(y) for _, y in taken]
    assert all(
        torch.equal(a, b) and torch.equal(x, z)
        for (x, a), (z, b) in zip(wanted, taken, strict=True)
    )
    work = preload(material, 1)
    assert sorted(len(y) for _, _, y in work) == sorted(len(y) for _, y in taken)
    assert all(x.is_contiguous() for _, x, _ in work), "the default layout"


def _round(simulator, seed: int) -> tuple:
    state, tasks = simulator.start(seed), simulator.population.tasks(1)
    return (
        simulator.engine.cohort(tasks, simulator.population.submodels(1)),
        state.w,
        state.b,
        state.algorithm,
    )


@pytest.mark.full
def test_the_workloads_are_the_published_ones() -> None:
    one, two = WORKLOADS["w1"].settings(), WORKLOADS["w2"].settings()
    assert (
        one["num_clients"] * one["sample_ratio"] == 10
        and two["num_clients"] * two["sample_ratio"] == 100
    )
    assert (
        one["model"]["blocks"] == [1, 1, 1, 1]
        and one["local"]["batch_size"] == 64
        and two["local"]["batch_size"] == 60
    )
    assert (
        one["local"]["lr"] == two["local"]["lr"] == 0.05
        and one["local"]["epochs"] == two["local"]["epochs"] == 1
    )
    assert one["local"]["momentum"] == two["local"]["momentum"] == 0 and one["eval_every"] == 1
    assert {s.options["precision"] for s in OURS} == {"fp32", "bf16"} and {
        s.options["workers"] for s in OURS
    } == {1, 2}


@pytest.mark.full
def test_what_is_not_installed_has_a_row() -> None:
    absent = System("absent", "benchmarks.systems.floor", needs=("no_such_package_here",))
    row = rows_of([run_trial(absent, {}, 1)])[0]
    assert (
        row["failed"].startswith("not installed: no_such_package_here") and row["seconds"] is None
    )
    assert all(system.needs for system in PEERS)


@pytest.mark.full
def test_a_failure_is_told(tmp_path: Path) -> None:
    trial = run_trial(System("broken", "benchmarks.no_such_module"), quick("w2", tmp_path), 1)
    assert "failed with exit code 1" in trial.failed and "no_such_module" in trial.failed


def trial(system: str, *rounds: tuple[float, float], moved: float = 1.0) -> Trial:
    return Trial(
        system,
        0,
        1.0,
        100.0,
        [Round(i, s, 0.0, moved, foreign, 1.0) for i, (s, foreign) in enumerate(rounds, 2)],
    )


@pytest.mark.full
def test_dirty_rounds_are_left_out() -> None:
    floor, clean, dirty = rows_of(
        [trial("floor", (2.0, 0)), trial("a", (9.0, 0.5), (1.0, 0.0)), trial("b", (4.0, 0.5))],
        "floor",
    )
    assert (
        clean["seconds"]["median"] == 1.0
        and clean["to_floor"] == 0.5
        and (clean["clean"], clean["rounds"]) == (1, 2)
    )
    assert dirty["seconds"]["median"] == 4.0 and dirty["clean"] == 0, (
        "marked where there is no clean one"
    )
    assert (
        dirty["to_floor"] is None
        and rows_of([trial("floor", (2.0, 0.5)), trial("a", (1.0, 0.0))], "floor")[1]["to_floor"]
        is None
    )
    assert floor["to_floor"] == 1.0


@pytest.mark.full
def test_weights_that_do_not_move_are_no_measurement(tmp_path: Path) -> None:
    """A learning rate too small for float32 trains nothing."""
    settings = quick("w2", tmp_path)
    stuck = settings | {"local": settings["local"] | {"lr": 1e-30}}
    found = run_trial(OURS[0], stuck, 1)
    assert (
        "the weights did not move in round 2" in found.failed
        and rows_of([found])[0]["seconds"] is None
    )


@pytest.mark.full
def test_mover() -> None:
    w = {"w": torch.zeros(4)}
    moved = Mover(w)
    w["w"] += 3
    assert moved(w) == 6 and moved(w) == 0


@pytest.mark.full
def test_cpu_time_of_others() -> None:
    assert Sample(12, 30, 9, 0).foreign(Sample(10, 26, 7, 0)) == 1.0
    assert Sample(12, 26, 9, 0).foreign(Sample(10, 26, 7, 0)) == 0.0


@pytest.mark.full
def test_a_watch_knows_its_processes() -> None:
    """By the mark in their environment; their children as well. What they use is theirs."""
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(40 <<"
        " 20)\\nwhile True: pass'])"
    )
    watch = Watch("m1")
    before = watch.sample()
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {MARK: "m1"})
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until and (
            len(watch.left()) < 2 or watch.sample().ours - before.ours < 0.3
        ):
            time.sleep(0.1)
        now, strangers = watch.sample(), Watch("m2").left()
        assert now.ours - before.ours >= 0.3 and now.rss > 40 << 20 and watch.peak_rss >= now.rss
        assert process.pid in watch.left() and len(watch.left()) == 2
        assert process.pid in strangers, "children of this process are its own, whatever their mark"
    finally:
        for pid in watch.left():
            os.kill(pid, 9)
        process.wait()


@pytest.mark.nightly
def test_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--quick", "--rounds", "1", "--out", str(tmp_path / "scale.json")]) == 0
    kept = json.loads((tmp_path / "scale.json").read_text())
    assert (
        len(kept["rows"]) == 3
        and not any(row["failed"] for row in kept["rows"])
        and set(kept["partition_s"]) == {"iid", "shards"}
    )
    assert "times the round" in capsys.readouterr().out


@pytest.mark.full
def test_startup(tmp_path: Path) -> None:
    assert main(["startup", "--quick", "--out", str(tmp_path / "startup.json")]) == 0
    kept = json.loads((tmp_path / "startup.json").read_text())
    assert kept["summary"]["first_step_s"]["median"] > 0 and len(kept["runs"][0]["rounds"]) == 3
    assert kept["summary"]["last_rss_mb"]["median"] > 50


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_says_that_it_is_unmeasured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 0 and "unmeasured" in capsys.readouterr().out


@pytest.mark.full
def test_the_lines_of_gpu_are_kept_as_soon_as_they_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of it at tiny sizes on a CPU, where a mode that captures does not."""
    args = parse(["gpu", "--quick", "--out", str(tmp_path / "gpu.json")])
    rows = Session(args, "no GPU", "cpu", "auto").run()
    assert [row["system"] for row in rows] == [system.name for system in timed("cpu", "auto")]
    assert not any(row["failed"] for row in rows)
    lines = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    assert len(lines) == 4 + len(rows) and "\n".join(lines) in capsys.readouterr().out
    assert "skipped" in lines[1] and "failed" not in lines[1]
    assert "scalefl, captured against eager: the same bits" in lines[2]
    assert all("500 rounds in" in line for line in lines[4:])


def test_what_the_time_does_not_suffice_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.SHORTEST_S", 61)
    out = tmp_path / "gpu.json"
    args = parse(["gpu", "--quick", "--minutes", "1", "--out", str(out)])
    assert Session(args, "no GPU", "cpu", "auto").run() == []
    lines = json.loads(out.read_text())["lines"]
    assert len(lines) == 4 + len(timed("cpu", "auto"))
    assert all("not tried" in line for line in lines[1:])


@pytest.mark.full
def test_command_line() -> None:
    assert parse(["w1", "--peers", "--rounds", "2"]).rounds == 2
    for wrong in (["w3"], ["w1", "--rounds", "0"], []):
        with pytest.raises(SystemExit):
            parse(wrong)


@pytest.mark.full
def test_sizes_and_homes() -> None:
    """At most 300 lines a file; psutil, Flower and pfl stay out of the product."""
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
    for path in (ROOT / "inco").rglob("*.py"):
        assert not any(
            f"import {name}" in path.read_text() for name in ("psutil", "flwr", "pfl", "benchmarks")
        ), path

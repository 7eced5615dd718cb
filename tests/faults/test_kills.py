"""R4 to R9, R21: a run is killed, stopped, interrupted, loses a worker, meets an error in a client,
or is not alone.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import start, wait_for_rounds, workers_of
from support import ROOT, TINY, read_rows, read_summary, timeless

from faults.sitting import MINE, ONE, last_checkpoint, mine, same_end, sit
from inco.clients.store import ClientStore
from inco.engine.engine import Engine
from inco.errors import StorageError, WorkerError
from inco.records.arrays import ArrayStore
from inco.records.checkpoint import Checkpoints
from inco.records.record import RunLock, RunRecord
from inco.server.optim import Adam
from inco.splits.inclusive import Inclusive

pytestmark = pytest.mark.full

__all__ = ["mine"]  # a fixture
KILLS = int(os.environ.get("INCO_KILLS", "6"))
LONG = (*TINY, "rounds=400", "hydra.run.dir=run")
SLOW_CLIENTS = ("algorithm._target_=mine.Slow",)
needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers by ps")


def crowd(*arguments: str | Path, timeout: float) -> object:
    """Run the program that starts sittings as its children."""
    command = [sys.executable, str(Path(__file__).with_name("crowd.py")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(60 + 30 * KILLS)
def test_r04_kills_at_random_moments_lose_a_round_at_most(tmp_path: Path) -> None:
    """`INCO_KILLS=50` for fifty; every second one while a checkpoint or a file is being written.

    In the end every bit is as without.
    """
    seed = int(os.environ.get("INCO_KILLS_SEED", "4"))
    told = crowd("kills", tmp_path / "run", str(KILLS), str(seed), timeout=60 + 30 * KILLS)
    assert isinstance(told, dict) and len(told["kills"]) == KILLS
    for kill in told["kills"]:
        assert kill["killed"], "it was to run until killed"
        assert kill["rows"] > kill["rows_before"], (
            "each sitting records a round more than was there: no round is lost twice"
        )
        assert kill["saved"] >= kill["rows"] - 1, f"at most the round under way is lost: {kill}"
    assert any(kill["half"] for kill in told["kills"]), "some kills fell into a write"
    assert told["codes"] == [0, 0]
    same_end(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_r05_a_preempting_signal_ends_the_quick_start_in_time(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Whatever round is under way: checkpoint, summary, W&B's files closed, exit code 75."""
    quick = (
        "experiment=quickstart",
        "engine.workers=1",
        "hydra.run.dir=outputs/run",
        "checkpoint_every=1000",
        "tracker.mode=offline",
    )
    run = start(tmp_path, *quick)
    folder = tmp_path / "outputs" / "run"
    wait_for_rounds(folder, 2)
    run.send_signal(number)
    sent = time.monotonic()
    _, errors = run.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert (
        run.returncode == 75 and f"stopped by {number.name}" in errors and "Traceback" not in errors
    ), errors
    summary = read_summary(folder)
    assert (summary["status"], summary["exit_code"]) == ("interrupted", 75)
    saved = Checkpoints(folder).load_latest()
    assert saved is not None and saved.round == summary["rounds"] == len(read_rows(folder)) >= 2
    assert not any("W&B" in text for text in summary["warnings"]), "the tracker could be closed"
    (mirror,) = (tmp_path / "outputs" / "wandb").glob("offline-run-*")
    assert next(mirror.glob("*.wandb")).stat().st_size > 0 and not (folder / "run.lock").exists()


@contextmanager
def amid_a_long_round(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in its third round, which takes a minute: each of its clients, unless `words` say
    otherwise.
    """
    (tmp_path / "mine.py").write_text(MINE)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "INCO_ALLOW_TARGETS": "mine"}
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        *LONG,
        "engine.workers=1",
        *(words or SLOW_CLIENTS),
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        try:
            wait_for_rounds(tmp_path / "run", 2)
            time.sleep(1.5)
            yield run
        finally:
            run.kill()


def test_r05_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Before the 4 s of grace are over."""
    with amid_a_long_round(tmp_path) as run:
        run.send_signal(signal.SIGTERM)
        time.sleep(1.3)
        assert run.poll() is None, "the round under way has a moment to end"
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=1.5) == 75
    assert (
        len(read_rows(tmp_path / "run")) == 2
        and last_checkpoint(tmp_path / "run").name == "round_000002"
    )


@pytest.mark.parametrize("slow", ["Slow", "SlowServer", "SlowScores"])
def test_r05_a_round_that_is_given_up_costs_no_other(tmp_path: Path, slow: str) -> None:
    """Off the grid of checkpoints as well, and whatever the round is at: those before are saved."""
    words = ("checkpoint_every=1000", f"algorithm._target_=mine.{slow}")
    with amid_a_long_round(tmp_path, *words) as run:
        run.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert run.wait(timeout=20) == 75 and time.monotonic() - sent < 10
    summary, saved = read_summary(tmp_path / "run"), Checkpoints(tmp_path / "run").load_latest()
    assert (summary["status"], summary["rounds"]) == ("interrupted", 2)
    assert saved is not None and saved.round == 2


def once(monkeypatch: pytest.MonkeyPatch, of: type, method: str, call: int) -> None:
    """Let Ctrl-C come at the end of a method, the `call`-th time."""
    calls = itertools.count(1)
    real = getattr(of, method)

    def pressed(*arguments: Any, **named: Any) -> Any:
        done = real(*arguments, **named)
        if next(calls) == call:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(of, method, pressed)


SCAFFOLD = ("algorithm=scaffold", "local=sgd", "local.momentum=0", "transform=none")
ADAM = ("server=adam", "transform=inco")
INCLUSIVE = ("split=inclusive", "transform=none")


@pytest.mark.parametrize(
    ("of", "method", "words"),
    [
        (Engine, "map_reduce", SCAFFOLD),
        (ClientStore, "advance", SCAFFOLD),
        (Engine, "evaluate", SCAFFOLD),
        (RunRecord, "append", SCAFFOLD),
        (Adam, "step", ADAM),
        (Engine, "evaluate", ADAM),
        (ArrayStore, "keep", ADAM),
        (Inclusive, "server_update", INCLUSIVE),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_r06_a_round_broken_anywhere_leaves_no_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of: type,
    method: str,
    words: tuple[str, ...],
) -> None:
    """The third round is broken off once it has changed something. The second is saved, though it
    is off the grid, and from there the run ends with the bits of one that nothing has broken.
    """
    words = (*words, "rounds=4", "checkpoint_every=1000")
    sit(tmp_path / "whole", *words)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        once(patched, of, method, 3)
        sit(tmp_path / "run", *words)
    saved = Checkpoints(tmp_path / "run").load_latest()
    assert saved is not None and saved.round == 2
    sit(tmp_path / "run", *words)
    same_end(tmp_path / "run", tmp_path / "whole")


def test_r06_ctrl_c_keeps_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    """The command that it prints goes on where it ended."""
    run = start(tmp_path, *LONG, "engine.workers=1")
    wait_for_rounds(tmp_path / "run", 3)
    run.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130 and "Traceback" not in errors and time.monotonic() - sent < 10, (
        errors
    )
    rows = read_rows(tmp_path / "run")
    saved = last_checkpoint(tmp_path / "run").name
    assert read_summary(tmp_path / "run")["status"] == "interrupted" and len(rows) >= 3
    assert (tmp_path / "run" / "report.html").exists()
    command = shlex.split(re.findall(r"Go on with: (.+)", errors)[0])
    assert command[:2] == ["python", "run.py"]
    words = [word for word in command[2:] if not word.startswith("rounds=")]
    more = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *words, f"rounds={len(rows) + 1}"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert more.returncode == 0 and f"going on after round {int(saved[6:])}" in more.stdout, (
        more.stderr
    )
    assert timeless(read_rows(tmp_path / "run"))[: len(rows)] == timeless(rows)


def logged(folder: Path, text: str) -> float:
    """Return when a line came into run.log, in seconds of the clock."""
    found = next(line for line in (folder / "run.log").read_text().splitlines() if text in line)
    return datetime.strptime(found[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


@needs_proc
def test_r07_a_killed_worker_is_noticed_and_named(tmp_path: Path) -> None:
    """By worker, process, signal and round; nothing of that round is applied."""
    run = start(tmp_path, *LONG, "engine.workers=2")
    wait_for_rounds(tmp_path / "run", 2)
    (worker,) = workers_of(run.pid)
    os.kill(worker, signal.SIGKILL)
    killed = time.time()
    _, errors = run.communicate(timeout=30)
    assert logged(tmp_path / "run", "WorkerError") - killed < 2
    assert (
        run.returncode == 1
        and f"worker 1 (pid {worker}) was killed by SIGKILL" in errors
        and "Traceback" not in errors
    ), errors
    rows, saved = read_rows(tmp_path / "run"), Checkpoints(tmp_path / "run").load_latest()
    assert (
        saved is not None and saved.round == len(rows) == read_summary(tmp_path / "run")["rounds"]
    )
    assert f"round {len(rows) + 1}" in errors, "the message says which round was under way"


@needs_proc
def test_r07_with_a_retry_the_run_has_the_bits_of_one_without_an_accident(tmp_path: Path) -> None:
    words = (*LONG, "rounds=12", "engine.workers=2", "engine.retry=1")
    run = start(tmp_path, *words)
    wait_for_rounds(tmp_path / "run", 3)
    os.kill(workers_of(run.pid)[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=90)
    assert run.returncode == 0 and "trying again from the last checkpoint" in errors, errors
    sit(tmp_path / "whole", rounds=12)
    same_end(tmp_path / "run", tmp_path / "whole")


def test_r08_an_error_in_a_client_is_told_with_its_traceback(
    type_command, tmp_path: Path, mine: str
) -> None:
    """On the worker beside the first: the message names round, client and worker, the log has the
    traceback, the round is not applied.
    """
    env = {"INCO_ALLOW_TARGETS": "mine", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = type_command(*LONG, "engine.workers=2", f"{mine}OnOtherWorker", env=env)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(
        r"round 2, client \d \(resnet\d+, 12 examples\) failed on worker 1: ZeroDivisionError: of"
        r" its own",
        done.stderr,
    )
    log = (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" in log and "in local_end" in log
    assert (
        len(read_rows(tmp_path / "run")) == 1
        and last_checkpoint(tmp_path / "run").name == "round_000001"
    )


def test_r09_memory_that_runs_out_in_a_client_is_asked_for_once_more(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU raises, raised by hand: the client is trained again, from the same random streams,
    and the run has the same bits.
    """
    sit(tmp_path / "whole", rounds=3)
    summary = sit(tmp_path / "run", f"{mine}OutOfMemory", rounds=3)
    assert summary["weights_sha256"] == read_summary(tmp_path / "whole")["weights_sha256"]


def test_r09_memory_that_runs_out_twice_is_an_error_with_a_hint(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE_TIMES", "1000")
    with pytest.raises(WorkerError, match=r"round 2, client 3 .*local\.batch_size"):
        sit(tmp_path / "run", f"{mine}OutOfMemory", rounds=3)
    assert len(read_rows(tmp_path / "run")) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_r09_a_gpu_whose_memory_runs_out_is_told_with_its_peak(
    type_command, tmp_path: Path
) -> None:
    """A batch that no GPU holds, of images that any host does: the error gives the peak and the
    settings that make it smaller.
    """
    huge = (
        "model=resnet26",
        "model.stem=small",
        "dataset.shape=[3,256,256]",
        "dataset.num_train=4000",
        "local.batch_size=4000",
        "split=none",
        "num_clients=1",
    )
    done = type_command(*ONE, *huge, "engine.device=cuda", "hydra.run.dir=run", timeout=280)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        re.search(r"\d+ MiB", done.stderr)
        and "local.batch_size" in done.stderr
        and "engine.workers" in done.stderr
    )


def test_r21_of_four_runs_at_once_in_one_folder_one_is_the_writer(tmp_path: Path) -> None:
    """The others are refused (74).

    Four in four folders end alike. The lock of a process that is gone is taken over.
    """
    codes = crowd("race", *[tmp_path / "one"] * 4, timeout=200)
    assert isinstance(codes, list) and sorted(codes) == [0, 74, 74, 74]
    refused = [
        path.read_text()
        for path in tmp_path.glob("one.*.log")
        if "a run's folder has one writer" in path.read_text()
    ]
    assert len(refused) == 3 and len(read_rows(tmp_path / "one")) == 12
    folders = [tmp_path / name for name in "abcd"]
    assert crowd("race", *folders, timeout=200) == [0] * 4
    for folder in folders:
        same_end(tmp_path / "one", folder)


def test_r21_a_live_lock_holds_and_a_dead_one_does_not(tmp_path: Path) -> None:
    sit(tmp_path / "run", rounds=1)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with RunLock(tmp_path / "run"):
        lock = json.loads((tmp_path / "run" / "run.lock").read_text())
        with pytest.raises(StorageError, match=f"process {os.getpid()} "):
            sit(tmp_path / "run", rounds=2)
    (tmp_path / "run" / "run.lock").write_text(json.dumps(lock | {"pid": gone.pid}))
    assert sit(tmp_path / "run", rounds=2)["rounds"] == 2
    assert not (tmp_path / "run" / "run.lock").exists()

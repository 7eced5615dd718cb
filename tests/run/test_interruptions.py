"""What a run keeps and says when it is interrupted, killed, or loses a worker."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import heard, start, wait_for_rounds, workers_of
from support import ROOT, TINY, read_rows, read_summary, timeless

from inco.run.cli import front_door
from inco.run.early import leave_on_interrupt, take_over
from inco.run.signals import Preempted, stoppable

MANY = (*TINY, "rounds=400", "hydra.run.dir=run")


@pytest.fixture
def hearing() -> Iterator[None]:
    """Signals as a program in the foreground has them."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def finished_alike(type_command, tmp_path: Path, least: int = 1) -> None:
    """After an interruption the same command ends with the bits of a run that was never
    interrupted. `least`: rounds that it keeps.
    """
    done = len(read_rows(tmp_path / "run"))
    rounds = f"rounds={done + 3}"
    more = type_command(*MANY, "engine.workers=1", rounds)
    assert more.returncode == 0 and "going on after round" in more.stdout, more.stderr
    assert int(more.stdout.partition("going on after round ")[2].split()[0]) >= least
    assert type_command(*MANY, "engine.workers=1", rounds, "hydra.run.dir=whole").returncode == 0
    assert (
        read_summary(tmp_path / "run")["weights_sha256"]
        == read_summary(tmp_path / "whole")["weights_sha256"]
    )
    assert timeless(read_rows(tmp_path / "run")) == timeless(read_rows(tmp_path / "whole"))


@pytest.mark.full
def test_ctrl_c_keeps_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = start(tmp_path, *MANY, "engine.workers=2")
    wait_for_rounds(tmp_path / "run", 3)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130 and "Traceback" not in errors, errors
    assert "Go on with: python run.py" in errors
    summary = read_summary(tmp_path / "run")
    assert (
        summary["status"] == "interrupted"
        and summary["rounds"] == len(read_rows(tmp_path / "run")) >= 3
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_destructor_is_not_lost(hearing: None) -> None:
    """Python prints and drops an exception that is raised there; the next check raises it again."""

    class Falling:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with stoppable() as stop:
        stop.check()
        Falling()
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("background", [False, True])
def test_a_preempting_signal_lets_the_round_end_or_gives_it_up(
    number: signal.Signals, background: bool, hearing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Ctrl-C is ignored, as in the background of a shell or under nohup."""
    if background:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr("inco.run.signals.GRACE_S", 0.3)
    with stoppable() as stop:
        signal.raise_signal(number)
        assert stop.asked is number, "nothing is raised yet"
        with pytest.raises(Preempted, match=number.name):
            stop.check()
    with stoppable() as stop:
        signal.raise_signal(number)
        began = time.monotonic()
        with pytest.raises(Preempted):
            time.sleep(10)
        assert time.monotonic() - began < 5
    assert signal.getsignal(number) is signal.SIG_DFL


def test_signals_that_somebody_else_handles_stay_theirs(hearing: None) -> None:
    seen: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGUSR1)
            assert seen == [signal.SIGUSR1] and stop.asked is None
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.full
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_preemption_saves_closes_and_ends_with_75(
    type_command, tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """Also off the grid of checkpoints, and where the batch system signals the workers as well."""
    run = start(tmp_path, *MANY, "engine.workers=2", "checkpoint_every=1000")
    wait_for_rounds(tmp_path / "run", 3)
    for worker in workers_of(run.pid) if to_all else []:
        os.kill(worker, number)
    run.send_signal(number)
    sent = time.monotonic()
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 75 and time.monotonic() - sent < 10, errors
    assert (
        f"stopped by {number.name}" in errors
        and "Go on with: python run.py" in errors
        and "Traceback" not in errors
    )
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["exit_code"]) == ("interrupted", 75) and summary[
        "rounds"
    ] == len(read_rows(tmp_path / "run"))
    finished_alike(type_command, tmp_path, least=summary["rounds"])


@pytest.mark.full
def test_kill_loses_at_most_the_round_under_way(type_command, tmp_path: Path) -> None:
    run = start(tmp_path, *MANY, "engine.workers=1")
    wait_for_rounds(tmp_path / "run", 4)
    run.kill()
    run.communicate(timeout=30)
    assert len(read_rows(tmp_path / "run")) >= 4
    finished_alike(type_command, tmp_path)


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers by ps")
def test_a_killed_worker_is_started_again_if_asked(type_command, tmp_path: Path) -> None:
    """With the same random streams, so that the run has the bits of one without an accident; and
    once only.
    """
    words = (*MANY, "rounds=8", "engine.workers=2", "engine.retry=1")
    run = start(tmp_path, *words)
    wait_for_rounds(tmp_path / "run", 3)
    os.kill(workers_of(run.pid)[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=90)
    assert (
        run.returncode == 0
        and "SIGKILL" in errors
        and "trying again from the last checkpoint (engine.retry)" in errors
    ), errors
    summary = read_summary(tmp_path / "run")
    assert (summary["status"], summary["rounds"]) == ("finished", 8) and len(
        read_rows(tmp_path / "run")
    ) == 8
    assert (
        type_command(*MANY, "rounds=8", "engine.workers=1", "hydra.run.dir=whole").returncode == 0
    )
    assert summary["weights_sha256"] == read_summary(tmp_path / "whole")["weights_sha256"]
    assert timeless(read_rows(tmp_path / "run")) == timeless(read_rows(tmp_path / "whole"))


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers by ps")
def test_a_killed_worker_ends_the_run_by_name(tmp_path: Path) -> None:
    run = start(tmp_path, *MANY, "engine.workers=2")
    wait_for_rounds(tmp_path / "run", 2)
    (worker,) = workers_of(run.pid)
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = run.communicate(timeout=30)
    assert time.monotonic() - killed < 10
    assert run.returncode == 1 and re.search(
        r"worker 1 .*SIGKILL, last seen at round \d+, client \d", errors
    ), errors
    assert "Traceback" not in errors
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "failed" and summary["rounds"] == len(read_rows(tmp_path / "run"))


@pytest.mark.full
@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_fails_is_named_and_nothing_is_applied(
    type_command, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "mine.py").write_text(
        "from inco.algorithms.fedavg import Algorithm\n\n\n"
        "class Faulty(Algorithm):\n"
        "    def local_end(self, run):\n"
        "        if run.task.round == 2 and run.task.client == 3:\n"
        "            raise ZeroDivisionError('of its own making')\n"
        "        return super().local_end(run)\n"
    )
    env = {"INCO_ALLOW_TARGETS": "mine", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = type_command(
        *MANY, f"engine.workers={workers}", "algorithm._target_=mine.Faulty", env=env
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert (
        "round 2, client 3 (resnet22, 12 examples) failed" in done.stderr
        and "ZeroDivisionError: of its own making" in done.stderr
    )
    assert "local_end" in (tmp_path / "run" / "run.log").read_text(), "the traceback is in the log"
    assert len(read_rows(tmp_path / "run")) == 1
    assert [p.name for p in (tmp_path / "run" / "checkpoint").iterdir()] == ["round_000001"]


@pytest.mark.full
def test_divergence_is_an_error_and_not_a_number(type_command, tmp_path: Path) -> None:
    done = type_command(*MANY, "engine.workers=2", "local=sgd", "local.lr=1e30")
    assert done.returncode == 4 and "nothing of this round has been applied" in done.stderr
    assert "client" in done.stderr and "local.lr" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.full
def test_two_runs_cannot_write_one_folder(type_command, tmp_path: Path) -> None:
    run = start(tmp_path, *MANY, "engine.workers=1")
    wait_for_rounds(tmp_path / "run", 1)
    second = type_command(*MANY, "engine.workers=1")
    run.kill()
    run.communicate(timeout=30)
    assert (
        second.returncode == 74
        and str(run.pid) in second.stderr
        and "Traceback" not in second.stderr
    )


def test_a_signal_while_python_shuts_down_changes_no_exit_code(tmp_path: Path) -> None:
    """Batch systems send SIGTERM again and again; the code that says "start me again" stands."""
    program = (
        "import signal; from inco.run.signals import fix_exit_code; fix_exit_code(75);"
        " signal.raise_signal(signal.SIGTERM)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert (
        subprocess.run(
            [sys.executable, "-c", program], env=env, preexec_fn=heard, cwd=tmp_path
        ).returncode
        == 75
    )


def test_ctrl_c_before_a_run_ends_with_one_line(hearing: None) -> None:
    """While Python imports: whatever is imported then, an exception could be lost in it."""
    words = "from inco.run.early import leave_on_interrupt as on; on(); print('on', flush=True)"
    code = f"{words}; import time; time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said == b"\ninterrupted; nothing has been run\n"


def test_nothing_is_imported_before_ctrl_c_is_heard() -> None:
    script = ast.parse((ROOT / "run.py").read_text()).body
    _, first, second, *_ = script  # after the docstring
    assert isinstance(first, ast.ImportFrom) and first.module == "inco.run.early"
    assert ast.unparse(second) == "leave_on_interrupt()"
    code = "import sys; import inco.run.early; print(*{'hydra', 'numpy', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_ctrl_c_between_two_jobs_ends_with_one_line(
    tmp_path: Path,
    hearing: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hydra is at work then, or a launcher: no job to tell of it."""

    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inco.run.cli.fix_exit_code", lambda code: None)
    assert front_door(pressed, ROOT / "conf", [*TINY, "seed=0"], {}) == 130
    assert capsys.readouterr().err == "\ninterrupted; what has been trained is kept\n"
    leave_on_interrupt()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    take_over()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

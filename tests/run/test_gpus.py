"""GPUs that runs claim for themselves: none twice, none kept by the dead, and a clear word where
there are none.

No GPU is needed: which are visible is what CUDA_VISIBLE_DEVICES says.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from support import ROOT, TINY, read_summary, settings_of

from inco.config.validate import validate
from inco.run import gpus

pytestmark = pytest.mark.full

Start = Callable[..., "subprocess.Popen[str]"]
SMALL = (*TINY, "rounds=2", "engine.workers=1", "tracker=none")
HEAD = """
import os, signal, subprocess, sys, time, types
from inco.run.gpus import claimed
from inco.run.signals import stoppable
signal.signal(signal.SIGINT, signal.default_int_handler)

def have(count, device="auto"):
    return claimed({"engine": {"gpus": count, "device": device}}, stop)

def tell(*words):
    print(*words, flush=True)

def shown():
    return os.environ.get("CUDA_VISIBLE_DEVICES", "unset")

with stoppable() as stop:
"""
HOLD = """
    with have(int(sys.argv[1])):
        tell("has", shown())
        sys.stdin.readline()
    tell("gave back, sees", shown())
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program with its own list of GPUs and claims below `tmp_path`; what is left of it at
    the end is killed.
    """
    started: list[subprocess.Popen[str]] = []

    def begin(code: str, *words: str, visible: str = "0,1") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HEAD + code, *words]
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path, visible), **pipes)
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def environment(folder: Path, visible: str) -> Mapping[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder),
        "CUDA_VISIBLE_DEVICES": visible,
    }


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a program prints, or its errors if it has ended."""
    assert process.stdout and process.stderr
    return process.stdout.readline().strip() or process.stderr.read()


def let_go(process: subprocess.Popen[str]) -> str:
    """Let a holder end; return what it printed after."""
    told, errors = process.communicate("\n", timeout=30)
    assert process.returncode == 0, errors
    return told


def test_of_many_at_once_no_two_have_the_same(start: Start, tmp_path: Path) -> None:
    """Some want one and some two, again and again; a file for each GPU in use would show two that
    have it.
    """
    code = """
    for _ in range(4):
        with have(int(sys.argv[1])):
            mine = shown().split(",")
            for name in mine:
                os.close(os.open("in-use-" + name, os.O_CREAT | os.O_EXCL))
            time.sleep(0.02)
            for name in mine:
                os.unlink("in-use-" + name)
            tell("had", *mine)
"""
    several = [start(code, str(1 + number % 2), visible="0,1,GPU-c") for number in range(6)]
    for number, process in enumerate(several):
        told, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        had = [words.split()[1:] for words in told.splitlines() if words.startswith("had")]
        assert len(had) == 4 and all(len(set(names)) == 1 + number % 2 for names in had), told
    assert not list(tmp_path.glob("in-use-*"))


def test_waiting_is_told_once_with_the_holder_and_goes_on(start: Start) -> None:
    first, second = start(HOLD, "1"), start(HOLD, "1")
    assert {line(first), line(second)} == {"has 0", "has 1"}
    third = start(HOLD, "1")
    told = line(third)
    assert "engine.gpus=1: waiting for 1 of the GPUs 0, 1" in told
    assert f"(process {first.pid})" in told and f"(process {second.pid})" in told
    time.sleep(0.8)  # several looks
    assert let_go(second) == "gave back, sees 0,1\n"
    free = "1" if f"1 (process {second.pid})" in told else "0"
    assert line(third) == f"engine.gpus=1: going on with {free}" and line(third) == f"has {free}"
    assert let_go(third) == "gave back, sees 0,1\n"
    assert let_go(first)


def test_a_run_of_two_leaves_the_one_that_it_could_have(start: Start) -> None:
    """While it waits for the second, others may have the first."""
    holder = start(HOLD, "1")
    assert line(holder) == "has 0"
    both = start(HOLD, "2")
    assert "waiting for 2 of the GPUs 0, 1" in line(both)
    other = start(HOLD, "1")
    assert line(other) == "has 1"
    assert let_go(holder) and let_go(other)
    assert "going on with 0, 1" in line(both) and line(both) == "has 0,1"


def test_a_killed_run_gives_back_though_its_children_live(start: Start) -> None:
    """Neither a program that it has started nor a copy of itself keeps a lock."""
    code = """
    with have(1):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False, stdout=subprocess.DEVNULL)
        copy = os.fork()
        if not copy:
            time.sleep(60)
            os._exit(0)
        tell(child.pid, copy)
        time.sleep(60)
"""
    first = start(code, visible="7")
    children = [int(pid) for pid in line(first).split()]
    try:
        second = start(HOLD, "1", visible="7")
        assert f"taken: 7 (process {first.pid})" in line(second)
        first.kill()
        first.wait()
        for pid in children:
            os.kill(pid, 0)  # still there
        assert "going on with 7" in line(second) and line(second) == "has 7"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_a_child_does_not_give_back_what_is_its_parents(start: Start) -> None:
    """A copy that leaves the block by itself, and a program that ends, change nothing."""
    code = """
    with have(1):
        copy = os.fork()
        if copy:
            os.waitpid(copy, 0)
            subprocess.run([sys.executable, "-c", "pass"], close_fds=False)
            tell("both gone")
            sys.stdin.readline()
    tell("out")
"""
    first = start(code, visible="7")
    assert line(first) == "out" and line(first) == "both gone"
    second = start(HOLD, "1", visible="7")
    assert "waiting" in line(second)
    assert let_go(first) == "out\n"
    assert "going on" in line(second)


def test_an_error_gives_back(start: Start) -> None:
    code = """
    try:
        with have(1):
            raise ZeroDivisionError
    except ZeroDivisionError:
        tell("sees", shown())
    sys.stdin.readline()
"""
    first = start(code, visible="7")
    assert line(first) == "sees 7"
    second = start(HOLD, "1", visible="7")
    assert line(second) == "has 7"


def test_a_process_asks_for_what_cuda_has_been_shown_in_it(start: Start) -> None:
    """The next run of a sweep in one process waits for the same GPU though another is free, and
    cannot have another number.
    """
    code = """
    with have(1):
        sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: False))
        tell("had", shown())
    sys.stdin.readline()
    with have(1):
        tell("had", shown())
    for count in (2, None):
        try:
            with have(count):
                tell("had", count)
        except Exception as error:
            tell(type(error).__name__, error)
"""
    sweep = start(code)
    assert line(sweep) == "had 0"
    other = start(HOLD, "1")
    assert line(other) == "has 0"
    assert sweep.stdin
    sweep.stdin.write("\n")
    sweep.stdin.flush()
    assert "waiting for 1 of the GPUs 0; taken: 0" in line(sweep)
    assert let_go(other)
    assert "going on with 0" in line(sweep) and line(sweep) == "had 0"
    for count in ("2", "null"):
        told = line(sweep)
        assert told.startswith(
            f"ConfigError engine.gpus={count}: an earlier run of this process had GPUs 0"
        ), told


def test_too_many_are_refused(type_command, tmp_path: Path) -> None:
    done = type_command(*TINY, "engine.gpus=3", env=dict(environment(tmp_path, "0,1")))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "engine.gpus=3: must be at most 2, the GPUs visible here (0, 1)" in done.stderr
    none = type_command(
        *SMALL, "engine.gpus=1", "engine.device=cuda", env=dict(environment(tmp_path, ""))
    )
    assert (
        none.returncode == 2
        and "engine.gpus=1 with engine.device=cuda: no GPU is visible here" in none.stderr
    )


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("", []),
        ("-1", []),
        ("3", ["3"]),
        (" 2, 0,", ["2", "0"]),
        ("1,-1,0", ["1"]),
        ("GPU-8f,MIG-2a", ["GPU-8f", "MIG-2a"]),
        ("0,0", ["0"]),
    ],
)
def test_what_is_visible_is_read_as_cuda_does(
    given: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == names


def test_without_the_variable_devices_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver, devices = tmp_path / "driver", tmp_path / "dev"
    monkeypatch.setattr(gpus, "_DRIVER", driver)
    monkeypatch.setattr(gpus, "_DEVICES", devices)
    assert gpus.visible() == []
    devices.mkdir()
    for name in ("nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (devices / name).touch()
    assert gpus.visible() == ["0", "1"]
    for name in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (driver / name).mkdir(parents=True)
    # in a container: what is not there as a device cannot be used
    assert gpus.visible() == [
        "0",
        "1",
    ]
    (devices / "nvidia2").unlink()
    (devices / "nvidia0").unlink()
    assert gpus.visible() == ["0", "1", "2"]


def test_a_folder_that_is_not_ours_is_not_used(start: Start, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"inco-gpus-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert "StorageError" in line(start(HOLD, "1")).splitlines()[-1]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        validate(settings_of("engine.gpus=2"))
        == validate(settings_of("engine.gpus=2", "engine.workers=4"))
        == []
    )
    for wrong in ("0", "-1", "all", "1.5"):
        assert f"engine.gpus={wrong}" in validate(settings_of(f"engine.gpus={wrong}"))[0]
    told = validate(settings_of("engine.gpus=2", "engine.device=cpu", "engine.workers=1"))
    assert (
        len(told) == 2
        and "with engine.device=cpu" in told[0]
        and "with engine.workers=1" in told[1]
    )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "engine.gpus=1 under torchrun" in validate(settings_of("engine.gpus=1"))[0]
    assert validate(settings_of()) == []


def test_runs_without_a_gpu_and_runs_that_wait(type_command, start: Start, tmp_path: Path) -> None:
    """On the CPU it says so, and gives the bits of a run without the setting.

    Ctrl-C and SIGTERM end a wait. A finished run has none.
    """
    done = type_command(
        *SMALL, "engine.gpus=1", "hydra.run.dir=run", env=dict(environment(tmp_path, ""))
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count(
            "no GPU is visible here, so there is none to claim; the run is on the CPU"
        )
        == 1
    )
    assert (
        type_command(*SMALL, "hydra.run.dir=whole", env=dict(environment(tmp_path, ""))).returncode
        == 0
    )
    assert (
        read_summary(tmp_path / "run")["weights_sha256"]
        == read_summary(tmp_path / "whole")["weights_sha256"]
    )
    assert read_summary(tmp_path / "run")["device"] == "cpu"

    holder = start(HOLD, "1", visible="0")
    assert line(holder) == "has 0"
    again = type_command(
        *SMALL,
        "engine.gpus=1",
        "hydra.run.dir=run",
        env=dict(environment(tmp_path, "0")),
        timeout=60,
    )
    assert (
        again.returncode == 0
        and "already finished" in again.stdout
        and "waiting" not in again.stdout
    )
    command = [sys.executable, str(ROOT / "run.py"), *SMALL, "engine.gpus=1", "hydra.run.dir=other"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        # a shell's background has it ignored
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        run = subprocess.Popen(
            command, cwd=tmp_path, env=environment(tmp_path, "0"), **pipes, **heard
        )
        assert f"taken: 0 (process {holder.pid})" in line(run)
        run.send_signal(number)
        _, errors = run.communicate(timeout=30)
        assert (
            run.returncode == code
            and "Go on with: python run.py" in errors
            and "Traceback" not in errors
        ), errors
    assert not (tmp_path / "other" / "run.lock").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="needs the joblib launcher",
)
def test_jobs_side_by_side_take_turns(tmp_path: Path) -> None:
    """More jobs at once than GPUs, in processes that serve several jobs: each has the one GPU for
    itself in its turn.
    """
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2", "engine.gpus=1")
    command = [sys.executable, str(ROOT / "run.py"), "-m", *SMALL, *words]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path, "5"),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (
        done.returncode == 0 and done.stdout.partition("Sweep in outputs")[2].count("finished") == 3
    ), done.stdout + done.stderr
    turns = []
    for log in (tmp_path / "outputs").glob("synthetic-*/run.log"):
        taken, back = re.findall(
            r"(?m)^(\S+ \S+) .*GPUs (?:claimed|given back): 5$", log.read_text()
        )
        turns.append((taken, back))
    turns.sort()
    assert len(turns) == 3
    assert all(back <= taken for (_, back), (taken, _) in pairwise(turns)), turns

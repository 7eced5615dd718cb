"""R20: W&B is off, not installed, without a key, without a network, behind a broken server, or
dies: the run is the same.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb_server import KEY, no_account, server

from faults.sitting import after_round, same_end, sit

pytestmark = pytest.mark.full

# fixtures: a home without credentials, and a server that answers as told
__all__ = [
    "no_account",
    "server",
]
WORDS = ("tracker=wandb", "transform=inco")
ROUNDS = 3


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that no tracker has seen, and how long it took."""
    folder = tmp_path_factory.mktemp("without") / "outputs" / "run"
    began = time.monotonic()
    sit(folder, "tracker=none", *WORDS[1:], rounds=ROUNDS)
    return folder, time.monotonic() - began


def the_same(without: tuple[Path, float], folder: Path) -> list[str]:
    """Run with W&B and compare. Returns the warnings of the summary."""
    began = time.monotonic()
    summary = sit(folder, *WORDS, rounds=ROUNDS)
    assert time.monotonic() - began - without[1] < 15, "it may add 15 s in all"
    same_end(folder, without[0])
    return list(summary["warnings"])


def services() -> list[int]:
    """Return the processes of W&B that this one has started."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    found = []
    for child in children:
        command = Path(f"/proc/{child}/cmdline")
        if command.exists() and b"wandb" in command.read_bytes():
            found.append(int(child))
    return found


def test_r20_not_installed(
    tmp_path: Path, without: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        (warning,) = the_same(without, tmp_path / "outputs" / "run")
    assert "W&B" in warning and "off for this run" in warning


def test_r20_no_key(
    tmp_path: Path, without: tuple[Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert the_same(without, tmp_path / "outputs" / "run") == []
    assert "offline (no API key)" in capsys.readouterr().out and list(
        (tmp_path / "outputs" / "wandb").glob("offline-run-*")
    )


def test_r20_no_network(
    tmp_path: Path,
    without: tuple[Path, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert the_same(without, tmp_path / "outputs" / "run") == []
    assert "offline (127.0.0.1 not reachable" in capsys.readouterr().out


def test_r20_a_server_that_says_503(
    tmp_path: Path,
    without: tuple[Path, float],
    monkeypatch: pytest.MonkeyPatch,
    server: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server(503))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert the_same(without, tmp_path / "outputs" / "run") == []
    assert "offline (127.0.0.1 answered 503" in capsys.readouterr().out


def test_r20_a_server_that_lets_the_run_in_and_then_says_nothing(
    tmp_path: Path,
    without: tuple[Path, float],
    monkeypatch: pytest.MonkeyPatch,
    server: Callable[..., str],
) -> None:
    """The end is not waited for longer than the 15 s that it may cost in all, and the summary says
    how to send what is left.
    """
    monkeypatch.setenv("WANDB_BASE_URL", server(200, lets_in=True))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (warning,) = the_same(without, tmp_path / "outputs" / "run")
    assert "wandb sync" in warning


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds W&B's service by /proc")
def test_r20_its_own_service_dies_amid_the_run(
    tmp_path: Path, without: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    def kill() -> None:
        for pid in services():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.3)

    after_round(monkeypatch, 1, kill)
    (warning,) = the_same(without, tmp_path / "outputs" / "run")
    assert killed and "W&B stopped at round 2" in warning

"""What a record says of the machine that made it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch

from inco import machine

ZEN = "sse4_1 avx avx2 avx512f avx512bw avx512vl avx512dq avx512_bf16"


@pytest.fixture(autouse=True)
def forgetful() -> None:
    """What was found out is found out again."""
    machine.commit.cache_clear()


@pytest.mark.parametrize(
    ("flags", "limit", "best"),
    [
        (ZEN, "", "AVX512"),
        (ZEN, "AVX2", "AVX2"),
        (ZEN, "avx2_vnni", "AVX2"),
        (ZEN, "AVX512_CORE", "AVX512"),
        (ZEN, "AVX10_2", "AVX512"),
        (ZEN, "AVX", "AVX"),
        (ZEN, "SSE41", "SSE41"),
        (ZEN, "DEFAULT", "AVX512"),
        ("sse4_1 avx avx2", "", "AVX2"),
        ("sse4_1 avx avx2", "AVX512_CORE", "AVX2"),
        ("sse4_1 avx avx2 avx512f", "", "AVX2"),  # oneDNN wants more than the foundation
        ("", "", platform.machine()),
    ],
)
def test_the_instruction_set_is_the_processors_or_the_limit(
    flags: str, limit: str, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processor", lambda: {"flags": flags})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert machine.instruction_set() == best


def test_a_limit_makes_it_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.LIMITS:
        monkeypatch.delenv(name, raising=False)
    free = machine.arithmetic()
    assert torch.__version__.partition("+")[0] in free and "timm" in free
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.arithmetic() == f"{free}, ONEDNN_MAX_CPU_ISA=AVX2"
    assert machine.describe()["limits"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_the_commit_is_that_of_the_checkout_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit() -> dict:
        machine.commit.cache_clear()
        return machine.commit()

    (tmp_path / "inco").mkdir()
    module = tmp_path / "inco" / "machine.py"
    module.write_text("# one")
    monkeypatch.setattr(machine, "__file__", str(module))
    assert commit() == {}, "no repository"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert commit() == {"commit": git("rev-parse", "HEAD"), "clean": True}
    (tmp_path / "outputs").write_text("new files are no change")
    assert commit()["clean"]
    module.write_text("# two")
    assert not commit()["clean"]
    (tmp_path / "site" / "inco").mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site" / "inco" / "machine.py"))
    assert commit() == {}, "installed into somebody else's repository"


def test_a_summary_has_it_all() -> None:
    from inco.run.summary import origin

    found = origin()
    assert {
        "inco",
        "python",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "omegaconf",
        "hydra-core",
    } <= set(found["versions"])
    assert found["machine"]["cpu"] == machine.cpu_model() and found["machine"]["instruction_set"]
    assert ("gpu" in found["machine"]) == torch.cuda.is_available()

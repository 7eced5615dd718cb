"""What the doctor checks: lines that say what was found, whether it is right, and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from inco import machine
from inco.engine.workers import available_cores
from inco.errors import DataError

TESTED = ("3.11", "3.12", "3.13")
# several times what a slow machine takes
_PRODUCTS_S = 60
_RUN_S = 120
_RUN_PY = Path(__file__).resolve().parents[2] / "run.py"
_RUN = """
    debug=tiny dataset=synthetic dataset.shape=[1,8,8] dataset.num_classes=3 dataset.num_train=60
    dataset.num_test=40 model.widths=[2,4,4,8] split=width local.batch_size=8 tracker=none
"""


class Line(NamedTuple):
    """One line of the report; `right` is None where nothing was judged."""

    label: str
    text: str
    right: bool | None = None


def versions() -> Iterator[Line]:
    """Say the versions, and which of them are too old or untested."""
    found = machine.versions()
    yield Line("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    commit = machine.commit()
    if commit:
        yield Line("commit", f"{commit['commit']}{'' if commit['clean'] else ', with changes'}")
    python = sys.version.split()[0]
    if python.rpartition(".")[0] not in TESTED:
        yield Line("python", f"{python} is allowed and untried; {', '.join(TESTED)} are tested")
    wrong = "; ".join(_too_old())
    fine = "none is older than the lower bounds of pyproject.toml"
    yield Line("libraries", wrong or fine, not wrong)


def _too_old() -> Iterator[str]:
    try:
        needed = [Requirement(text) for text in requires("inco") or ()]
    except PackageNotFoundError:
        yield 'inco is not installed: pip install -e ".[test]" -c constraints.txt'
        return
    for need in (n for n in needed if n.marker is None):
        version = machine.version(need.name)
        if version == "absent" or not need.specifier.contains(version, prereleases=True):
            yield f'{need.name} is {version}: pip install "{need}"'


def hardware() -> Iterator[Line]:
    """Say processor, threads, memory and GPUs."""
    cores = available_cores()
    usable = f"{cores} core{'s' * (cores != 1)} to use"
    yield Line("cpu", f"{machine.cpu_model()}, {machine.instruction_set()}, {usable}")
    for name, value in machine.limits().items():
        yield Line("limit", f"{name}={value}: other bits than without it")
    threads = os.environ.get("OMP_NUM_THREADS") or "unset"
    yield Line("threads", f"OMP_NUM_THREADS={threads}; a run takes one per worker whatever it is")
    yield Line("memory", _memory())
    gpu = machine.gpus()
    names = ", ".join(gpu.get("gpu", ()))
    found = f"{names}; CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}" if gpu else "none that torch sees"
    yield Line("gpu", found)


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    text = f"{kib['MemTotal'] / 2**20:.1f} GiB, {kib['MemAvailable'] / 2**20:.1f} GiB of it free"
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or no limit: "max"
        return text
    return f"{text}; this container may use {limit / 2**30:.1f} GiB"


def products() -> Iterator[Line]:
    """Compare gradients with float64, in a process of its own: a library's fault may end it."""
    from inco.doctor.products import FARTHEST

    report = "report it with this page"
    ended = _python(["-m", "inco.doctor.products"], _PRODUCTS_S)
    code = ended.returncode
    if code:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = f"their process died ({how}): {_last_line(ended)}. Do not train here; {report}"
        yield Line("gradients", text, False)
        return
    for precision, distance in json.loads(ended.stdout).items():
        right = distance < FARTHEST[precision]
        text = (
            f"products of small models in {precision} are within {distance:.0e} of float64, part of"
            f" {FARTHEST[precision]:.0e} allowed"
        )
        yield Line(
            "gradients", text if right else f"{text}. Results here are wrong: {report}", right
        )


def runs() -> Iterator[Line]:
    """Compare the bits of runs: two workers and one, and on a GPU captured and eager passes."""
    if not _RUN_PY.exists():
        yield Line("ranks", "not looked at: no run.py beside the package")
        return
    two = ("engine.workers=2", "engine.device=cpu")
    one = ("engine.workers=1", "engine.device=cpu")
    yield _same("ranks", "two workers and one", two, one)
    if machine.gpus():
        modes = (("engine.mode=graph",), ("engine.mode=eager",))
        yield _same("graphs", "captured passes and eager ones", *modes)
    else:
        yield Line("graphs", "not looked at: no GPU")


def _same(label: str, which: str, *pair: tuple[str, ...]) -> Line:
    digests = []
    for overrides in pair:
        with tempfile.TemporaryDirectory(prefix="inco-doctor-") as folder:
            command = [str(_RUN_PY), *_RUN.split(), *overrides, f"hydra.run.dir={folder}/run"]
            ended = _python(command, _RUN_S, folder)
            if ended.returncode:
                failed = f"{' '.join(overrides)} failed with exit code {ended.returncode}"
                return Line(label, f"{failed}: {_last_line(ended)}", False)
            summary = json.loads(Path(folder, "run", "summary.json").read_text())
            digests.append(summary["weights_sha256"])
    same = digests[0] == digests[1]
    bits = "the same bits" if same else "other bits: report it with this page"
    return Line(label, f"{which} leave {bits}", same)


def tracker() -> Iterator[Line]:
    """Say what the default tracker would do."""
    from inco.tracker import Wandb

    yield Line("w&b", Wandb().prospect())


def data() -> Iterator[Line]:
    """Say which datasets are here, and how to get the others."""
    from inco.data.__main__ import NAMES, source

    found: list[str] = []
    absent: list[str] = []
    for name in NAMES:
        try:
            source(name, "data", download=False).check()
            found.append(name)
        except DataError:
            absent.append(name)
    here = f"here: {', '.join(found)}, synthetic"
    yield Line("data", f"{here}; not in ./data: {', '.join(absent)}" if absent else here)
    if absent:
        yield Line("", "to fetch one: python -m inco.data fetch NAME")


ALL = (versions, hardware, products, runs, tracker, data)


def _python(
    command: Sequence[str], timeout_s: float, folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(_RUN_PY.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        cwd=folder,
    )


def _last_line(ended: subprocess.CompletedProcess[str]) -> str:
    return (ended.stderr.strip().splitlines() or [""])[-1]

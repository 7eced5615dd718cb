"""What the doctor looks at: each check gives lines that say what was found, whether it is right,
and else what to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from inco import machine
from inco.engine.workers import available_cores
from inco.errors import DataError

TESTED = ((3, 11), (3, 12), (3, 13))
# a slow machine's time, several times over
_PRODUCTS_S = 60
_RUN_S = 120
RUN = (
    "debug=tiny",
    "dataset=synthetic",
    "dataset.shape=[1,8,8]",
    "dataset.num_classes=3",
    "dataset.num_train=60",
    "dataset.num_test=40",
    "model.widths=[2,4,4,8]",
    "split=width",
    "local.batch_size=8",
)


class Line(NamedTuple):
    """One line of the report. `fine`: true, false, or None where nothing was judged."""

    what: str
    said: str
    fine: bool | None = None


def versions() -> Iterator[Line]:
    """Say the versions, and which of them are too old or untried."""
    found = machine.versions()
    yield Line("versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    commit = machine.commit()
    if commit:
        yield Line("commit", f"{commit['commit']}{'' if commit['clean'] else ', with changes'}")
    if sys.version_info[:2] not in TESTED:
        tried = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        yield Line("python", f"{sys.version.split()[0]} is allowed and untried; {tried} are tested")
    wrong = list(_too_old())
    yield Line(
        "libraries",
        "; ".join(wrong) or "none is older than the lower bounds of pyproject.toml",
        not wrong,
    )


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
    yield Line(
        "cpu",
        f"{machine.cpu_model()}, {machine.instruction_set()}, {cores} core{'s' * (cores != 1)}"
        " to use",
    )
    for name, value in machine.limits().items():
        yield Line("limit", f"{name}={value}: other bits than without it")
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Line(
        "threads", f"OMP_NUM_THREADS={threads or 'unset'}; a run takes one a worker whatever it is"
    )
    yield Line("memory", _memory())
    gpu = machine.gpus()
    yield Line(
        "gpu",
        (
            f"{', '.join(gpu['gpu'])}; CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}"
            if gpu
            else "none that torch sees"
        ),
    )


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "unknown"
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    said = f"{kib['MemTotal'] / 2**20:.1f} GiB, {kib['MemAvailable'] / 2**20:.1f} GiB of it free"
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return said
    return (
        said if limit == "max" else f"{said}; this container may use {int(limit) / 2**30:.1f} GiB"
    )


def products() -> Iterator[Line]:
    """Compare gradients with float64, in a process of its own: on some machines a library's fault
    ends it.
    """
    from inco.doctor.products import FARTHEST

    command = [sys.executable, "-m", "inco.doctor.products"]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=_PRODUCTS_S, env=_environment()
    )
    if ended.returncode:
        how = (
            f"signal {-ended.returncode}"
            if ended.returncode < 0
            else f"exit code {ended.returncode}"
        )
        said = (ended.stderr.strip().splitlines() or [""])[-1]
        yield Line(
            "gradients",
            f"their process died ({how}): {said}. Do not train here; report it with this page",
            False,
        )
        return
    for precision, far in json.loads(ended.stdout).items():
        fine = far < FARTHEST[precision]
        said = (
            f"products of small models in {precision} are within {far:.0e} of float64, part of"
            f" {FARTHEST[precision]:.0e} allowed"
        )
        yield Line(
            "gradients",
            said if fine else f"{said}. Results here are wrong: report it with this page",
            fine,
        )


def runs() -> Iterator[Line]:
    """Compare runs that must have the same bits: two workers and one, and on a GPU captured passes
    and eager ones.
    """
    if not _run_py().exists():
        yield Line("ranks", "not looked at: no run.py beside the package")
        return
    yield _same(
        "ranks",
        "two workers and one",
        ("engine.workers=2", "engine.device=cpu"),
        ("engine.workers=1", "engine.device=cpu"),
    )
    if machine.gpus():
        yield _same(
            "graphs",
            "captured passes and eager ones",
            ("engine.mode=graph",),
            ("engine.mode=eager",),
        )
    else:
        yield Line("graphs", "not looked at: no GPU")


def _same(what: str, which: str, *pair: tuple[str, ...]) -> Line:
    with tempfile.TemporaryDirectory(prefix="inco-doctor-") as folder:
        digests = []
        for number, overrides in enumerate(pair):
            place = Path(folder) / str(number)
            command = [
                sys.executable,
                str(_run_py()),
                *RUN,
                *overrides,
                "tracker=none",
                f"hydra.run.dir={place}",
            ]
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_RUN_S,
                env=_environment(),
                cwd=folder,
            )
            if ended.returncode:
                said = (ended.stderr.strip().splitlines() or [""])[-1]
                return Line(
                    what,
                    f"{' '.join(overrides)} failed with exit code {ended.returncode}: {said}",
                    False,
                )
            digests.append(json.loads((place / "summary.json").read_text())["weights_sha256"])
    same = digests[0] == digests[1]
    return Line(
        what,
        (
            f"{which} leave the same bits"
            if same
            else f"{which} leave other bits: report it with this page"
        ),
        same,
    )


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
    yield Line(
        "data",
        f"here: {', '.join(found)}, synthetic"
        + (f"; not in ./data: {', '.join(absent)}" if absent else ""),
    )
    if absent:
        yield Line("", "to fetch one: python -m inco.data fetch NAME")


def _run_py() -> Path:
    return Path(__file__).resolve().parents[2] / "run.py"


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(_run_py().parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}

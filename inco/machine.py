"""What a run is computed with: processor, instruction set, GPU, libraries, and the commit of this
code.

The last bits of a result depend on these, so every record of a run names them. Imports no torch
before it is asked for what torch knows.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "hydra-core", "omegaconf", "wandb")

# Environment variables by which a user makes libraries compute otherwise than the processor alone
# would have it.
LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
INSTRUCTION_SETS = ("AVX512", "AVX2", "AVX", "SSE41")  # best first
_NEEDED = {
    "AVX512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "AVX2": {"avx2"},
    "AVX": {"avx"},
    "SSE41": {"sse4_1"},
}


@cache
def processor() -> Mapping[str, str]:
    """Return what the system says of the first processor: the lines of /proc/cpuinfo; nothing where
    there are none.
    """
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_model() -> str:
    """Return the processor's name."""
    return processor().get("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """Return the best of `INSTRUCTION_SETS` that oneDNN uses for convolutions: the processor's, or
    less where a variable limits it.
    """
    flags = set(processor().get("flags", "").split())
    limit = (
        (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "")
        .upper()
        .replace("AVX10", "AVX512")
    )
    allowed = next((n for n, name in enumerate(INSTRUCTION_SETS) if limit.startswith(name)), 0)
    usable = [name for name in INSTRUCTION_SETS[allowed:] if _NEEDED[name] <= flags]
    return usable[0] if usable else platform.machine()


def limits() -> dict[str, str]:
    """Return those of `LIMITS` that are set."""
    return {name: os.environ[name] for name in LIMITS if os.environ.get(name)}


def arithmetic() -> str:
    """Return a name of all that decides the last bits on a CPU: libraries, instruction sets, kind
    of processor with its caches, limits.
    """
    import torch

    kind = " ".join(
        processor().get(key, "?") for key in ("vendor_id", "cpu family", "model", "cache size")
    )
    limited = "".join(f", {name}={value}" for name, value in limits().items())
    made_by = f"torch {version('torch').partition('+')[0]}, timm {version('timm')}"
    return f"{made_by}, {torch.backends.cpu.get_cpu_capability()}, {kind}{limited}"


def describe() -> dict[str, Any]:
    """Return the machine's facts for a record: system, processor, instruction set, limits, and GPUs
    with CUDA and cuDNN, if any.
    """
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "instruction_set": instruction_set(),
        **({"limits": limits()} if limits() else {}),
    }
    return found | gpus()


def gpus() -> dict[str, Any]:
    """Return the names of the GPUs that torch sees, and the versions of CUDA (or ROCm) and cuDNN;
    nothing without a GPU.
    """
    try:
        import torch
    except ImportError:  # an interruption in the middle of its import cannot be made good
        return {}

    if not torch.cuda.is_available():
        return {}
    return {
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
        "cudnn": torch.backends.cudnn.version(),
    }


def version(package: str) -> str:
    """Return a package's version, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def versions() -> dict[str, str]:
    """Return the versions of InCo, Python and the libraries that a result depends on."""
    from inco import __version__

    return {"inco": __version__, "python": platform.python_version()} | {
        name: version(name) for name in PACKAGES
    }


@cache
def commit() -> dict[str, Any]:
    """Return the commit of the checkout that this code runs from, and whether its tracked files are
    as committed; nothing elsewhere.

    The answer is that of the first call: what has been imported by then is what runs.
    """
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {}  # installed into somebody else's repository
        return {
            "commit": git("rev-parse", "HEAD"),
            "clean": not git("status", "--porcelain", "--untracked-files=no"),
        }
    except (OSError, subprocess.SubprocessError):
        return {}

"""A rank's device, and the one place that says how it computes."""

from __future__ import annotations

import os

import torch

from inco.errors import ConfigError
from inco.fast.allocator import keep_freed_memory


def place_of(device: str, local_rank: int) -> torch.device:
    """Return the device of a rank: the GPU of its place on the machine, or the CPU.

    Raises ConfigError where a GPU is asked for and torch sees none.
    """
    cuda = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not cuda):
        return torch.device("cpu")
    if not cuda:
        raise ConfigError(
            f"engine.device={device}: torch sees no GPU here; use engine.device=auto or cpu"
        )
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def configure(device: torch.device) -> None:
    """Make this process compute on a device so that equal inputs give equal bits.

    On a CPU the number of threads changes bits, the number of ranks does not: a rank has one.
    """
    torch.set_num_threads(1)
    if device.type == "cpu":
        keep_freed_memory()
        return
    # cuBLAS reads it when it is first used; without it torch refuses deterministic products
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True)
    # new memory is always written before it is read; filling it would be half of all kernels
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    set_tf32(False)


def set_precision(device: torch.device, precision: str) -> None:
    """Make products and convolutions of float32 what `local.precision` says.

    By torch's default a GPU rounds the inputs of convolutions to TF32, and those of products not.
    Raises ConfigError where the device knows no TF32.
    """
    if device.type == "cuda":
        set_tf32(precision == "tf32")
    elif precision == "tf32":
        raise ConfigError(
            f"local.precision=tf32 with engine.device={device.type}: TF32 is arithmetic of GPUs;"
            " use local.precision=fp32"
        )


def set_tf32(on: bool) -> None:
    """Let float32 products and convolutions on a GPU use TF32, or none of them."""
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch 2.9 and newer
        kind = "tf32" if on else "ieee"
        matmul.fp32_precision = kind
        cudnn.fp32_precision = kind
        cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
    else:
        matmul.allow_tf32 = on
        cudnn.allow_tf32 = on

"""What is said of a client whose training has failed."""

from __future__ import annotations

import traceback

import torch

from inco.errors import WorkerError
from inco.types import ClientTask, SubModel


def client_failed(task: ClientTask, sub: SubModel, rank: int, error: Exception) -> WorkerError:
    """Return the error that names round, client and worker, with the traceback as its detail.

    To be called while `error` is handled.
    """
    failed = WorkerError(
        f"round {task.round}, client {task.client} ({sub.name}, {len(task.examples)} examples)"
        f" failed on worker {rank}: {type(error).__name__}: {error}{_memory_hint(error)}; nothing"
        " of this round has been applied"
    )
    failed.detail = traceback.format_exc()
    return failed


def _memory_hint(error: Exception) -> str:
    """Say what may help where a GPU's memory was too small."""
    if not isinstance(error, torch.OutOfMemoryError):
        return ""
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0
    return (
        f" (peak {peak:.0f} MiB on this device; use a smaller local.batch_size, or fewer"
        " engine.workers)"
    )

"""What a system being measured tells the one who measures: lines of JSON through a named pipe."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

JOB = "INCO_BENCHMARK_JOB"  # the environment variable that holds the path of the job's file


def job() -> dict[str, Any]:
    """Return what this process is to measure."""
    return json.loads(Path(os.environ[JOB]).read_text())


class Reporter:
    """Tells rounds as they end.

    `silent`: this process is not the one to speak (a rank other than the first).
    """

    def __init__(self, pipe: str, silent: bool = False) -> None:
        self._pipe = None if silent else os.open(pipe, os.O_WRONLY)

    def tell(self, event: str, **facts: Any) -> None:
        """Send one event."""
        if self._pipe is not None:
            os.write(self._pipe, (json.dumps({"event": event, **facts}) + "\n").encode())

    def ready(self) -> None:
        """Say that the first round begins."""
        self.tell("ready")

    def round(self, number: int, train_s: float, eval_s: float, moved: float, **facts: Any) -> None:
        """Tell a round: seconds of training and of scoring, and how far the weights (or what stands
        for them) have moved.
        """
        self.tell("round", round=number, train_s=train_s, eval_s=eval_s, moved=moved, **facts)


class Laps:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent


class Mover:
    """How far a model's weights have moved since the last call."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._last = _flat(tensors)

    def __call__(self, tensors: Mapping[str, Tensor]) -> float:
        now = _flat(tensors)
        moved, self._last = float(torch.linalg.vector_norm(now - self._last)), now
        return moved


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters by name."""
    return dict(model.named_parameters())


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors.values()]).clone()

"""The floor: forward and backward of the very same batches on preloaded tensors, eager, in the
default layout, no optimizer, and scoring in batches of 1000. It is the default way to do the
arithmetic, not a lower bound. Its precision is float32, or the job's `precision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.events import Laps, Reporter
from benchmarks.material import Material
from inco.engine.device import set_precision

EVAL_BATCH = 1000
Work = list[tuple[int, Tensor, Tensor]]  # level, images, labels of each local step


def preload(material: Material, round: int) -> Work:
    """Return every batch of a round, ready."""
    return [
        (c.level, *material.batch(index)) for c in material.clients(round) for index in c.batches
    ]


def train(models: Mapping[int, nn.Module], work: Work) -> float:
    """Forward and backward of each batch; returns the norm of the last gradient."""
    for model in models.values():
        model.train()
    for level, x, y in work:
        model = models[level]
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x).logits, y).backward()
    return float(
        torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    )


@torch.no_grad()
def score(model: nn.Module, x: Tensor, y: Tensor, batch: int = EVAL_BATCH) -> float:
    """Return the accuracy in percent."""
    model.eval()
    correct = sum(
        (model(a).logits.argmax(1) == b).sum()
        for a, b in zip(x.split(batch), y.split(batch), strict=True)
    )
    return 100 * float(correct) / len(y)


def measure(job: Mapping[str, Any], reporter: Reporter) -> None:
    """Run the job's rounds; preloading is not timed."""
    device = job["options"].get("device", "cpu")
    precision = job["options"].get("precision", "fp32")
    material = Material(job["settings"], device)
    set_precision(material.device, precision)
    models = {level: material.model(level) for level in material.levels}
    x, y = material.test
    reporter.ready()
    for number in range(1, job["rounds"] + 1):
        work = preload(material, number)
        lap = Laps()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            gradient = train(models, work)
            _finish(material)
            trained = lap()
            accuracy = sum(score(model, x, y) for model in models.values()) / len(models)
        reporter.round(
            number,
            trained,
            lap(),
            gradient,
            steps=len(work),
            images=sum(len(b) for _, _, b in work),
            accuracy=accuracy,
        )


def _finish(material: Material) -> None:
    if material.device.type == "cuda":
        torch.cuda.synchronize()

"""What a client minimises on a batch, where it is not plain cross-entropy."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from inco.types import ClientTask, Output


class MaskedCrossEntropy:
    """Cross-entropy in which the classes that a client has no example of take no part, so that it
    does not unlearn them.

    `fill`: what their logits become. "zero": 0 (the published code); "minus_inf": their probability
    is 0. Diao et al., HeteroFL: Computation and Communication Efficient Federated Learning for
    Heterogeneous Clients, ICLR 2021, Section 3.
    """

    def __init__(self, fill: Literal["zero", "minus_inf"] = "zero") -> None:
        self.fill = 0.0 if fill == "zero" else float("-inf")

    def __call__(self, output: Output, labels: Tensor, task: ClientTask) -> Tensor:
        logits = output.logits
        if task.classes is not None:
            logits = logits.masked_fill(~task.classes.to(logits.device), self.fill)
        return F.cross_entropy(logits, labels)


class SelfDistillation:
    """Cross-entropy at every head, and the last head teaches the earlier ones.

    With heads 1 to m: sum_j j l_j / (m (m + 1) / 2), where l_j = CE(z_j) + gamma T^2 KL(softmax(z_m
    / T) || softmax(z_j / T)) for j < m and l_m = CE(z_m). `gamma`: 0 is the published CIFAR
    commands; `temperature`: T; `reduction`: of the divergence. "mean": over images and classes (the
    published code), "batchmean": over images; `detach`: keep the teacher's gradient out (the
    published code lets it in); `start`: the first round, from 1, with distillation (the published
    code: after a quarter of all rounds). Ilhan et al., ScaleFL: Resource-Adaptive Federated
    Learning with Heterogeneous Clients, CVPR 2023, and its published code.
    """

    def __init__(
        self,
        gamma: float = 0.05,
        temperature: float = 3.0,
        reduction: Literal["mean", "batchmean"] = "mean",
        detach: bool = False,
        start: int = 1,
    ) -> None:
        self.gamma = gamma
        self.temperature = temperature
        self.reduction = reduction
        self.detach = detach
        self.start = start

    def phase(self, round: int) -> int:
        """Return what of a round changes the arithmetic."""
        return int(bool(self.gamma) and round >= self.start)

    def __call__(self, output: Output, labels: Tensor, task: ClientTask) -> Tensor:
        heads = len(output.exits) + 1
        loss = heads * F.cross_entropy(output.logits, labels)
        for j, logits in enumerate(output.exits, start=1):
            loss = loss + j * (
                F.cross_entropy(logits, labels) + self._distil(logits, output.logits, task.round)
            )
        return loss / (heads * (heads + 1) / 2)

    def _distil(self, student: Tensor, teacher: Tensor, round: int) -> Tensor | float:
        if not self.phase(round):
            return 0.0
        teacher = teacher.detach() if self.detach else teacher
        wanted = (teacher / self.temperature).softmax(1)
        given = (student / self.temperature).log_softmax(1)
        divergence = F.kl_div(given, wanted, reduction="sum") / (
            wanted.numel() if self.reduction == "mean" else len(wanted)
        )
        return self.gamma * self.temperature**2 * divergence

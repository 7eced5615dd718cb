"""The forward and backward pass of a full batch as one CUDA graph a level, for GPUs: a small
model's step is hundreds of launches.

What an algorithm adds to a step (its gradient hook, the optimizer, its own vectors) stays outside
and eager: on flat vectors these are a few launches. Batches of another size, and methods that add
to the loss, take the eager pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from inco.algorithms.fedavg import Algorithm
from inco.fast.bound import BoundModel
from inco.seeding import default_generator
from inco.types import ClientTask, Objective, Output

log = logging.getLogger(__name__)

Replay = Callable[[], None]
_WARM_UP = 3  # passes before a capture: libraries choose and allocate in the first ones


@dataclass
class Pass:
    """A captured pass: it reads `x`, `y` and the task's classes, leaves the gradient in the model
    and the loss in `loss`.
    """

    x: Tensor
    y: Tensor
    task: ClientTask
    loss: Tensor
    replay: Replay


def plain_pass(
    model: nn.Module, objective: Objective, x: Tensor, y: Tensor, task: ClientTask, precision: str
) -> tuple[Output, Tensor]:
    """Return a batch's output, and its loss, which is not back-propagated yet."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = model(x)
    dtype = next(model.parameters()).dtype
    output = output._replace(
        logits=output.logits.to(dtype), exits=tuple(z.to(dtype) for z in output.exits)
    )
    return output, objective(output, y, task)


class CapturedPasses:
    """Captured passes by level and phase of the objective; `size`: examples of a full batch;
    `capture`: see `CudaGraphs`; `required`: a pass that cannot be captured is an error, and not
    taken eagerly.
    """

    def __init__(
        self,
        size: int,
        precision: str,
        capture: Callable[[Replay], Replay],
        required: bool = False,
    ) -> None:
        self.size = size
        self.precision = precision
        self.capture = capture
        self.required = required
        self._passes: dict[tuple[int, int], Pass | None] = {}

    def fits(self, algorithm: Algorithm, x: Tensor) -> bool:
        """Tell whether a batch can take a captured pass."""
        return len(x) == self.size and type(algorithm).local_loss is Algorithm.local_loss

    def run(
        self, bound: BoundModel, objective: Objective, x: Tensor, y: Tensor, task: ClientTask
    ) -> Tensor | None:
        """Leave the batch's gradient in the model's flat gradient, which was zero, and return its
        loss, valid until the next call; None where the pass could not be captured.
        """
        key = task.level, getattr(objective, "phase", lambda round: 0)(task.round)
        if key not in self._passes:
            self._passes[key] = self._made_or_none(bound, objective, x, y, task)
        made = self._passes[key]
        if made is None:
            return None
        made.x.copy_(x)
        made.y.copy_(y)
        if made.task.classes is not None and task.classes is not None:
            made.task.classes.copy_(task.classes)
        made.replay()
        return made.loss

    def _made_or_none(
        self, bound: BoundModel, objective: Objective, x: Tensor, y: Tensor, task: ClientTask
    ) -> Pass | None:
        """Capture a pass, as if warming up had not been: buffers, gradient and the stream of
        dropout are as before.
        """
        buffers = bound.read_buffers().clone()
        dropout = default_generator(x.device)
        drawn = dropout.get_state()
        try:
            return self._make(bound, objective, x, y, task)
        except RuntimeError as error:
            if self.required:
                raise
            log.warning(
                "level %d's passes cannot be captured as a CUDA graph, and are taken one launch"
                " after the other (engine.mode=eager does so from the start): %s",
                task.level,
                error,
            )
            return None
        finally:
            bound.set_buffers(buffers)
            bound.g.zero_()
            dropout.set_state(drawn)

    def _make(
        self, bound: BoundModel, objective: Objective, x: Tensor, y: Tensor, task: ClientTask
    ) -> Pass:
        classes = None if task.classes is None else task.classes.to(x.device, copy=True)
        mine = replace(task, classes=classes)
        loss = torch.zeros((), device=x.device, dtype=bound.w.dtype)
        made = Pass(
            x.clone(memory_format=torch.preserve_format), y.clone(), mine, loss, lambda: None
        )

        def work() -> None:
            _, value = plain_pass(bound.model, objective, made.x, made.y, made.task, self.precision)
            value.backward()
            loss.copy_(value.detach())

        made.replay = self.capture(work)
        return made


class CudaGraphs:
    """Captures work as CUDA graphs that share one pool of memory.

    They may, as they are replayed one after the other and leave their results outside the pool.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Replay) -> Replay:
        """Return the replay of `work`, which reads and writes tensors that stay where they are."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph.replay

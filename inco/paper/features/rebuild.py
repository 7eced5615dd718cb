"""Rebuild a run from its folder: its data, and the server's models as the last checkpoint has
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inco.assembly import Assembly, assemble
from inco.clients.trainer import Batch, take
from inco.engine.ranks import Ranks
from inco.errors import ConfigError, DataError
from inco.evaluation.evaluator import BATCH, Evaluator
from inco.flat import BoundModel
from inco.paper.figures.groups import PARTS
from inco.records.checkpoint import Checkpoints
from inco.records.groups import Group, facts
from inco.records.record import RunLock
from inco.records.runs import Run
from inco.run.resume import begin
from inco.seeding import generator
from inco.types import ServerState, SubModel

# Nothing of a run's engine changes its models; one process on the CPU is what a look at them needs.
_ENGINE = {"workers": 1, "device": "cpu", "mode": "eager", "state_dir": None, "profile": False}


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """A run after its last checkpoint: assembly, state, seed, and the name of its method."""

    run: Assembly
    state: ServerState
    seed: int
    title: str

    @property
    def evaluator(self) -> Evaluator:
        return self.run.evaluator

    @property
    def levels(self) -> list[int]:
        return sorted(self.evaluator.levels)

    def name(self, level: int) -> str:
        return self.run.split.names[level]

    def submodel(self, level: int) -> SubModel:
        return self.run.simulator.population.submodels(self.state.round)[level]

    def bound(self, level: int) -> BoundModel:
        """Return the server's model of a level, ready to be scored; the next level takes its
        place.
        """
        sub = self.submodel(level)
        norm = self.evaluator.norm
        bound = self.evaluator.pool.get(sub).bound
        bound.load(self.state.w, self.state.b, sub.params, sub.buffers)
        if norm:  # as for scoring: BatchNorm measured on training images
            count = norm.batches()
            found = [norm.measure(bound.model, n, self.state.round) for n in range(count)]
            norm.install(bound.model, torch.stack(found).sum(0))
        bound.model.eval()
        return bound

    def release(self, model: nn.Module) -> None:
        """Take away what `bound` has measured."""
        if self.evaluator.norm:
            self.evaluator.norm.remove(model)

    def batches(self, examples: Tensor) -> list[Batch]:
        """Return test images prepared as for scoring, in batches as large as there."""
        starts = list(range(0, len(examples), BATCH))
        if len(starts) > 1 and len(examples) - starts[-1] == 1:
            starts.pop()  # BatchNorm by the batch at hand needs two images
        evaluator = self.evaluator
        stops = [*starts[1:], len(examples)]
        return [
            take(
                evaluator.test,
                examples[start:stop],
                evaluator.transform,
                generator(self.seed, "test", self.state.round, number),
            )
            for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
        ]

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.evaluator.precision == "bf16")


def rebuild(folder: Path) -> Rebuilt:
    """Return the run of a folder.

    DataError where it holds none, or no checkpoint; ConfigError where its data has changed since.
    """
    found = Run(folder)
    if not found.recorded:
        raise DataError(
            f"{folder}: neither about.json nor summary.json tells settings; give the folder of a"
            " run, below outputs/"
        )
    whole = _bare(found.recorded, found.about.get("targets", {}))
    with RunLock(folder):  # a run that is under way keeps its checkpoints to itself
        saved = Checkpoints(folder).load_latest()
    if saved is None:
        raise DataError(
            f"{folder}: no checkpoint there; give a run that has done a round, and keeps its"
            " checkpoint/"
        )
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = assemble(whole, ranks)
    title = PARTS["method"](Group(facts(found), [found]))
    return Rebuilt(run, begin(run, ranks, whole, saved), int(whole["seed"]), title)


def _bare(settings: Mapping[str, Any], targets: Mapping[str, str]) -> dict[str, Any]:
    """The settings with their classes, without what a look at the models does not need:
    diagnostics, workers, pretrained weights.
    """
    whole = dict(settings) | {
        group: {"_target_": target, **settings[group]}
        for group, target in targets.items()
        if group in settings
    }
    if "pretrained" in whole["model"]:  # the checkpoint replaces them
        whole["model"] = whole["model"] | {"pretrained": False}
    return {
        **whole,
        "diagnostics": {"_target_": "inco.diagnostics.NoDiagnostics"},
        "engine": _ENGINE,
    }


def level_of(rebuilt: Rebuilt, capacity: str | None) -> int:
    """Return the level of a capacity's name, the largest for none.

    ConfigError for a name that the run has not.
    """
    names = {rebuilt.name(level): level for level in rebuilt.levels}
    if capacity is not None and capacity not in names:
        raise ConfigError(
            f"--capacity {capacity}: this run has {', '.join(names)}; use one of them"
        )
    return names[capacity] if capacity is not None else rebuilt.levels[-1]

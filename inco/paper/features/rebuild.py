"""Rebuild a run from its folder: its data, and the server's models of the last checkpoint."""

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
from inco.fast.bound import BoundModel
from inco.paper.figures.groups import PARTS
from inco.records.checkpoint import Checkpoints
from inco.records.groups import Group, facts
from inco.records.record import RunLock
from inco.records.runs import Run
from inco.run.resume import begin
from inco.seeding import generator
from inco.types import ServerState, SubModel

_ENGINE = {
    "workers": 1,
    "device": "cpu",
    "mode": "eager",
    "state_dir": None,
    "state_memory": 0,
    "profile": False,
}


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
        """Return the server's model of a level, ready to be scored, until the next call."""
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
        """Remove the statistics that `bound` has measured."""
        if self.evaluator.norm:
            self.evaluator.norm.remove(model)

    def batches(self, examples: Tensor) -> list[Batch]:
        """Return test images prepared as for scoring, in batches as large as there."""
        starts = list(range(0, len(examples), BATCH))
        if len(starts) > 1 and len(examples) - starts[-1] == 1:
            starts.pop()  # BatchNorm by the batch at hand needs two images
        evaluator = self.evaluator
        batches = []
        for number, part in enumerate(torch.tensor_split(examples, starts[1:])):
            stream = generator(self.seed, "test", self.state.round, number)
            batches.append(take(evaluator.test, part, evaluator.transform, stream))
        return batches

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.evaluator.precision == "bf16")


def rebuild(folder: Path) -> Rebuilt:
    """Return the run of a folder: DataError without a checkpoint, ConfigError for changed data."""
    found = Run(folder)
    if not found.recorded:
        raise DataError(
            f"{folder}: neither about.json nor summary.json has settings; give the folder of a"
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
    """Return the settings with their classes, without diagnostics, workers, pretrained weights."""
    whole = dict(settings)
    for group in targets.keys() & settings:
        whole[group] = {"_target_": targets[group], **settings[group]}
    if "pretrained" in whole["model"]:  # the checkpoint replaces them
        whole["model"] = whole["model"] | {"pretrained": False}
    whole["diagnostics"] = {"_target_": "inco.diagnostics.NoDiagnostics"}
    whole["engine"] = _ENGINE
    return whole


def level_of(rebuilt: Rebuilt, capacity: str | None) -> int:
    """Return the level of a capacity's name, the largest for none. ConfigError for another name."""
    names = {rebuilt.name(level): level for level in rebuilt.levels}
    if capacity is None:
        return rebuilt.levels[-1]
    if capacity not in names:
        raise ConfigError(
            f"--capacity {capacity}: this run has {', '.join(names)}; use one of them"
        )
    return names[capacity]

"""Measure kinds of runs on this machine, in this process: real rounds of the real model, with one
client of each level and few local steps, or two whole ones.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inco.assembly import Assembly, assemble
from inco.callbacks import Callback
from inco.config.targets import build
from inco.diagnostics import NoDiagnostics
from inco.engine.ranks import Ranks
from inco.evaluation.evaluator import BATCH
from inco.plan.arithmetic import LevelTimes, Measured, Times
from inco.plan.counting import OneOfEachLevel, count
from inco.plan.standin import prepared
from inco.records.arrays import ArrayStore
from inco.records.checkpoint import Checkpoints
from inco.records.record import plain
from inco.run.pictures import draw
from inco.run.resume import pack
from inco.run.summary import peak_memory
from inco.types import ClientTask, Metrics

Kind = Mapping[str, Any]  # settings
Write = Callable[[Measured], None]

_MOST_EPOCHS = 30  # and seconds of training, that are enough
_ENOUGH_S = 6.0
_WARM_IMAGES = 4  # of the first steps, which say what larger ones will take
_FORWARD = 1 / 3  # of a training step, until scoring is measured


class ClientClock(Callback):
    """Seconds of the last client of each level; on a CPU, of this process's own time on a core, on
    which others who are busy meanwhile have little effect.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.seconds: dict[int, float] = {}
        self._cuda = ranks.device.type == "cuda"
        self._began = 0.0

    def now(self) -> float:
        """Return the time after all that the device has been given."""
        if self._cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_client_start(self, task: ClientTask) -> None:
        self._began = self.now()

    def on_client_end(self, task: ClientTask, done: int, of: int) -> None:
        self.seconds[task.level] = self.now() - self._began


class FewSteps:
    """Measures kinds that share their times, stage by stage; after each, `write` has the best that
    is known, for whoever ends this process at its limit.

    `kinds`: settings of each; the first's are run; `until`: when to be done (as time.time).
    """

    def __init__(self, kinds: Sequence[Kind], ranks: Ranks, until: float, write: Write) -> None:
        self.kinds = kinds
        self.ranks = ranks
        self.on_cpu = ranks.device.type == "cpu"
        self.until = until
        self.write = write
        settings, notes = prepared(kinds[0])
        identity = {"_target_": "inco.server.transforms.Identity"}
        self.settings = {**settings, "transform": identity, "sample_ratio": 1.0}
        self.run = _assembled(self.settings, ranks)
        self.simulator = self.run.simulator
        self.simulator.eval_every = settings["rounds"] + 10**9  # never
        self.diagnostics = self.simulator.diagnostics
        self.simulator.diagnostics = NoDiagnostics()
        self.population = OneOfEachLevel(self.simulator.population)
        self.simulator.population = self.population
        self.state = self.simulator.start(settings["seed"])
        # what depends on the round is as in the middle of a run
        self.state.round = settings["rounds"] // 2
        self.clock = ClientClock(ranks)
        self.times = Times(images=len(self.run.dataset.test.labels))
        counts = [count(kind, self.run) for kind in kinds]
        self.found = Measured(counts, [0.0] * len(kinds), self.times, notes)
        # of each level, by images: seconds of a step, and of all else that a client takes
        self.points: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
        self.steps = 0
        self.scored = 0

    def measure(self, began: float) -> None:
        """Do all stages that there is time for; `began`: the process's start, as time.time."""
        # importing, reading and building, as at the start of a run
        self.times.fixed = time.process_time() if self.on_cpu else time.time() - began
        self._began = (time.process_time(), time.perf_counter())
        self._training()
        for stage in (self._scoring, self._transforms, self._watching, self._recording):
            if self._left() <= 0:
                self.found.notes.append(
                    "transform, diagnostics and checkpoints were not measured, and count nothing"
                    " (--limit)"
                )
                break
            stage()
            self._write()
        if not self.scored:
            self.found.notes.append(
                "scoring was not measured: taken as a third of training on as many images (--limit)"
            )
        self._write()

    def _left(self) -> float:
        return self.until - time.time()

    def _write(self) -> None:
        self.found.steps = f"{self.steps} steps, {self.scored:,} images"
        self.found.memory_bytes = _peak(self.ranks)
        if self.on_cpu:
            cpu, wall = self._began
            self.found.share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        self.write(self.found)

    def _training(self) -> None:
        """Measure small steps, then full ones, or as large ones as there is time for."""
        cohorts = [cohort for counts in self.found.counts for cohort in counts.cohorts]
        largest = max(max(client.batches) for cohort in cohorts for client in cohort)
        self.small = max(self.run.trainer.smallest, min(_WARM_IMAGES, largest))
        self._steps_of(self.small)
        image = sum(times.step(1) for times in self.times.levels.values())
        budget = 0.4 * self._left()
        images = largest if image * largest <= budget else max(self.small, int(budget / image))
        if images < largest:
            self.found.notes.append(
                f"steps of {images} images were measured, not {largest}, and need less memory: more"
                " time is needed (--limit)"
            )
        if images > self.small:
            self._steps_of(images)

    def _steps_of(self, images: int) -> None:
        """Measure steps of so many images by rounds that differ in their number alone."""
        rest = {level: points[self.small][1] for level, points in self.points.items()}
        first = self._round(images, 1)  # warms up, and counts where there is no time for more
        self._keep(images, first, {level: first[level] - rest.get(level, 0.0) for level in first})
        seconds = min(0.4 * self._left(), _ENOUGH_S)
        more = min(int(seconds / sum(first.values())) - 1, _MOST_EPOCHS)
        if more > 0:
            one = self._round(images, 1)
            many = self._round(images, 1 + more)
            self._keep(images, one, {level: (many[level] - one[level]) / more for level in one})

    def _round(self, images: int, epochs: int) -> dict[int, float]:
        """Train each client on so many images, so many times; return its seconds by level."""
        local = self.run.trainer.local
        local.epochs = epochs
        local.batch_size = images
        self.population.images = images
        began = self.clock.now()
        self.metrics = self.simulator.round(self.state, callbacks=[self.clock])
        seconds = dict(self.clock.seconds)
        self.times.server = max(0.0, self.clock.now() - began - sum(seconds.values()))
        self.found.row_bytes = max(_row_bytes(self.metrics), self.found.row_bytes)
        self.steps += epochs * len(seconds)
        return seconds

    def _keep(self, images: int, clients: Mapping[int, float], steps: Mapping[int, float]) -> None:
        """Keep the seconds of clients that took one step, and of that step."""
        for level, seconds in steps.items():
            step = min(max(seconds, 1e-9), clients[level])
            self.points[level][images] = (step, clients[level] - step)
            self.times.levels[level] = _level_times(self.points[level])
        self.times.image = _FORWARD * sum(steps.values()) / images
        self._write()

    def _scoring(self) -> None:
        """Score batches of the test set at all levels, after measuring BatchNorm as a run does."""
        evaluator = self.run.evaluator
        vectors = (self.population.submodels(self.state.round), self.state.w, self.state.b)
        affordable = int(0.5 * self._left() / (self.times.image * BATCH))
        measured = None
        if evaluator.norm and affordable:
            began = self.clock.now()
            units = [(level, 0) for level in evaluator.levels]
            measured = evaluator.measure(units, *vectors, self.state.round)
            self.times.norm = (self.clock.now() - began) * evaluator.norm.batches()
        images = []
        for number in range(min(len(evaluator.starts), affordable, 4)):
            began = self.clock.now()
            units = [(level, number) for level in evaluator.levels]
            evaluator.score(units, *vectors, 1, measured)
            size = min(BATCH, self.times.images - BATCH * number)
            images.append((self.clock.now() - began) / size)
            self.scored += size
        if images:
            self.times.image = statistics.median(images[1:] or images)

    def _transforms(self) -> None:
        """Time each kind's transform on an update like the last."""
        split = self.run.split
        for number, kind in enumerate(self.kinds):
            transform = build("transform", kind["transform"]).bind(split.params, split.pairs)
            for _ in range(2):  # the first time warms up
                stream = torch.Generator(self.ranks.device).manual_seed(0)
                began = self.clock.now()
                transform(1e-3 * self.state.w, stream)
                self.found.transforms[number] = self.clock.now() - began

    def _watching(self) -> None:
        """Do a round with diagnostics, where the settings have some."""
        if not self.diagnostics.watch(1):
            return
        self.state.round = self.settings["diagnostics"].get("every", 1) - 1
        self.simulator.diagnostics = self.diagnostics
        server = self.times.server
        self._round(self.small, 1)
        self.times.server = server
        self.simulator.diagnostics = NoDiagnostics()
        spent = sum(self.metrics.get(key, 0.0) for key in ("time/cka_s", "time/gradients_s"))
        cohort = len(self.found.counts[0].cohorts[0])
        self.times.watched = spent * max(1.0, cohort / len(self.population.clients))
        with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
            ArrayStore(Path(folder)).keep(1, self.diagnostics.arrays)
            files = Path(folder).rglob("*.npz")
            self.found.arrays_bytes = sum(file.stat().st_size for file in files)

    def _recording(self) -> None:
        """Write a checkpoint and draw the first picture, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
            for number in (1, 2):  # the first time warms up
                self.state.round = number
                began = time.perf_counter()
                Checkpoints(Path(folder)).save(pack(self.run, self.state, self.settings, 0.0))
                self.times.checkpoint = time.perf_counter() - began
            began = time.perf_counter()
            list(draw(self.run, Path(folder), 1))
            self.times.fixed += time.perf_counter() - began


def whole_rounds(settings: Kind, ranks: Ranks, began: float) -> Measured:
    """Run two rounds as they are; the second's time is shared out over clients by their FLOPs."""
    replaced, notes = prepared(settings)
    run = _assembled(replaced, ranks)
    times = Times(images=len(run.dataset.test.labels), fixed=time.time() - began)
    simulator = run.simulator
    state = simulator.start(settings["seed"])
    simulator.round(state)
    row = simulator.round(state, last=True)
    tasks = simulator.population.tasks(2)
    flops = {level: float(cost.train_flops) for level, cost in run.costs.items()}
    work = sum(flops[task.level] * simulator.images_trained(len(task.examples)) for task in tasks)
    for level, image in flops.items():
        times.levels[level] = LevelTimes([(1, row["time/train_s"] / work * image)])
    times.image = row["time/eval_s"] / times.images
    if simulator.diagnostics.watch(2):
        times.watched = row["time/round_s"] - row["time/train_s"] - row["time/eval_s"]
    found = Measured([count(settings, run)], [0.0], times, notes)
    steps = sum(run.trainer.steps(len(task.examples)) for task in tasks)
    found.steps = f"{steps} steps, {times.images:,} images"
    found.memory_bytes = _peak(ranks)
    found.row_bytes = _row_bytes(row)
    return found


def _assembled(settings: Kind, ranks: Ranks) -> Assembly:
    engine = {**settings["engine"], "workers": 1, "state_dir": None, "profile": False}
    return assemble({**settings, "engine": engine}, ranks)


def _level_times(points: Mapping[int, tuple[float, float]]) -> LevelTimes:
    """Lay a line through what clients took beside a step of so many images."""
    low = min(points)
    high = max(points)
    slope = (points[high][1] - points[low][1]) / max(high - low, 1)
    start = max(slope, 0.0)
    overhead = max(points[low][1] - start * low, 0.0)
    return LevelTimes([(images, step) for images, (step, _) in points.items()], overhead, start)


def _row_bytes(metrics: Metrics) -> int:
    return len(json.dumps(plain(metrics)))


def _peak(ranks: Ranks) -> int:
    """Return the peak of this process's memory in bytes: the GPU's, or what is resident."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_memory(ranks)

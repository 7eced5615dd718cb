"""Measure a kind of run on this machine, in this process: real rounds of the real model with few
local steps, one client a level.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inco.assembly import Assembly, assemble
from inco.config.targets import build
from inco.diagnostics import NoDiagnostics
from inco.engine.ranks import Ranks
from inco.evaluation.evaluator import BATCH
from inco.plan.counting import Chosen, chosen_clients, count
from inco.plan.standin import prepared
from inco.plan.stopwatch import Seen, Stopwatch
from inco.records.arrays import ArrayStore
from inco.records.checkpoint import Checkpoints
from inco.records.record import plain
from inco.run.pictures import draw
from inco.run.resume import pack

# steps and seconds of training that are enough; a round that never comes
_MOST_STEPS = 30
_ENOUGH_S = 6.0
_NEVER = 10**9
_WARM_IMAGES = 4  # of a step in the first round, which warms up and says what the rest will take
_FORWARD = 1 / 3  # of a training step, for what cannot be measured in time

Write = Callable[[Mapping[str, Any]], None]


class Measuring:
    """One kind, measured stage by stage; after each, `write` has the best that is known, for
    whoever ends this process at its limit.

    `settings`: the first run's; `lines`: settings of all kinds that share its times; `until`: when
    to be done (as time.monotonic).
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        lines: Sequence[Mapping[str, Any]],
        ranks: Ranks,
        until: float,
        write: Write,
    ) -> None:
        whole, self.notes = prepared(settings)
        identity = {"_target_": "inco.server.transforms.Identity"}
        engine = {**settings["engine"], "workers": 1, "state_dir": None, "profile": False}
        # any number of clients fits a round
        self.settings = {
            **whole,
            "transform": identity,
            "engine": engine,
            "sample_ratio": 1.0,
        }
        self.ranks = ranks
        self.until = until
        self.write = write
        self.lines = lines
        self.run: Assembly = assemble(self.settings, ranks)
        self.found: dict[str, Any] = {"levels": {}, "images": len(self.run.dataset.test.labels)}
        self.found["lines"] = [self._line(line) for line in lines]
        self.batch, self.short = self._batches()
        simulator = self.run.simulator
        self.diagnostics, simulator.diagnostics, simulator.eval_every = (
            simulator.diagnostics,
            NoDiagnostics(),
            _NEVER,
        )
        self.clients = chosen_clients(simulator.population)
        self.chosen = Chosen(simulator.population)
        simulator.population = self.chosen
        self.watch = Stopwatch(simulator.algorithm, ranks.device)
        self.state = simulator.start(settings["seed"])
        # what depends on the round is as in the middle of a run
        self.state.round = settings["rounds"] // 2
        self.steps = self.scored = 0
        self.epochs = 1

    def _line(self, line: Mapping[str, Any]) -> dict[str, Any]:
        whole, notes = prepared(line)
        return {"counts": count(whole, self.run), "transform": 0.0, "notes": notes}

    def _batches(self) -> tuple[int, int]:
        """Return the images of a full batch and of a typical shorter one, 0 where no client of any
        line has such.
        """
        levels = [
            level for line in self.found["lines"] for level in line["counts"]["levels"].values()
        ]
        full = self.settings["local"]["batch_size"] if any(level["full"] for level in levels) else 0
        short = [level["short_images"] for level in levels if level["short"]]
        return full, round(statistics.mean(short)) if short else 0

    def left(self) -> float:
        """Return the seconds that there are still."""
        return self.until - time.monotonic()

    def __call__(self, began: float) -> None:
        """Do all stages that there is time for.

        `began`: when the process was started (as time.time).
        """
        # importing, reading and building, as at the start of a run
        self.found["fixed"] = (
            time.time() - began if self.ranks.device.type == "cuda" else time.process_time()
        )
        self.write(self.found)
        smallest = self.run.trainer.smallest
        warm = max(smallest, min(_WARM_IMAGES, self.batch or self.short))
        self._keep(self._round(warm, 1))
        self.found["levels"].clear()  # the first time of everything
        self._keep(self._round(warm, 1))
        self._training(warm)
        stages = (self._scoring, self._transforms, self._watching, self._recording)
        for stage in stages:
            if self.left() <= 0:
                self.notes.append(
                    "transform, diagnostics and checkpoints were not measured, and count nothing"
                    " (--limit)"
                )
                break
            stage()
            self._tell()
        self._tell()

    def _tell(self) -> None:
        scoring = (
            []
            if self.scored
            else [
                "scoring was not measured: taken as a third of training on as many images (--limit)"
            ]
        )
        self.found["measured"] = f"{self.steps} steps, {self.scored:,} images"
        self.found["memory_bytes"] = peak(self.ranks)
        if self.ranks.device.type == "cpu":
            self.found["share"] = self.watch.share()
        self.found["notes"] = list(dict.fromkeys([*self.notes, *scoring]))
        self.write(self.found)

    def _training(self, warm: int) -> None:
        """Measure full steps, and short ones where there are any; as many as there is time for, and
        images as there is time for.
        """
        # of all levels
        image = sum(
            level["steps"][0][1] / level["steps"][0][0] for level in self.found["levels"].values()
        )
        budget = 0.4 * self.left()
        largest = self.batch or self.short
        images = largest if image * largest <= budget else max(warm, int(budget / image))
        if images < largest:
            self.notes.append(
                f"steps of {images} images were measured, not {largest}, and need less memory: more"
                " time is needed (--limit)"
            )
        if images > warm:
            self._again(images)
        short = (
            self.short
            if images == self.batch
            else max(warm, images // 4)
            if images < largest
            else 0
        )
        if short and short != images:
            self._keep(self._round(short, self.epochs))

    def _again(self, images: int) -> None:
        """Measure steps of so many images: one a level to warm up, then as many as there is time
        for.
        """
        once = self._round(images, 1)
        self.found["levels"].clear()
        self._keep(once)
        seconds = sum(seen.step for seen in once)
        number = min(_MOST_STEPS, int(min(0.4 * self.left(), _ENOUGH_S) / seconds))
        if number >= 2:
            again = self._round(images, number)
            self.found["levels"].clear()
            self._keep(again)
        self.epochs = max(1, number)

    def _round(self, images: int, epochs: int) -> list[Seen]:
        """Do a round in which each chosen client trains on so many images, so many times."""
        simulator = self.run.simulator
        trainer = self.run.trainer
        before, trainer.local.epochs, trainer.local.batch_size = (
            (trainer.local.epochs, trainer.local.batch_size),
            epochs,
            images,
        )
        self.chosen.plan(self.clients, images)
        self.watch.seen = []

        began = self.watch.now()
        metrics = simulator.round(self.state, callbacks=[self.watch])
        took = self.watch.now() - began
        self.metrics = metrics
        row_bytes = len(json.dumps(plain(metrics)))
        self.found["row_bytes"] = max(row_bytes, self.found.get("row_bytes", 0))
        trainer.local.epochs, trainer.local.batch_size = before
        self.found["server"] = max(0.0, took - sum(seen.whole for seen in self.watch.seen))
        self.steps += epochs * len(self.watch.seen)
        return self.watch.seen

    def _keep(self, seen: Sequence[Seen]) -> None:
        for one in seen:
            level = self.found["levels"].setdefault(one.level, {"steps": []})
            level["steps"].append((one.images, one.step))
            level |= {"overhead": one.overhead, "start": one.start / one.images}
        slowest = [max(level["steps"]) for level in self.found["levels"].values()]
        # an image at all levels, until it is measured
        self.found["image"] = _FORWARD * sum(seconds / images for images, seconds in slowest)
        self._tell()

    def _scoring(self) -> None:
        """Score a batch of the test set at all levels, together as a run does, and measure
        BatchNorm on a batch where a run does.
        """
        simulator = self.run.simulator
        evaluator = simulator.engine.evaluator
        submodels = simulator.population.submodels(self.state.round)
        forward = self.found["image"]
        if forward * BATCH > 0.5 * self.left():
            return
        measured = None
        if evaluator.norm:
            units = [(level, 0) for level in evaluator.levels]
            began = self.watch.now()
            measured = evaluator.measure(
                units, submodels, self.state.w, self.state.b, self.state.round
            )
            self.found["norm"] = (self.watch.now() - began) * evaluator.norm.batches()
        numbers = range(
            min(len(evaluator.starts), 1 + min(3, int(0.2 * self.left() / (forward * BATCH))))
        )
        times = []
        for number in numbers:
            began = self.watch.now()
            evaluator.score(
                [(level, number) for level in evaluator.levels],
                submodels,
                self.state.w,
                self.state.b,
                1,
                measured,
            )
            images = min(BATCH, self.found["images"] - BATCH * number)
            times.append((self.watch.now() - began) / images)
            self.scored += images
        self.found["image"] = statistics.median(times[1:] or times)

    def _transforms(self) -> None:
        """Time each line's transform on an update like the last."""
        split = self.run.split
        done = dict[str, float]()
        for line, told in zip(self.lines, self.found["lines"], strict=True):
            key = json.dumps(line["transform"], sort_keys=True, default=str)
            if key not in done:
                transform = build("transform", line["transform"]).bind(split.params, split.pairs)
                for _ in range(2):
                    stream = torch.Generator(self.ranks.device).manual_seed(0)
                    began = self.watch.now()
                    transform(1e-3 * self.state.w, stream)
                    done[key] = self.watch.now() - began
            told["transform"] = done[key]

    def _watching(self) -> None:
        """Do a round with diagnostics, where the settings have some."""
        if not self.diagnostics.watch(1):
            return
        every = self.settings["diagnostics"].get("every", 1)
        self.state.round = (
            self.state.round // every + 1
        ) * every - 1  # the next is one that is watched
        self.run.simulator.diagnostics = self.diagnostics
        before = dict(self.found)
        self._round(min(self.batch or self.short, _WARM_IMAGES), 1)
        self.found["server"] = before["server"]
        spent = sum(
            value
            for key, value in self.metrics.items()
            if key in ("time/cka_s", "time/gradients_s")
        )
        cohort = self.found["lines"][0]["counts"]["cohort"]
        self.found["watched"] = spent * max(1.0, cohort / len(self.clients))
        with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
            ArrayStore(Path(folder)).keep(1, self.diagnostics.arrays)
            self.found["arrays_bytes"] = sum(
                path.stat().st_size for path in Path(folder).rglob("*.npz")
            )

    def _recording(self) -> None:
        """Write a checkpoint and draw the first picture, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="inco-plan-") as folder:
            checkpoints = Checkpoints(Path(folder))
            for number in (1, 2):
                self.state.round = number
                began = time.perf_counter()
                path = checkpoints.save(pack(self.run, self.state, self.settings, 0.0))
                self.found["checkpoint"] = time.perf_counter() - began
            self.found["checkpoint_bytes"] = sum(file.stat().st_size for file in path.iterdir())
            self.run.simulator.diagnostics = NoDiagnostics()
            began = time.perf_counter()
            list(draw(self.run, Path(folder), 1))
            self.found["fixed"] += time.perf_counter() - began


def peak(ranks: Ranks) -> int:
    """Return the peak of this process's memory in bytes: the GPU's, or what is resident."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )

"""From what was measured to what a run takes: plain arithmetic, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inco.fast.schedule import assign


class Client(NamedTuple):
    """A client's work in a round: its level, its examples, the sizes of an epoch's batches."""

    level: int
    examples: int
    batches: Sequence[int]


@dataclass(frozen=True)
class Counts:
    """How much work a round is: local epochs, and the clients of the first rounds."""

    epochs: int
    cohorts: Sequence[Sequence[Client]]

    @property
    def steps(self) -> float:
        """Local steps of an average round."""
        batches = sum(len(client.batches) for cohort in self.cohorts for client in cohort)
        return self.epochs * batches / len(self.cohorts)


@dataclass(frozen=True)
class LevelTimes:
    """Seconds of one level: steps as (images, seconds) points, a client's `overhead` beside its
    steps (loading, upload, exact sum), and the `start` of its algorithm for each example
    (SCAFFOLD's option I looks at all of them).
    """

    steps: Sequence[tuple[float, float]]
    overhead: float = 0.0
    start: float = 0.0

    def step(self, images: float) -> float:
        """Return the seconds of a step on so many images: on the line through what was measured, or
        in proportion to one point.
        """
        (low, t_low) = min(self.steps)
        (high, t_high) = max(self.steps)
        if high == low:
            return t_low * images / low
        slope = min(max((t_high - t_low) / (high - low), 0.0), t_high / high)
        return max(t_high + slope * (images - high), 0.0)

    def client(self, client: Client, epochs: int) -> float:
        """Return the seconds that a client takes in a round."""
        steps = epochs * sum(self.step(images) for images in client.batches)
        return self.overhead + self.start * client.examples + steps


@dataclass
class Times:
    """What was measured of a kind, in seconds on one worker.

    `server`: averaging, algorithm, optimizer once a round; `transform`: once a round; `image`:
    scoring one test image at all levels; `images`: of the test set; `norm`: measuring BatchNorm
    once before scoring; `watched`: diagnostics in a watched round; `checkpoint`: writing one;
    `fixed`: start and end of a run.
    """

    levels: dict[int, LevelTimes] = field(default_factory=dict)
    server: float = 0.0
    transform: float = 0.0
    image: float = 0.0
    images: int = 0
    norm: float = 0.0
    watched: float = 0.0
    checkpoint: float = 0.0
    fixed: float = 0.0


@dataclass
class Measured:
    """What has been measured by now of kinds that share their times.

    `counts`, `transforms` (seconds): of each kind; `steps`: in words; `share`: of a core, that
    measuring has had; `arrays_bytes`: of a watched round's diagnostics.
    """

    counts: Sequence[Counts]
    transforms: list[float]
    times: Times
    notes: list[str]
    steps: str = ""
    memory_bytes: float | None = None
    share: float = 1.0
    row_bytes: int = 0
    arrays_bytes: int | None = None


@dataclass(frozen=True)
class Schedule:
    """When things happen; `every`: rounds between two that diagnostics watch, None without."""

    rounds: int
    eval_every: int
    checkpoint_every: int
    every: int | None = None

    @property
    def watched(self) -> int:
        """Rounds that the diagnostics watch: the first, and each `every`-th."""
        return self.rounds // self.every + (self.every > 1) if self.every else 0


def times_in(rounds: int, every: int) -> int:
    """Return how often something happens that happens every so many rounds, and in the last."""
    return math.ceil(rounds / every)


def side_by_side(seconds: Sequence[float], places: int) -> float:
    """Return the time until the last of some jobs is done, `places` at a time, longest first."""
    return max(sum(seconds[i] for i in mine) for mine in assign(seconds, places))


def training_seconds(counts: Counts, times: Times, workers: int) -> float:
    """Return what the clients of an average round take, shared out over workers."""
    total = 0.0
    for cohort in counts.cohorts:
        costs = [times.levels[client.level].client(client, counts.epochs) for client in cohort]
        total += side_by_side(costs, workers)
    return total / len(counts.cohorts)


@dataclass(frozen=True)
class Estimate:
    """Seconds of one run: `training`, `server`, `scoring`, `rest` over all its rounds, and `fixed`
    once a session.
    """

    rounds: int
    training: float
    server: float
    scoring: float
    rest: float
    fixed: float

    @property
    def a_round(self) -> float:
        """Seconds of an average round."""
        return (self.training + self.server + self.scoring + self.rest) / self.rounds

    def seconds(self, rounds: int) -> float:
        """Return the seconds of a session of so many rounds; none where there are none."""
        return self.fixed + rounds * self.a_round if rounds else 0.0


def estimate(counts: Counts, times: Times, schedule: Schedule, workers: int) -> Estimate:
    """Return what a run takes from its first round to its last."""
    workers = min(workers, len(counts.cohorts[0]))
    scored = times_in(schedule.rounds, schedule.eval_every)
    saved = times_in(schedule.rounds, schedule.checkpoint_every)
    return Estimate(
        rounds=schedule.rounds,
        training=schedule.rounds * training_seconds(counts, times, workers),
        server=schedule.rounds * (times.server + times.transform),
        scoring=scored * (times.image * times.images + times.norm) / workers,
        rest=schedule.watched * times.watched + saved * times.checkpoint,
        fixed=times.fixed,
    )


def disk_bytes(sizes: Mapping[str, Any], schedule: Schedule, clients: int) -> dict[str, float]:
    """Return what a run's folder comes to: `checkpoint`s (two), `clients`' own vectors, and the
    `rest` (rows, report, pictures).

    A client has a file once it has taken part, and those of the rounds since the older checkpoint
    have another.
    """
    cohort = sizes["cohort"]
    kept = min(2, times_in(schedule.rounds, schedule.checkpoint_every))
    seen = clients * (1 - (1 - cohort / clients) ** schedule.rounds)
    again = cohort * min(schedule.checkpoint_every, schedule.rounds) if kept == 2 else 0
    rows = 3 * schedule.rounds * sizes["row_bytes"]  # the rows, in the report, in W&B's file
    arrays = schedule.watched * sizes.get("arrays_bytes", 0)
    return {
        "checkpoint": kept * sizes["checkpoint_bytes"],
        "clients": min(seen + again, cohort * schedule.rounds) * sizes["client_bytes"],
        "rest": sizes["fixed_bytes"] + rows + arrays,
    }

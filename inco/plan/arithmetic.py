"""From what was measured to what a run takes: plain arithmetic, without torch.

`Counts` come from the settings and the partition, `Times` from the measurement; both travel as JSON
between processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from inco.fast.schedule import assign


@dataclass(frozen=True)
class LevelCounts:
    """The clients of one level in an average round, and what an average one of them does in an
    epoch.

    `clients`: of the cohort; `full`: full batches; `short`: shorter ones; `short_images`: images of
    such a one; `examples`: in all.
    """

    clients: float
    full: float
    short: float
    short_images: float
    examples: float


@dataclass(frozen=True)
class Counts:
    """How much work a round is.

    `cohorts`: sampled ones, a row (level, full, short, images of the short batch, examples) a
    client.
    """

    levels: Mapping[int, LevelCounts]
    epochs: int
    batch: int
    cohort: int
    cohorts: Sequence[Sequence[tuple[int, float, float, float, float]]] = ()

    @property
    def steps(self) -> float:
        """Local steps of an average round."""
        return self.epochs * sum(c.clients * (c.full + c.short) for c in self.levels.values())


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
        points = sorted(self.steps)
        (low, t_low) = points[0]
        (high, t_high) = points[-1]
        if high == low:
            return t_low if images == low else t_low * images / low
        slope = min(max((t_high - t_low) / (high - low), 0.0), t_high / high)
        return max(t_high + slope * (images - high), 0.0)


@dataclass(frozen=True)
class Times:
    """What was measured of a kind, in seconds on one worker.

    `server`: averaging, algorithm, optimizer once a round; `transform`: once a round; `image`:
    scoring one test image at all levels; `images`: of the test set; `norm`: measuring BatchNorm
    once before scoring; `watched`: diagnostics in a watched round; `checkpoint`: writing one;
    `fixed`: start and end of a run.
    """

    levels: Mapping[int, LevelTimes]
    server: float = 0.0
    transform: float = 0.0
    image: float = 0.0
    images: int = 0
    norm: float = 0.0
    watched: float = 0.0
    checkpoint: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """When things happen.

    `every`: rounds between two watched rounds of the diagnostics, None without; `workers`: of a
    job.
    """

    rounds: int
    eval_every: int
    checkpoint_every: int
    every: int | None = None
    workers: int = 1


def client_seconds(times: LevelTimes, epochs: int, batch: int, row: Sequence[float]) -> float:
    """Return what one client takes.

    `row`: full batches and short ones an epoch, images of a short one, examples.
    """
    full, short, images, examples = row
    return (
        times.overhead
        + times.start * examples
        + epochs * (full * times.step(batch) + short * (times.step(images) if short else 0.0))
    )


def train_seconds(counts: Counts, times: Times) -> float:
    """Return what all clients of an average round take, one after the other."""
    rows = {
        level: (c.full, c.short, c.short_images, c.examples) for level, c in counts.levels.items()
    }
    each = {
        level: client_seconds(times.levels[level], counts.epochs, counts.batch, row)
        for level, row in rows.items()
    }
    return sum(counts.levels[level].clients * seconds for level, seconds in each.items())


def share_of_longest(counts: Counts, times: Times, workers: int) -> float:
    """Return which part of a round's training the busiest worker does: 1 / workers at best.

    Clients go longest first to the least busy.
    """
    if workers <= 1 or not counts.cohorts:
        return 1.0 / max(workers, 1)
    longest = total = 0.0
    for cohort in counts.cohorts:
        costs = [
            client_seconds(times.levels[level], counts.epochs, counts.batch, row)
            for level, *row in cohort
        ]
        longest += max(sum(costs[i] for i in mine) for mine in assign(costs, workers))
        total += sum(costs)
    return longest / total if total else 1.0 / workers


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


def times_in(rounds: int, every: int) -> int:
    """Return how often something happens in a run that happens every so many rounds, and in the
    last.
    """
    return rounds // every + (rounds % every > 0)


def estimate(counts: Counts, times: Times, schedule: Schedule) -> Estimate:
    """Return what a run takes from its first round to its last."""
    rounds = schedule.rounds
    workers = max(1, min(schedule.workers, counts.cohort))
    scored = times_in(rounds, schedule.eval_every)
    saved = times_in(rounds, schedule.checkpoint_every)
    watched = len({1, *range(schedule.every, rounds + 1, schedule.every)}) if schedule.every else 0
    return Estimate(
        rounds,
        rounds * train_seconds(counts, times) * share_of_longest(counts, times, workers),
        rounds * (times.server + times.transform),
        scored * (times.image * times.images + times.norm) / workers,
        watched * times.watched + saved * times.checkpoint,
        times.fixed,
    )


def disk_bytes(sizes: Mapping[str, Any], schedule: Schedule, clients: int) -> dict[str, float]:
    """Return what a run's folder comes to: `checkpoint`s (two), `clients`' own vectors, and the
    `rest` (rows, report, pictures).

    A client has a file once it has taken part, and those of the rounds since the older checkpoint
    have another.
    """
    kept = min(2, times_in(schedule.rounds, schedule.checkpoint_every))
    seen = clients * (1 - (1 - sizes["cohort"] / clients) ** schedule.rounds)
    again = sizes["cohort"] * min(schedule.checkpoint_every, schedule.rounds) if kept == 2 else 0
    files = min(seen + again, sizes["cohort"] * schedule.rounds)
    watched = (
        len({1, *range(schedule.every, schedule.rounds + 1, schedule.every)})
        if schedule.every
        else 0
    )
    rows = schedule.rounds * sizes["row_bytes"]
    return {
        "checkpoint": kept * sizes["checkpoint_bytes"],
        "clients": files * sizes["client_bytes"],
        "rest": sizes["fixed_bytes"]
        + 3 * rows
        + watched * sizes.get("arrays_bytes", 0),  # the rows, in the report, in W&B's file
    }


def side_by_side(seconds: Sequence[float], jobs: int) -> float:
    """Return the time until the last of some runs is done, `jobs` at a time, longest first."""
    return max((sum(seconds[i] for i in mine) for mine in assign(seconds, jobs)), default=0.0)


def counts_from(data: Mapping[str, Any]) -> Counts:
    """Read counts as JSON gives them back."""
    levels = {int(level): LevelCounts(**row) for level, row in data["levels"].items()}
    return Counts(levels, data["epochs"], data["batch"], data["cohort"], data.get("cohorts", ()))


def times_from(data: Mapping[str, Any]) -> Times:
    """Read times as JSON gives them back; what else was measured is left out."""
    levels = {int(level): LevelTimes(**row) for level, row in data["levels"].items()}
    known = {
        key: value
        for key, value in data.items()
        if key in Times.__dataclass_fields__ and key != "levels"
    }
    return Times(levels, **known)


@dataclass
class Line:
    """A line of the table: a kind, its sizes, and what it is estimated to take where that was
    measured.
    """

    label: str
    runs: int
    finished: int
    rounds: int
    workers: int
    sizes: Mapping[str, Any]
    disk: Mapping[str, float]
    estimate: Estimate | None = None
    memory_bytes: float | None = None
    measured: str = ""
    share: float = 1.0  # of a core, that measuring has had
    left: Sequence[int] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        """Seconds of each run that is not finished."""
        return (
            [self.estimate.seconds(rounds) for rounds in self.left if rounds]
            if self.estimate
            else []
        )

    def as_json(self) -> dict[str, Any]:
        """Return the line as plain data."""
        told = asdict(self) | {
            "left": sum(self.left),
            "seconds": sum(self.seconds) if self.estimate else None,
        }
        told["disk_bytes"] = sum(self.disk.values())
        if self.estimate:
            told["estimate"] |= {"round_s": self.estimate.a_round}
        return told

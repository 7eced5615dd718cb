"""The points of a command line, grouped into kinds: runs that differ in nothing that costs time,
memory or disk.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inco.config.naming import register
from inco.errors import ConfigError, InCoError
from inco.run.front import Point, check
from inco.run.resume import finished_summary

# cost nothing, or nothing that is measured here; of options, the settings and classes are there
_FREE = ("seed", "name", "fresh", "scale", "tracker", "experiment", "debug", "options")
# groups whose fractions change numbers, not what is done
_METHODS = ("algorithm", "local", "server", "uplink")
# arithmetic does these
_COUNTED = ("rounds", "num_clients", "sample_ratio", "eval_every", "checkpoint_every", "partition")


@dataclass(frozen=True)
class Job:
    """One point: its overrides, folder and settings, and the rounds that its folder has already
    (all of them: it is finished).

    `note`: what of it is planned in another way than it would run.
    """

    overrides: tuple[str, ...]
    folder: Path
    settings: Mapping[str, Any]
    done: int
    note: str = ""

    @property
    def left(self) -> int:
        """Rounds to go."""
        return max(0, self.settings["rounds"] - self.done)


@dataclass(frozen=True)
class Kind:
    """Jobs of one cost. `label`: the overrides that tell it from other kinds."""

    label: str
    jobs: tuple[Job, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the first job, which stand for all."""
        return self.jobs[0].settings

    @property
    def layout(self) -> str:
        """What sizes depend on: kinds that share it are surveyed once."""
        counted = [self.settings[key] for key in ("num_clients", "sample_ratio")]
        return json.dumps([self.unit, self.settings["transform"]["_target_"], *counted])

    @property
    def unit(self) -> str:
        """What is measured once for all kinds that share it; the rest is arithmetic."""
        chosen = _costly(self.settings)
        for key in (*_COUNTED, "transform"):
            del chosen[key]
        for group, setting in (
            ("diagnostics", "every"),
            ("local", "epochs"),
            ("engine", "workers"),
        ):
            chosen[group] = {k: value for k, value in chosen[group].items() if k != setting}
        return _text(chosen)


def plan_jobs(conf: Path, overrides: Sequence[str], config_dir: str | None = None) -> list[Job]:
    """Return the jobs of `python run.py -m OVERRIDES`.

    Raises ConfigError with all problems, as run.py reports them.
    """
    register()
    argv = ["-m", *(["--config-dir", config_dir] if config_dir else [])]
    points = _points(conf, [*argv, *overrides])
    paths = dict.fromkeys(point.settings["partition"].get("path") for point in points)
    missing = [path for path in paths if path and not os.path.isfile(path)]
    note = ""
    if missing:
        drawn, note = _without_files(overrides, missing)
        try:
            points = _points(conf, [*argv, *drawn])
        except ConfigError:  # an experiment names the file
            points = _points(conf, [*argv, *drawn, "~partition.path"])
    return [Job(p.overrides, p.folder, p.settings, _done(p), note) for p in points]


def _points(conf: Path, argv: Sequence[str]) -> list[Point]:
    """Check a command line without torch."""
    checked = check(conf, argv, deep=False)
    if checked is None:
        raise ConfigError(
            "a plan is made of overrides alone; leave Hydra's own options (--cfg, --info,"
            " --config-name, ...) out"
        )
    return checked[0]


def _without_files(overrides: Sequence[str], missing: Sequence[str]) -> tuple[list[str], str]:
    """Return overrides that draw clients instead of reading them from files, and a note.

    The published files are named for their alpha; one that is not is taken for 0.5. A plan needs
    numbers of steps, not who has what.
    """
    found = [re.search(r"-(\d+\.\d+)\.", path) for path in missing]
    alphas = sorted({match[1] if match else "0.5" for match in found})
    kept = [word for word in overrides if not word.startswith(("partition=", "partition.path="))]
    note = (
        f"{', '.join(missing)}: no such file; counted with a Dirichlet partition (alpha"
        f" {', '.join(alphas)})"
    )
    return [*kept, "partition=dirichlet", f"partition.alpha={','.join(alphas)}"], note


def _done(point: Point) -> int:
    """Return how many rounds a run has finished, or has in its last checkpoint."""
    if point.settings["fresh"]:
        return 0
    try:
        if point.folder.is_dir() and finished_summary(point.settings, point.folder):
            return int(point.settings["rounds"])
    except InCoError:  # another run's folder, or a damaged summary: run.py will say so
        return 0
    checkpoints = (point.folder / "checkpoint").glob("round_*")
    saved = [path.name.removeprefix("round_") for path in checkpoints]
    return max((int(number) for number in saved if number.isdecimal()), default=0)


def kinds(jobs: Sequence[Job]) -> list[Kind]:
    """Group jobs by what they cost, in the order of the first of each."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_text(_costly(job.settings)), []).append(job)
    common = set.intersection(*(set(group[0].overrides) for group in groups.values()))
    return [Kind(_label(group, common) or "all runs", tuple(group)) for group in groups.values()]


def _label(group: Sequence[Job], common: set[str]) -> str:
    """Name what all jobs of a kind have, and not all jobs of the plan."""
    shared = set.intersection(*(set(job.overrides) for job in group)) - common
    return " ".join(override for override in group[0].overrides if override in shared)


def _costly(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a cost depends on.

    Of a fraction in the methods' groups (mu, lr, ...) it matters whether it is zero.
    """
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    for group in _METHODS:
        kept[group] = {key: _coarse(value) for key, value in kept[group].items()}
    kept["transform"] = {"_target_": kept["transform"]["_target_"]}
    kept["engine"] = {key: kept["engine"].get(key) for key in ("workers", "device", "mode")}
    return kept


def _coarse(value: Any) -> Any:
    if isinstance(value, list):
        return [_coarse(item) for item in value]
    return value != 0 if isinstance(value, float) else value


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)

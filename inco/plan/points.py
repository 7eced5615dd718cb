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
from inco.run.resume import verdict

# costs nothing, or nothing that is measured here
_FREE = (
    "seed",
    "name",
    "fresh",
    "scale",
    "tracker",
    "experiment",
    "debug",
    "options",  # their settings and classes are there
)
# groups whose fractions change numbers, not what is done
_COARSE = (
    "algorithm",
    "transform",
    "local",
    "server",
    "uplink",
)
# arithmetic does these
_COUNTED = (
    "rounds",
    "num_clients",
    "sample_ratio",
    "eval_every",
    "checkpoint_every",
    "partition",
    "transform",
)


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
    def finished(self) -> int:
        """How many of the jobs have nothing left to do."""
        return sum(job.left == 0 for job in self.jobs)

    @property
    def layout(self) -> str:
        """What sizes depend on: kinds that share it are surveyed once."""
        settings = self.settings
        return json.dumps(
            [
                self.unit,
                settings["transform"]["_target_"],
                settings["num_clients"],
                settings["sample_ratio"],
            ]
        )

    @property
    def unit(self) -> str:
        """What is measured once for all kinds that share it; the rest is arithmetic."""
        chosen = {
            key: value for key, value in _coarse(self.settings).items() if key not in _COUNTED
        }
        chosen["diagnostics"] = {
            key: value for key, value in chosen["diagnostics"].items() if key != "every"
        }
        chosen["local"] = {key: value for key, value in chosen["local"].items() if key != "epochs"}
        chosen["engine"] = {key: chosen["engine"].get(key) for key in ("device", "mode")}
        return json.dumps(chosen, sort_keys=True, default=str)


def plan_jobs(conf: Path, words: Sequence[str], config_dir: str | None = None) -> list[Job]:
    """Return the jobs of `python run.py -m WORDS`.

    Raises ConfigError with all problems, as run.py tells them.
    """
    register()
    extra = ["--config-dir", config_dir] if config_dir else []
    note = ""
    try:
        checked = _checked(conf, ["-m", *extra, *words])
    except ConfigError as error:
        words, note = _without_files(words, error)
        try:
            checked = _checked(conf, ["-m", *extra, *words])
        except ConfigError:  # an experiment names the file
            checked = check(conf, ["-m", *extra, *words, "~partition.path"], deep=False)
    if checked is None:
        raise ConfigError(
            "a plan is made of overrides alone; leave Hydra's own options (--cfg, --info,"
            " --config-name, ...) out"
        )
    return [
        Job(
            point.overrides, point.folder, point.settings, _done(point.settings, point.folder), note
        )
        for point in checked[0]
    ]


def _checked(conf: Path, argv: Sequence[str]) -> tuple[list[Point], bool] | None:
    """Check a command line without torch, and that its partition files are here."""
    checked = check(conf, argv, deep=False)
    paths = [point.settings["partition"].get("path") for point in (checked[0] if checked else [])]
    missing = {path: None for path in paths if path and not os.path.isfile(path)}
    if missing:
        raise ConfigError([f"partition.path={path}: no such file" for path in missing])
    return checked


def _without_files(words: Sequence[str], error: ConfigError) -> tuple[list[str], str]:
    """Return words that draw clients instead of reading them from files that are not here, and a
    note; else raise `error`.

    The published files are named for their alpha; a file that is not is taken for 0.5. A plan needs
    numbers of steps, not who has what.
    """
    found = [
        re.fullmatch(r"partition\.path=(.*): no such file", problem) for problem in error.problems
    ]
    missing = [match[1] for match in found if match]
    if not missing or len(missing) < len(found):
        raise error
    alphas = sorted(
        {match[1] if (match := re.search(r"-(\d+\.\d+)\.", path)) else "0.5" for path in missing}
    )
    kept = [word for word in words if not word.startswith(("partition=", "partition.path="))]
    note = (
        f"{', '.join(missing)}: no such file; counted with a Dirichlet partition (alpha"
        f" {', '.join(alphas)})"
    )
    return [*kept, "partition=dirichlet", f"partition.alpha={','.join(alphas)}"], note


def _done(settings: Mapping[str, Any], folder: Path) -> int:
    """Return how many rounds a run would not do again: all where it is finished, else those of its
    last checkpoint.
    """
    if settings["fresh"]:
        return 0
    try:
        if folder.is_dir() and verdict(settings, folder):
            return int(settings["rounds"])
    except InCoError:  # another run's folder, or a damaged summary: run.py will say so
        return 0
    saved = [path.name.removeprefix("round_") for path in (folder / "checkpoint").glob("round_*")]
    return max((int(number) for number in saved if number.isdecimal()), default=0)


def kinds(jobs: Sequence[Job]) -> list[Kind]:
    """Group jobs by what they cost, in the order of the first of each."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(
            json.dumps(_coarse(job.settings), sort_keys=True, default=str), []
        ).append(job)
    firsts = [group[0].overrides for group in groups.values()]
    common = set(firsts[0]).intersection(*firsts[1:]) if firsts else set()
    return [Kind(_label(group, common) or "all runs", tuple(group)) for group in groups.values()]


def _label(group: Sequence[Job], common: set[str]) -> str:
    """Say what all jobs of a kind have, and not all jobs of the plan."""
    return " ".join(
        word
        for word in group[0].overrides
        if word not in common and all(word in job.overrides for job in group)
    )


def _coarse(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a cost depends on.

    Of a fraction in the methods' groups (mu, lr, ...) it matters whether it is zero.
    """
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    for group in _COARSE:
        kept[group] = {key: _truth(value) for key, value in kept[group].items()}
    kept["transform"] = {"_target_": kept["transform"]["_target_"]}
    kept["engine"] = {key: kept["engine"].get(key) for key in ("workers", "device", "mode")}
    return kept


def _truth(value: Any) -> Any:
    if isinstance(value, list):
        return [_truth(item) for item in value]
    return value != 0 if isinstance(value, float) else value

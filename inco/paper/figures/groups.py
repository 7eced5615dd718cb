"""Groups of runs: equal settings but the seed. Their labels, their curves, and what they lack."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from inco.errors import ConfigError
from inco.records.names import flat, natural
from inco.records.runs import Run

_NAMED = ("dataset", "model", "split", "algorithm", "transform")
_NAME = re.compile(
    r"-".join(rf"(?P<{word}>[^-]+)" for word in _NAMED) + r"-s(?P<seed>\d+)-(?P<digest>[0-9a-f]{8})"
)
_DATASETS = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cinic10": "CINIC-10",
    "svhn": "SVHN",
}
_ALGORITHMS = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fednova": "FedNova",
    "moon": "MOON",
    "feddyn": "FedDyn",
}
TRANSFORMS = {
    "inco": "InCo",
    "no_normalization": "InCo w/o N",
    "no_optimization": "InCo w/o O",
    "neither": "InCo w/o N & O",
    "none": "",
    "add_noise": "noise",
}


class Curve(NamedTuple):
    """A metric over rounds: mean and sample standard deviation over `n` seeds; no deviation of one
    seed (None).
    """

    rounds: np.ndarray
    mean: np.ndarray
    sd: np.ndarray | None
    n: int


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of equal settings but the seed, ordered by it."""

    runs: tuple[Run, ...]
    label: str = ""

    @cached_property
    def choices(self) -> Mapping[str, str]:
        return choices(self.runs[0])

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """All settings with dotted names; empty where neither about.json nor summary.json tells
        them.
        """
        return flat(settings(self.runs[0]))

    @property
    def capacities(self) -> list[str]:
        """Short names of the sizes, smallest first."""
        told = self.runs[0].about.get("capacities")
        keys = [key for row in self.runs[0].rows for key in row]
        return list(
            told
            or dict.fromkeys(k.removeprefix("test/acc/") for k in keys if k.startswith("test/acc/"))
        )

    def keys(self, prefix: str) -> list[str]:
        """Return what follows a prefix in the names of metrics that some run has, in natural
        order.
        """
        found = {
            k.removeprefix(prefix)
            for run in self.runs
            for row in run.rows
            for k, v in row.items()
            if k.startswith(prefix) and v is not None
        }
        return sorted(found, key=natural)

    def curve(self, key: str) -> Curve:
        """Return a metric over the rounds in which every run that has it has it."""
        series = [run.series(key) for run in self.runs]
        series = [(rounds, values) for rounds, values in series if len(rounds)]
        if not series:
            return Curve(np.array([], dtype=int), np.array([]), None, 0)
        common = sorted(set.intersection(*(set(rounds.tolist()) for rounds, _ in series)))
        # [seeds, rounds]
        table = np.array([values[np.isin(rounds, common)] for rounds, values in series])
        return Curve(np.array(common, dtype=int), *over_seeds(table), len(table))

    def final(self, key: str = "test/acc", score: str = "last") -> np.ndarray:
        """Return each run's last, or best, value of a metric; runs without it are left out."""
        series = [run.series(key)[1] for run in self.runs]
        return np.array(
            [values[-1] if score == "last" else values.max() for values in series if len(values)]
        )


def _mildness(label: str) -> tuple[bool, bool, list[tuple[int, str]]]:
    """A key that puts the simplest environment first: IID, homogeneous."""
    return "IID" not in label, "homogeneous" not in label, natural(label)


def over_seeds(table: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean and sample standard deviation over the first dimension; no deviation of a single
    row.
    """
    return table.mean(0), table.std(0, ddof=1) if len(table) > 1 else None


def choices(run: Run) -> Mapping[str, str]:
    """Return the chosen option of each group; of folders without about.json what their name and
    settings tell.
    """
    if run.about:
        return dict(run.about["choices"])
    named = _NAME.fullmatch(run.folder.name)
    return _recorded(run).get("options", {}) | (
        {word: named[word] for word in _NAMED} if named else {}
    )


def settings(run: Run) -> Mapping[str, Any]:
    return {key: value for key, value in _recorded(run).items() if key != "options"}


def _recorded(run: Run) -> Mapping[str, Any]:
    return run.about.get("settings") or run.summary.get("settings") or {}


def seed(run: Run) -> int:
    """Return a run's seed; -1 where nothing tells it."""
    named = _NAME.fullmatch(run.folder.name)
    return int(run.about.get("seed", run.summary.get("seed", named["seed"] if named else -1)))


def digest(run: Run) -> str:
    """Return what runs of equal settings share; a run of which nothing is known is a group of its
    own.
    """
    named = _NAME.fullmatch(run.folder.name)
    return str(
        run.about.get(
            "digest", run.summary.get("digest", named["digest"] if named else run.folder.resolve())
        )
    )


def grouped(batches: Iterable[Iterable[Run]], labels: Sequence[str] = ()) -> list[Group]:
    """Group runs by their settings without the seed, and label the groups.

    `batches`: the runs of each argument of a command line; groups come in the order of the
    arguments that first have them, those of one argument in the order of the labels that are
    derived for them.
    """
    found: dict[str, dict[Any, Run]] = {}
    first: dict[str, int] = {}
    for place, runs in enumerate(batches):
        for run in runs:
            found.setdefault(digest(run), {})[run.folder.resolve()] = run
            first.setdefault(digest(run), place)
    groups = [Group(tuple(sorted(members.values(), key=seed))) for members in found.values()]
    derived = labels_of(groups)
    order = sorted(
        range(len(groups)), key=lambda k: (list(first.values())[k], *_mildness(derived[k]))
    )
    groups, derived = [groups[k] for k in order], [derived[k] for k in order]
    if labels and len(labels) != len(groups):
        raise ConfigError(
            f"--labels {','.join(labels)}: {len(labels)} given, and the runs make {len(groups)}"
            f" groups ({'; '.join(derived)}); give one label a group, in this order"
        )
    return [
        replace(group, label=label) for group, label in zip(groups, labels or derived, strict=True)
    ]


def labels_of(groups: Sequence[Group], ignore: Sequence[str] = ()) -> list[str]:
    """Return a label for each group: what differs between them, in words; settings that differ
    beside it by name.

    `ignore`: names of parts, of `PARTS`, or of settings that are told elsewhere.
    """
    words = {
        name: [part(group) for group in groups]
        for name, part in PARTS.items()
        if name not in ignore
    }
    telling = [told for told in words.values() if len(set(told)) > 1]
    if not telling:
        telling = [words[name] for name in ("partition", "clients", "method") if name in words]
    labels = [", ".join(filter(None, column)) for column in zip(*telling, strict=True)]
    for twice in {label for label in labels if labels.count(label) > 1}:
        same = [k for k, label in enumerate(labels) if label == twice]
        keys = [key for key in differing([groups[k] for k in same]) if key not in ignore]
        for k in same if len(same) > 1 and len(groups) > 1 else ():
            told = [f"{key}={_short(groups[k].settings.get(key))}" for key in keys[:3]] or [
                digest(groups[k].runs[0])[-8:]
            ]
            labels[k] = ", ".join(filter(None, [twice, *told]))
    return labels


def differing(groups: Sequence[Group]) -> list[str]:
    """Return the dotted settings that are not the same in all groups, but the seed."""
    keys = dict.fromkeys(key for group in groups for key in group.settings if key != "seed")
    return [key for key in keys if len({repr(group.settings.get(key)) for group in groups}) > 1]


def _partition(group: Group) -> str:
    name = group.choices.get("partition", "")
    of = group.settings
    if name == "dirichlet":
        return f"Dirichlet {of.get('partition.alpha', 0):g}"
    if name == "quantity":
        return f"quantity {of.get('partition.beta', 0):g}"
    if name in ("shards", "labels"):
        return (
            f"{of.get('partition.classes_per_client')}"
            f" {'shards' if name == 'shards' else 'classes'}"
        )
    return "IID" if name == "iid" else name


def _clients(group: Group) -> str:
    alike = group.choices.get("split") == "none" or group.choices.get("capacity") in (
        "all_small",
        "all_large",
    )
    return "homogeneous" if alike else group.choices.get("split", "")


def _method(group: Group) -> str:
    algorithm = group.choices.get("algorithm", "")
    transform = group.choices.get("transform", "")
    return " + ".join(
        filter(None, [_ALGORITHMS.get(algorithm, algorithm), TRANSFORMS.get(transform, transform)])
    )


def _uplink(group: Group) -> str:
    name = group.choices.get("uplink", "")
    return f"uplink noise {group.settings.get('uplink.scale', 0):g}" if name == "noise" else name


PARTS: dict[str, Callable[[Group], str]] = {
    "dataset": lambda g: _DATASETS.get(g.choices.get("dataset", ""), g.choices.get("dataset", "")),
    "model": lambda g: g.choices.get("model", ""),
    "partition": _partition,
    "clients": _clients,
    "method": _method,
    "local": lambda g: g.choices.get("local", ""),
    "server": lambda g: g.choices.get("server", ""),
    "uplink": _uplink,
}


def require(
    figure: str, runs: Iterable[Run], has: Callable[[Run], bool], what: str, *words: str
) -> None:
    """Raise ConfigError for runs that lack what a figure is made of, with a command that would make
    one of them anew.
    """
    lacking = [run for run in runs if not has(run)]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConfigError(
            f"{figure}: no {what} in {lacking[0].folder}{more}; such a run is made by\n "
            f" {command(lacking[0], *words)}"
        )


def command(run: Run, *words: str) -> str:
    """Return a run's command with other words for some of its settings; words of a group take the
    place of the group's own.

    Its name and folder are left out: they are those of the run as it was.
    """
    ours = {"name", "hydra.run.dir", *(word.partition("=")[0] for word in words)}
    told = shlex.split(str(run.about.get("command", "python run.py ...")))
    kept = [
        w
        for w in told
        if w.partition("=")[0] not in ours and not ("." in w and w.partition(".")[0] in ours)
    ]
    return shlex.join([*kept, *words]).replace("'...'", "...")


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rpartition(".")[2] if text.startswith("inco.") else text

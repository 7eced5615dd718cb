"""Groups of runs in figures: their labels, and what they lack."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from inco.errors import ConfigError
from inco.records.groups import Group, gather
from inco.records.names import natural
from inco.records.runs import Run

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


def _mildness(label: str) -> tuple[bool, bool, list[tuple[int, str]]]:
    """A sorting key that puts the simplest environment first: IID, homogeneous."""
    return "IID" not in label, "homogeneous" not in label, natural(label)


def digest(run: Run) -> str:
    """Return what runs of equal settings share: their digest, or else the folder."""
    named = run.named.get("digest", run.folder.resolve())
    return str(run.known.get("digest", named))


def labelled(groups: Sequence[Group], labels: Sequence[str]) -> list[Group]:
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


def grouped(batches: Sequence[Sequence[Run]], labels: Sequence[str] = ()) -> list[Group]:
    """Group runs by their settings without the seed, and label the groups.

    `batches`: the runs of each argument of a command line, whose order the groups keep; those of
    one argument are ordered by the labels that are derived for them.
    """
    first: dict[str, int] = {}
    for place, runs in enumerate(batches):
        for run in runs:
            first.setdefault(digest(run), place)
    unique = {run.folder.resolve(): run for runs in batches for run in runs}
    groups = gather(unique.values(), digest)
    groups = labelled(groups, labels_of(groups))
    groups.sort(key=lambda group: (first[digest(group.runs[0])], *_mildness(group.label)))
    if labels and len(labels) != len(groups):
        raise ConfigError(
            f"--labels {','.join(labels)}: {len(labels)} given, and the runs make {len(groups)}"
            f" groups ({'; '.join(group.label for group in groups)}); give one label per group, in"
            " this order"
        )
    return labelled(groups, labels) if labels else groups


def labels_of(groups: Sequence[Group], ignore: Sequence[str] = ()) -> list[str]:
    """Return what differs between groups, in words; settings that differ besides by name.

    `ignore`: names of `PARTS`, or of settings, that stand elsewhere.
    """
    words = {
        name: [part(group) for group in groups]
        for name, part in PARTS.items()
        if name not in ignore
    }
    telling = [column for column in words.values() if len(set(column)) > 1]
    if not telling:
        telling = [words[name] for name in ("partition", "clients", "method") if name in words]
    labels = [", ".join(filter(None, row)) for row in zip(*telling, strict=True)]
    for twice in {label for label in labels if labels.count(label) > 1}:
        same = [k for k, label in enumerate(labels) if label == twice]
        keys = [key for key in differing([groups[k] for k in same]) if key not in ignore]
        for k in same:
            more = [f"{key}={_short(groups[k].facts.get(key))}" for key in keys[:3]]
            more = more or [digest(groups[k].runs[0])[-8:]]
            labels[k] = ", ".join(filter(None, [twice, *more]))
    return labels


def differing(groups: Sequence[Group]) -> list[str]:
    """Return the dotted settings that are not the same in all groups."""
    keys = dict.fromkeys(key for group in groups for key in group.runs[0].settings)
    return [key for key in keys if len({repr(group.facts.get(key)) for group in groups}) > 1]


def _partition(group: Group) -> str:
    facts = group.facts
    name = facts.get("partition", "")
    if name == "dirichlet":
        return f"Dirichlet {facts.get('partition.alpha', 0):g}"
    if name == "quantity":
        return f"quantity {facts.get('partition.beta', 0):g}"
    if name in ("shards", "labels"):
        what = "shards" if name == "shards" else "classes"
        return f"{facts.get('partition.classes_per_client')} {what}"
    return "IID" if name == "iid" else name


def _clients(group: Group) -> str:
    split = group.facts.get("split", "")
    alike = split == "none" or group.facts.get("capacity") in ("all_small", "all_large")
    return "homogeneous" if alike else split


def _method(group: Group) -> str:
    algorithm = group.facts.get("algorithm", "")
    transform = group.facts.get("transform", "")
    words = (_ALGORITHMS.get(algorithm, algorithm), TRANSFORMS.get(transform, transform))
    return " + ".join(filter(None, words))


def _uplink(group: Group) -> str:
    name = group.facts.get("uplink", "")
    return f"uplink noise {group.facts.get('uplink.scale', 0):g}" if name == "noise" else name


PARTS: dict[str, Callable[[Group], str]] = {
    "dataset": lambda g: _DATASETS.get(g.facts.get("dataset", ""), g.facts.get("dataset", "")),
    "model": lambda g: g.facts.get("model", ""),
    "partition": _partition,
    "clients": _clients,
    "method": _method,
    "local": lambda g: g.facts.get("local", ""),
    "server": lambda g: g.facts.get("server", ""),
    "uplink": _uplink,
}


def require(
    figure: str, runs: Iterable[Run], has: Callable[[Run], bool], what: str, *overrides: str
) -> None:
    """Raise ConfigError for runs that lack what a figure needs, with a command that makes one."""
    lacking = [run for run in runs if not has(run)]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ConfigError(
            f"{figure}: no {what} in {lacking[0].folder}{more}; such a run is made by\n "
            f" {command(lacking[0], *overrides)}"
        )


def command(run: Run, *overrides: str) -> str:
    """Return a run's command with other overrides, without its name and folder."""
    ours = {"name", "hydra.run.dir", *(word.partition("=")[0] for word in overrides)}
    kept = [
        word
        for word in shlex.split(str(run.about.get("command", "python run.py ...")))
        if word.partition("=")[0] not in ours
        and not ("." in word and word.partition(".")[0] in ours)
    ]
    return shlex.join([*kept, *overrides]).replace("'...'", "...")


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rpartition(".")[2] if text.startswith("inco.") else text

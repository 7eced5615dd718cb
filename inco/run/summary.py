"""The facts of a run that its summary holds."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inco import machine
from inco.config.naming import digest, identity

if TYPE_CHECKING:
    from inco.assembly import Assembly
    from inco.engine.ranks import Ranks
    from inco.types import ServerState

_GIVEN = ("name", "group", "tags", "choices", "experiment", "scale", "command", "difference")


def header(
    run: Assembly, ranks: Ranks, settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a user sees of a run before it starts."""
    population = run.simulator.population
    held = run.partition.sizes
    train = f"{len(run.dataset.train.labels):,} training"
    test = f"{len(run.dataset.test.labels):,} test images"
    clients = f"{population.num_clients:,}, {population.cohort_size} a round"
    models = (f"{run.split.names[k]} ({cost.params:,})" for k, cost in run.costs.items())
    return {
        "dataset": f"{run.dataset.name}: {train}, {test}",
        "clients": f"{clients}; {held.min()} to {held.max()} examples each",
        "models": f"{', '.join(models)} parameters",
        "method": facts["method"],
        "rounds": settings["rounds"],
        "workers": f"{ranks.world} on {ranks.device.type}",
    }


def about(run: Assembly, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a run from its start on: what about.json holds."""
    groups = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    return {
        **{key: facts[key] for key in _GIVEN},
        "seed": settings["seed"],
        "digest": digest(settings),
        "rounds": settings["rounds"],
        "settings": identity(settings),
        "targets": {key: node["_target_"] for key, node in groups.items() if "_target_" in node},
        "capacities": [run.split.names[level] for level in sorted(run.costs)],
        "classes": list(run.dataset.classes),
        **sizes(run),
        **origin(),
    }


def measures(run: Assembly, ranks: Ranks, state: ServerState) -> dict[str, Any]:
    """Return what is measured at the end of a run. Every rank must call `peak_memory` then."""
    return {
        "peak_rss_bytes": peak_memory(ranks),
        "weights_sha256": sha256(state),
        "dataset_sha256": run.dataset.digest,
        "partition_sha256": run.partition.digest,
        **sizes(run),
        "workers": ranks.world,
        "device": str(ranks.device.type),
    }


def scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last and the best scores of a run's rows, and the round of the best accuracy."""
    scored = [row for row in rows if row.get("test/acc") is not None]
    if not scored:
        return {"test/acc": None, "test/acc_best": None, "round_best": None}
    # the first of equals: a later round that is no better does not count as the best
    best = max(scored, key=lambda row: row["test/acc"])
    last = {key: value for key, value in scored[-1].items() if key.startswith("test/")}
    accuracies = [key for key in last if key.startswith("test/acc")]
    tops = {f"{key}_best": max(row[key] for row in scored) for key in accuracies}
    return last | tops | {"round_best": best["round"]}


def sizes(run: Assembly) -> dict[str, float]:
    """What a client of each level costs, and the means over the population's clients: the columns
    of the paper's Table 3.

    `flops` are two a multiply-add, of one image's forward pass; bytes are a round's, each way.
    """
    found: dict[str, float] = {}
    for level, cost in run.costs.items():
        name = run.split.names[level]
        found |= {f"params/{name}": cost.params, f"flops/{name}": cost.flops}
        found |= {f"down_bytes/{name}": cost.down_bytes, f"up_bytes/{name}": cost.up_bytes}
    held = run.simulator.population.capacity.sizes()
    clients = sum(held.values())
    for what in ("params", "flops", "down_bytes", "up_bytes"):
        total = sum(n * getattr(run.costs[level], what) for level, n in held.items())
        found[f"mean_{what}"] = total / clients
    return found


def peak_memory(ranks: Ranks) -> int:
    """Return the largest resident size of each rank, summed, in bytes. Every rank must call it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return sum(ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def sha256(state: ServerState) -> str:
    """Return the hash of the server's parameters and buffers."""
    hasher = hashlib.sha256()
    for vector in (state.w, state.b):
        hasher.update(vector.cpu().numpy().tobytes())
    return hasher.hexdigest()


def origin() -> dict[str, Any]:
    """Return what a result depends on beside settings and data: versions, the machine, and the
    commit of this code, if it has one.
    """
    git = machine.commit() or None
    return {"versions": machine.versions(), "machine": machine.describe(), "git": git}

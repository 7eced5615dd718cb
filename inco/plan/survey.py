"""What a run is made of, before any data are read: parameters, FLOPs and bytes by capacity, and
what its checkpoint will hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from inco.algorithms.fedavg import Algorithm
from inco.assembly import Assembly
from inco.clients.costs import level_cost
from inco.config.naming import identity
from inco.config.targets import build, locate
from inco.plan.standin import prepared
from inco.records.record import plain
from inco.run.summary import sizes
from inco.splits.base import Split
from inco.types import ClientTask, LocalRun, SubModel

# of a key of metrics.jsonl with its value, and of those that every row has
_KEY_BYTES = 48
_ROW_BYTES = 700
_FIXED_BYTES = 500_000  # report, pictures, log, settings: measured on runs of the default size
_SHA256 = "0" * 64


def survey(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a kind of run. Raises ConfigError or DataError."""
    replaced, _ = prepared(settings)
    source = build("dataset", replaced["dataset"])
    model = replaced["model"]
    recipe = source.recipe(locate("model", model["_target_"]).recipe, model.get("image_size"))
    split = _split(
        json.dumps(model), json.dumps(replaced["split"]), recipe.shape, source.num_classes
    )
    clients = settings["num_clients"]
    levels = {"num_clients": clients, "num_levels": len(split.names), "seed": settings["seed"]}
    capacity = build("capacity", settings["capacity"], **levels)
    algorithm = build("algorithm", settings["algorithm"])
    submodels = {level: split.submodel(level, 0) for level in capacity.levels}
    costs = {level: level_cost(sub, recipe.shape, algorithm) for level, sub in submodels.items()}
    simulator = SimpleNamespace(population=SimpleNamespace(capacity=capacity))
    run = cast(Assembly, SimpleNamespace(costs=costs, split=split, simulator=simulator))
    held = capacity.sizes()
    moving = capacity.moving or split.moving
    files = sum(
        number * client_file_bytes(algorithm, submodels[level], split, moving)
        for level, number in held.items()
    )
    transform = build("transform", settings["transform"]).bind(split.params, split.pairs)
    keys = 5 * len(submodels) + 2 * len(getattr(transform, "pairs", ()))
    return {
        "capacities": [split.names[level] for level in sorted(submodels)],
        "sizes": sizes(run),
        "params": split.params.numel,
        "cohort": max(1, int(clients * settings["sample_ratio"] + 1e-9)),
        "checkpoint_bytes": checkpoint_bytes(settings, split, algorithm, capacity),
        "client_bytes": files / sum(held.values()),
        "row_bytes": _ROW_BYTES + _KEY_BYTES * keys,
        "fixed_bytes": _FIXED_BYTES,
    }


@cache
def _split(model: str, split: str, shape: tuple[int, int, int], num_classes: int) -> Split:
    """Build a split once for all kinds that have it: models of many tensors take a while."""
    family = build("model", json.loads(model), shape=shape, num_classes=num_classes)
    made: Split = build("split", json.loads(split), family=family)
    return made


def checkpoint_bytes(
    settings: Mapping[str, Any], split: Split, algorithm: Algorithm, capacity: Any
) -> int:
    """Return the bytes of one checkpoint: its tensors, and the facts beside them."""
    w = torch.zeros(split.params.numel)
    vectors = {
        "algorithm": algorithm.init_server(w),
        "optimizer": build("server", settings["server"]).init(w),
        "split": split.init_server(),
    }
    tensors = {
        f"{part}/{name}": vector
        for part, named in vectors.items()
        for name, vector in named.items()
        if name not in algorithm.free_downloads
    }
    for layout in (split.params, split.buffers):
        for entry in layout.entries.values():
            tensors[f"model/{entry.name}"] = torch.zeros(()).expand(entry.shape)
    levels = [capacity.level(client, 1) for client in range(min(settings["num_clients"], 1000))]
    content = {"dataset": _SHA256, "partition": _SHA256, "levels": levels}
    meta = {"settings": identity(settings), "content": content, "wall_s": 1234.5678901234567}
    about = {"format_version": 1, "round": settings["rounds"]}
    facts = json.dumps({**about, "meta": plain(meta)})
    file = {"bytes": 10**7, "sha256": _SHA256}
    files = {"state.safetensors": file, "meta.json": file}
    manifest = json.dumps({**about, "files": files, "sha256": _SHA256}, indent=1)
    return _tensor_file_bytes(tensors) + len(facts) + len(manifest)


def client_file_bytes(algorithm: Algorithm, sub: SubModel, split: Split, moving: bool) -> int:
    """Return the size of a client's own file after its first round; 0 where it has none."""
    if not algorithm.stateful:
        return 0
    tensors = _first_state(algorithm, sub)
    if moving:  # kept in the server's coordinates
        for name, vector in tensors.items():
            if name not in algorithm.kept_whole and vector.numel() > 1:
                layout = split.buffers if name.startswith("buffers") else split.params
                tensors[name] = torch.zeros((), dtype=vector.dtype).expand(layout.numel)
    return _tensor_file_bytes(tensors, {"__metadata__": {"sha256": _SHA256}})


def _first_state(algorithm: Algorithm, sub: SubModel) -> dict[str, Tensor]:
    """Return the vectors that a client keeps after a first round in which nothing moves."""
    w = torch.zeros(sub.params.layout.numel)
    b = torch.zeros(sub.buffers.layout.numel)
    server = {name: w.clone() for name in (*algorithm.downloads, *algorithm.free_downloads)}
    task = ClientTask(0, 1, sub.level, torch.zeros(1, dtype=torch.int64))
    model = torch.nn.Identity()
    run = LocalRun(task, model, w, w.clone(), w.clone(), 0.1, 0.0, b, b.clone(), server)
    run.full_gradient = lambda: torch.zeros_like(w)
    run.state = algorithm.init_client(run)
    algorithm.local_start(run)
    run.steps = 1
    algorithm.local_end(run)
    return run.state


def _tensor_file_bytes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> int:
    """Return the size of a safetensors file: a length, a JSON header, the numbers."""
    end = 0
    header: dict[str, Any] = dict(metadata or {})
    # as safetensors writes them
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        vector = tensors[name]
        offsets = [end, end + vector.nbytes]
        header[name] = {"dtype": "F32", "shape": list(vector.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end

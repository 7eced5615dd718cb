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
from inco.models.base import Family
from inco.plan.standin import prepared
from inco.records.record import plain
from inco.run.summary import sizes
from inco.splits.base import Split
from inco.types import ClientTask, LocalRun, SubModel

_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# of a key of metrics.jsonl with its value, and of those that every row has
_KEY_BYTES = 48
_ROW_BYTES = 700
_FIXED_BYTES = 500_000  # report, pictures, log, settings: measured on runs of the default size
_DIGEST = 32  # bytes behind a client's vectors


def survey(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a kind of run. Raises ConfigError or DataError."""
    whole, _ = prepared(settings)
    source = build("dataset", whole["dataset"])
    recipe = source.recipe(
        locate("model", whole["model"]["_target_"]).recipe, whole["model"].get("image_size")
    )
    split = _split(
        json.dumps(whole["model"]), json.dumps(whole["split"]), recipe.shape, source.num_classes
    )
    levels = dict(num_clients=whole["num_clients"], num_levels=len(split.names), seed=whole["seed"])
    capacity = build("capacity", whole["capacity"], **levels)
    algorithm = build("algorithm", whole["algorithm"])
    submodels = {level: split.submodel(level, 0) for level in capacity.levels}
    costs = {level: level_cost(sub, recipe.shape, algorithm) for level, sub in submodels.items()}
    seen = SimpleNamespace(
        costs=costs,
        split=split,
        simulator=SimpleNamespace(population=SimpleNamespace(capacity=capacity)),
    )
    held = capacity.sizes()
    moving = capacity.moving or split.moving
    files = {
        level: client_file_bytes(algorithm, sub, split, moving) for level, sub in submodels.items()
    }
    transform = build("transform", whole["transform"]).bind(split.params, split.pairs)
    mixed = 2 * len(getattr(transform, "pairs", ()))
    return {
        "capacities": [split.names[level] for level in sorted(submodels)],
        "sizes": sizes(cast(Assembly, seen)),
        "params": split.params.numel,
        "cohort": max(1, int(whole["num_clients"] * whole["sample_ratio"] + 1e-9)),
        "checkpoint_bytes": checkpoint_bytes(settings, split, algorithm, capacity),
        "client_bytes": sum(files[level] * number for level, number in held.items())
        / sum(held.values()),
        "row_bytes": _ROW_BYTES + _KEY_BYTES * (5 * len(submodels) + mixed),
        "fixed_bytes": _FIXED_BYTES,
    }


@cache
def _split(model: str, split: str, shape: tuple[int, int, int], num_classes: int) -> Split:
    """Build a split once for all kinds that have it; models of many tensors take a while to lay
    out.
    """
    family: Family = build("model", json.loads(model), shape=shape, num_classes=num_classes)
    made: Split = build("split", json.loads(split), family=family)
    return made


def checkpoint_bytes(
    settings: Mapping[str, Any], split: Split, algorithm: Algorithm, capacity: Any
) -> int:
    """Return the bytes of one checkpoint: its tensors, their names and shapes, and the facts beside
    them.
    """
    w = torch.zeros(split.params.numel)
    optimizer = build("server", settings["server"])
    vectors = {
        "algorithm": algorithm.init_server(w),
        "optimizer": optimizer.init(w),
        "split": split.init_server(),
    }
    shapes = {
        f"model/{e.name}": (torch.float32, e.shape)
        for layout in (split.params, split.buffers)
        for e in layout.entries.values()
    }
    for part, named in vectors.items():
        shapes |= {
            f"{part}/{name}": (t.dtype, tuple(t.shape))
            for name, t in named.items()
            if name not in algorithm.planned
        }
    levels = [capacity.level(client, 1) for client in range(min(settings["num_clients"], 1000))]
    content = {"dataset": "0" * 64, "partition": "0" * 64, "levels": levels}
    meta = {"settings": identity(settings), "content": content, "wall_s": 1234.5678901234567}
    facts = len(json.dumps({"format_version": 1, "round": settings["rounds"], "meta": plain(meta)}))
    vouched = {
        name: {"bytes": 10**7, "sha256": "0" * 64} for name in ("state.safetensors", "meta.json")
    }
    manifest = {
        "format_version": 1,
        "round": settings["rounds"],
        "files": vouched,
        "sha256": "0" * 64,
    }
    return _tensor_file_bytes(shapes) + facts + len(json.dumps(manifest, indent=1))


def client_file_bytes(algorithm: Algorithm, sub: SubModel, split: Split, moving: bool) -> int:
    """Return the bytes of the file of a client's own vectors after its first round; 0 for
    algorithms without any.
    """
    if not algorithm.stateful:
        return 0
    state = _first_state(algorithm, sub)
    shapes = {}
    for name, t in state.items():
        whole = split.buffers.numel if name.startswith("buffers") else split.params.numel
        wide = moving and name not in algorithm.kept_whole and t.numel() > 1
        shapes[name] = (t.dtype, (whole,) if wide else tuple(t.shape))
    return _tensor_file_bytes(shapes) + _DIGEST


def _first_state(algorithm: Algorithm, sub: SubModel) -> dict[str, Tensor]:
    """Let an algorithm go through a client's first round in which nothing moves; return the vectors
    that the client keeps.
    """
    n = sub.params.layout.numel
    b = sub.buffers.layout.numel
    w = torch.zeros(n)
    buffers = torch.zeros(b)
    server = {name: torch.zeros(n) for name in (*algorithm.downloads, *algorithm.planned)}
    task = ClientTask(0, 1, sub.level, torch.zeros(1, dtype=torch.int64))
    run = LocalRun(
        task,
        torch.nn.Identity(),
        w,
        w.clone(),
        torch.zeros(n),
        0.1,
        0.0,
        buffers,
        buffers.clone(),
        server,
    )
    run.full_gradient = lambda: torch.zeros(n)
    run.state = algorithm.init_client(run)
    algorithm.local_start(run)
    run.steps = 1
    algorithm.local_end(run)
    return run.state


def _tensor_file_bytes(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """Return the size of a safetensors file: eight bytes, a JSON header filled up to a multiple of
    eight, the numbers.
    """
    offset = 0
    header = {}
    # as safetensors writes them
    order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    for name in order:
        dtype, shape = shapes[name]
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {
            "dtype": _DTYPES.get(dtype, "F32"),
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + offset

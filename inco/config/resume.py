"""Start a run where its last checkpoint ended, and refuse to go on with another run's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.config.naming import identity
from inco.errors import ConfigError

if TYPE_CHECKING:
    from inco.checkpoint import State
    from inco.config.wiring import Assembly
    from inco.engine import Ranks
    from inco.simulator import ServerState

OURS = ("metrics.jsonl", "summary.json", "checkpoint", "report.html", "partition.png", "wandb_id", "run.log")


def begin(run: Assembly, ranks: Ranks, settings: Mapping[str, Any], saved: State | None) -> ServerState:
    """Return the state that every rank starts from: rank 0's checkpoint, or the first one."""
    state = ranks.local_first(lambda: run.simulator.start(settings["seed"]))  # the first may fetch pretrained weights for all
    saved = ranks.share(saved)
    if saved is not None:
        state.round = saved.round
        vectors = saved.tensors
        run.split.params.pack({n: vectors[f"model/{n}"] for n in run.split.params.entries}, state.w)
        run.split.buffers.pack({n: vectors[f"model/{n}"] for n in run.split.buffers.entries}, state.b)
        for part in ("algorithm", "optimizer"):
            own = getattr(state, part)
            own.update({name: vectors[f"{part}/{name}"].to(ranks.device) for name in own})
    return state


def pack(run: Assembly, state: ServerState, settings: Mapping[str, Any], wall_s: float) -> State:
    """Name every tensor, so that a checkpoint can be read without this package."""
    from inco.checkpoint import State

    named = run.split.params.views(state.w) | run.split.buffers.views(state.b)
    tensors = {f"model/{name}": t.cpu() for name, t in named.items()}
    for part in ("algorithm", "optimizer"):
        tensors |= {f"{part}/{name}": t.cpu() for name, t in getattr(state, part).items()}
    return State(state.round, tensors, {"settings": identity(settings), "wall_s": wall_s})


def same_run(saved: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than those that made the record."""
    theirs, ours = _flatten(saved), _flatten(identity(settings))
    differ = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
    if differ:
        lines = [f"{key}: this folder's run has {theirs.get(key)}, this command {ours.get(key)}" for key in differ]
        raise ConfigError([f"{folder} holds a run with other settings; use fresh=true to start over, or another folder", *lines])


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def wipe(folder: Path) -> None:
    """Remove what a former run has recorded here, and nothing else."""
    for name in OURS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

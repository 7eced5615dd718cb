"""Start a run where its last checkpoint ended, and refuse to go on with another run's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.config.naming import identity
from inco.errors import ConfigError, StorageError
from inco.records.names import flat
from inco.records.record import RunRecord, plain

if TYPE_CHECKING:
    from torch import Tensor

    from inco.assembly import Assembly
    from inco.engine.ranks import Ranks
    from inco.records.checkpoint import State
    from inco.types import ServerState

# what a run leaves in its folder, beside its log and .hydra/
_FILES = ("metrics.jsonl", "about.json", "summary.json", "report.html", "profile.txt", "wandb_id")
_FOLDERS = ("checkpoint", "clients", "cka", "gradients")
_PICTURES = ("partition", "cka", "gradients", "features", "landscape")  # .png, of most a .npz


def with_state_dir(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings with the folder of clients' own vectors: in the run's folder, or in one
    of its name where the user wants them.
    """
    chosen = settings["engine"]["state_dir"]
    place = Path(chosen).absolute() / folder.name if chosen else folder / "clients"
    return {**settings, "engine": settings["engine"] | {"state_dir": str(place)}}


def finished_summary(settings: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is finished already; None where there is work to do.

    Raises ConfigError where the folder holds a run with other settings.
    """
    summary = None if settings["fresh"] else RunRecord(folder).read_summary()
    if summary is None:
        return None
    recorded = summary.get("settings")
    rounds = summary.get("rounds")
    if not (isinstance(recorded, Mapping) and isinstance(rounds, int) and "status" in summary):
        raise StorageError(
            f"{folder / 'summary.json'} is not what a run leaves; delete it, then give the same"
            " command to resume"
        )
    same_run(recorded, settings, folder)
    finished = summary["status"] == "finished" and rounds >= settings["rounds"]
    return summary if finished else None


def begin(
    run: Assembly, ranks: Ranks, settings: Mapping[str, Any], saved: State | None
) -> ServerState:
    """Return the state that every rank starts from: rank 0's checkpoint, or the first one."""
    # the first may fetch pretrained weights for all
    state = ranks.local_first(lambda: run.simulator.start(settings["seed"]))
    saved = ranks.share(saved)
    if saved is not None:
        theirs = saved.meta["content"]
        ours = content(run, settings)
        differ = [key for key in ours if theirs.get(key) != ours[key]]
        if differ:
            raise ConfigError(
                f"{' and '.join(differ)}: not what this run began with, though its name is the"
                " same; use fresh=true or another name"
            )
        _unpack(run, saved, state)
    return state


def _unpack(run: Assembly, saved: State, state: ServerState) -> None:
    state.round = saved.round
    for layout, vector in ((run.split.params, state.w), (run.split.buffers, state.b)):
        layout.pack({name: saved.tensors[f"model/{name}"] for name in layout.entries}, vector)
    if run.simulator.algorithm.stateful:
        # which file is a client's last follows from the cohorts alone
        for number in range(1, state.round + 1):
            run.trainer.store.advance(number, run.simulator.population.cohort(number))
    for name, own, key in _kept(run, state):
        own[key] = saved.tensors[name].to(state.w.device)


def _kept(run: Assembly, state: ServerState) -> Iterator[tuple[str, dict[str, Tensor], str]]:
    """Yield what a state has beside its model, but for what is made anew each round: the name in a
    checkpoint, and where it is.
    """
    for part in ("algorithm", "optimizer", "split"):
        own = getattr(state, part)
        for key in own:
            if key not in run.simulator.algorithm.free_downloads:
                yield f"{part}/{key}", own, key


def content(run: Assembly, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the run's data, whatever the names of files: images, who holds them,
    who holds which level.
    """
    capacity = run.simulator.population.capacity
    clients = min(settings["num_clients"], 1000)
    return {
        "dataset": run.dataset.digest,
        "partition": run.partition.digest,
        "levels": [capacity.level(client, 1) for client in range(clients)],
    }


def pack(run: Assembly, state: ServerState, settings: Mapping[str, Any], wall_s: float) -> State:
    """Return what a checkpoint holds: every tensor by name, readable without this package."""
    from inco.records.checkpoint import State

    named = run.split.params.views(state.w) | run.split.buffers.views(state.b)
    tensors = {f"model/{name}": tensor.cpu() for name, tensor in named.items()}
    tensors |= {name: own[key].cpu() for name, own, key in _kept(run, state)}
    meta = {"settings": identity(settings), "content": content(run, settings), "wall_s": wall_s}
    return State(state.round, tensors, plain(meta))


def same_run(saved: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than those that made the record."""
    # both as a record holds them
    theirs = flat(plain(saved))
    ours = flat(plain(identity(settings)))
    differ = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
    if differ:
        lines = (
            f"{key}: this folder's run has {theirs.get(key)}, this command {ours.get(key)}"
            for key in differ
        )
        fix = "use fresh=true to start over, or another folder"
        raise ConfigError([f"{folder} holds a run with other settings; {fix}", *lines])


def wipe(folder: Path, state_dir: Path) -> None:
    """Remove what a former run has recorded here, and the clients' vectors in its own `state_dir`,
    and nothing else.
    """
    pictures = [f"{name}.{kind}" for name in _PICTURES for kind in ("png", "npz")]
    for path in [*(folder / name for name in (*_FILES, *_FOLDERS, *pictures)), state_dir]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

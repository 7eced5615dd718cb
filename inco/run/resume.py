"""Start a run where its last checkpoint ended, and refuse to go on with another run's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.config.naming import identity
from inco.errors import ConfigError, StorageError
from inco.records.names import flat
from inco.records.record import RunRecord, plain

if TYPE_CHECKING:
    from inco.assembly import Assembly
    from inco.engine.ranks import Ranks
    from inco.records.checkpoint import State
    from inco.types import ServerState

OURS = (
    "metrics.jsonl",
    "about.json",
    "summary.json",
    "checkpoint",
    "report.html",
    "partition.png",
    "partition.npz",
    "profile.txt",
    "wandb_id",
    "clients",
    "cka",
    "cka.png",
    "gradients",
    "gradients.png",
    "features.npz",
    "features.png",
    "landscape.npz",
    "landscape.png",
)


def placed(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Say where clients' own vectors are kept: in the run's folder, or in one of its name where the
    user wants them.
    """
    chosen = settings["engine"]["state_dir"]
    place = Path(chosen).absolute() / folder.name if chosen else folder / "clients"
    return {**settings, "engine": settings["engine"] | {"state_dir": str(place)}}


def verdict(settings: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is finished already; None where there is work to do.

    Raises ConfigError where the folder holds a run with other settings.
    """
    done = None if settings["fresh"] else RunRecord(folder).read_summary()
    if done is None:
        return None
    if not (
        isinstance(done.get("settings"), Mapping)
        and isinstance(done.get("rounds"), int)
        and "status" in done
    ):
        raise StorageError(
            f"{folder / 'summary.json'} is not what a run leaves; delete it, then give the same"
            " command to resume"
        )
    same_run(done["settings"], settings, folder)
    return done if done["status"] == "finished" and done["rounds"] >= settings["rounds"] else None


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
        state.round = saved.round
        vectors = saved.tensors
        run.split.params.pack({n: vectors[f"model/{n}"] for n in run.split.params.entries}, state.w)
        run.split.buffers.pack(
            {n: vectors[f"model/{n}"] for n in run.split.buffers.entries}, state.b
        )
        past = range(1, state.round + 1) if run.simulator.algorithm.stateful else ()
        for number in past:  # which file is a client's last follows from the cohorts alone
            run.trainer.store.advance(number, run.simulator.population.cohort(number))
        for part in ("algorithm", "optimizer", "split"):
            own = getattr(state, part)
            # those are made anew each round
            saved_names = [name for name in own if name not in run.simulator.algorithm.planned]
            own.update({name: vectors[f"{part}/{name}"].to(ranks.device) for name in saved_names})
    return state


def content(run: Assembly, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells the run's data apart, whatever the names of files: images, who holds them,
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
    """Name every tensor, so that a checkpoint can be read without this package."""
    from inco.records.checkpoint import State

    named = run.split.params.views(state.w) | run.split.buffers.views(state.b)
    tensors = {f"model/{name}": t.cpu() for name, t in named.items()}
    for part in ("algorithm", "optimizer", "split"):
        kept = {
            n: t
            for n, t in getattr(state, part).items()
            if n not in run.simulator.algorithm.planned
        }
        tensors |= {f"{part}/{name}": t.cpu() for name, t in kept.items()}
    meta = {"settings": identity(settings), "content": content(run, settings), "wall_s": wall_s}
    return State(state.round, tensors, plain(meta))


def same_run(saved: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than those that made the record."""
    # both as a record holds them
    theirs = flat(plain(saved))
    ours = flat(plain(identity(settings)))
    differ = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
    if differ:
        lines = [
            f"{key}: this folder's run has {theirs.get(key)}, this command {ours.get(key)}"
            for key in differ
        ]
        raise ConfigError(
            [
                (
                    f"{folder} holds a run with other settings; use fresh=true to start over, or"
                    " another folder"
                ),
                *lines,
            ]
        )


def wipe(folder: Path, state_dir: Path) -> None:
    """Remove what a former run has recorded here, and the clients' vectors in its own `state_dir`,
    and nothing else.
    """
    for path in [*(folder / name for name in OURS), state_dir]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

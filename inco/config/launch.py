"""Run one configuration in one folder: resume, start ranks, record every round, leave a summary."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inco.config.naming import digest, identity
from inco.config.targets import build
from inco.errors import ConfigError, InCoError, WorkerError
from inco.workers import how_many, local_workers

if TYPE_CHECKING:
    from inco.checkpoint import State
    from inco.config.wiring import Assembly
    from inco.engine import Ranks
    from inco.simulator import Metrics, ServerState

OURS = ("metrics.jsonl", "summary.json", "checkpoint", "report.html", "partition.png", "wandb_id", "run.log")


def under_torchrun() -> bool:
    """Tell whether torchrun (or anything that speaks its environment) has started the ranks already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def follow(settings: Mapping[str, Any], rank: int, world: int, store: str | None) -> None:
    """Be a rank other than 0: the same rounds, no record."""
    from inco.config.wiring import assemble
    from inco.engine import Ranks

    ranks = Ranks.join(rank, world, settings["engine"]["device"], store)
    run = assemble(settings, ranks)
    state = _begin(run, ranks, settings, None)
    run.simulator.run(state, settings["rounds"], lambda state, metrics: None)
    _peak_memory(ranks)
    ranks.close()


def lead(settings: Mapping[str, Any], folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Be rank 0: train, record, and return the summary. `facts`: name, group, tags and command of the run, for its record.

    Raises InCoError; whatever happens, the folder holds a summary with a status, and the last checkpoint.
    """
    from inco.record import RunLock, RunRecord, setup_log

    with ExitStack() as stack:
        stack.enter_context(RunLock(folder))
        if settings["fresh"]:
            _wipe(folder)
        log = stack.enter_context(setup_log(folder))
        record = RunRecord(folder)
        done = record.read_summary()
        if done and done.get("status") == "finished" and done["rounds"] >= settings["rounds"]:
            _same_run(done["settings"], settings, folder)
            return done | {"already": True}
        session = Session(settings, folder, facts, record, log)
        try:
            return session.run()
        except BaseException as error:
            session.fail(error)
            raise


class Session:
    """One sitting of a run on rank 0: from its last checkpoint, or the start, to its last round or an interruption."""

    def __init__(self, settings: Mapping[str, Any], folder: Path, facts: Mapping[str, Any], record: Any, log: Any) -> None:
        from inco.checkpoint import Checkpoints

        self.settings, self.folder, self.facts, self.record, self.log = settings, folder, facts, record, log
        self.checkpoints = Checkpoints(folder)
        self.tracker = build("tracker", settings["tracker"])
        self.began, self.before_s = time.monotonic(), 0.0
        self.warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        """Train to the last round and write the summary."""
        if under_torchrun():
            return self._lead(int(os.environ["WORLD_SIZE"]), None, None)
        cohort = max(1, int(self.settings["num_clients"] * self.settings["sample_ratio"] + 1e-9))
        world = how_many(self.settings["engine"]["workers"], self.settings["engine"]["device"], cohort)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads beside workers fight for cores
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with local_workers(self.settings, world) as workers:
            return self._lead(world, str(workers.store), workers.kill)

    def _lead(self, world: int, store: str | None, abandon: Callable[[], None] | None) -> dict[str, Any]:
        from inco.config.wiring import assemble
        from inco.engine import Ranks

        ranks = Ranks.join(0, world, self.settings["engine"]["device"], store)
        try:
            run = assemble(self.settings, ranks)
            state = _begin(run, ranks, self.settings, self._load())
            self._open(run, ranks, state)
            self._train(run, state)
            return self._finish(run, ranks, state)
        except BaseException:
            if abandon:
                abandon()  # peers may wait in a collective that will never come
            raise
        finally:
            ranks.close()

    def _load(self) -> State | None:
        saved = self.checkpoints.load_latest()
        self._warn(*self.checkpoints.warnings)
        if saved is None:
            self.record.rewind(0)
            return None
        _same_run(saved.meta["settings"], self.settings, self.folder)
        self.record.rewind(saved.round)
        self.before_s = saved.meta["wall_s"]
        return saved

    def _open(self, run: Assembly, ranks: Ranks, state: ServerState) -> None:
        from inco.data.picture import draw_partition
        from inco.progress import announce
        from inco.tracker import RunInfo

        info = RunInfo(self.facts["name"], self.folder, self.facts["group"], tuple(self.facts["tags"]), "train", dict(self.settings))
        note = self.tracker.start(info)
        announce(_header(run, ranks, self.settings, self.facts) | {"folder": _shown(self.folder)})
        if note:
            print(note, flush=True)
        if state.round:
            print(f"going on after round {state.round}", flush=True)
        self.log.info("rounds %d to %d on %d worker(s), %s", state.round + 1, self.settings["rounds"], ranks.world, ranks.device)
        picture = self.folder / "partition.png"
        if not picture.exists():
            counts = run.partition.class_counts(run.dataset.train.labels.numpy(), len(run.dataset.classes))
            draw_partition(counts, run.dataset.classes, picture)
            self.tracker.image("partition", picture, state.round)

    def _train(self, run: Assembly, state: ServerState) -> None:
        from inco.progress import Progress

        rounds, every = self.settings["rounds"], self.settings["checkpoint_every"]
        with Progress(rounds, state.round) as progress:

            def listen(state: ServerState, metrics: Metrics) -> None:
                self.record.append(metrics)
                if state.round % every == 0 or state.round == rounds:
                    self.record.sync()  # the rows of a checkpoint's rounds are on the disk before it is
                    self.checkpoints.save(_pack(run, state, self.settings, self._wall_s()))
                self.tracker.log(metrics, state.round)
                progress.round(metrics)
                self.log.info("round %d: %s", state.round, {k: v for k, v in metrics.items() if k in ("test/acc", "train/loss")})

            run.simulator.run(state, rounds, listen)

    def _finish(self, run: Assembly, ranks: Ranks, state: ServerState) -> dict[str, Any]:
        rows = self.record.rows()
        summary = _scores(rows) | {
            "rounds": state.round,
            "wall_s": self._wall_s(),
            "peak_rss_bytes": _peak_memory(ranks),
            "weights_sha256": _sha256(state),
            "dataset_sha256": run.dataset.digest,
            "partition_sha256": run.partition.digest,
            **_sizes(run),
            "workers": ranks.world,
            "device": str(ranks.device.type),
        }
        self.tracker.finish(summary, 0)
        return self._write(summary, "finished")

    def fail(self, error: BaseException) -> None:
        """Leave a summary of an interrupted or failed run, and close the tracker. Never hides `error`."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self.log.error("%s: %s%s", type(error).__name__, error, f"\n{error.detail}" if isinstance(error, WorkerError) else "")
        try:
            rows = self.record.rows()
            code = error.exit_code if isinstance(error, InCoError) else 130 if status == "interrupted" else 1
            summary = _scores(rows) | {"rounds": len(rows), "wall_s": self._wall_s(), "error": str(error), "exit_code": code}
            self.tracker.finish(summary, 1)
            self._write(summary, status)
        except (OSError, InCoError) as second:
            self.log.error("and the summary could not be written: %s", second)

    def _write(self, summary: dict[str, Any], status: str) -> dict[str, Any]:
        self._warn(*self.tracker.warnings)
        whole = summary | {
            "seed": self.settings["seed"],
            "digest": digest(self.settings),
            "versions": _versions(),
            "machine": f"{platform.system()} {platform.machine()}",
            "command": self.facts["command"],
            "settings": identity(self.settings),
            "warnings": self.warnings,
            "status": status,
        }
        self.record.write_summary(whole)
        return whole

    def _warn(self, *warnings: str) -> None:
        for text in warnings:
            if text not in self.warnings:
                self.warnings.append(text)
                self.log.warning(text)

    def _wall_s(self) -> float:
        return self.before_s + time.monotonic() - self.began


def _begin(run: Assembly, ranks: Ranks, settings: Mapping[str, Any], saved: State | None) -> ServerState:
    """Return the state that every rank starts from: rank 0's checkpoint, or the first one."""
    state = run.simulator.start(settings["seed"])
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


def _pack(run: Assembly, state: ServerState, settings: Mapping[str, Any], wall_s: float) -> State:
    """Name every tensor, so that a checkpoint can be read without this package."""
    from inco.checkpoint import State

    named = run.split.params.views(state.w) | run.split.buffers.views(state.b)
    tensors = {f"model/{name}": t.cpu() for name, t in named.items()}
    for part in ("algorithm", "optimizer"):
        tensors |= {f"{part}/{name}": t.cpu() for name, t in getattr(state, part).items()}
    return State(state.round, tensors, {"settings": identity(settings), "wall_s": wall_s})


def _same_run(saved: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings than those that made the record."""
    theirs, ours = _flatten(saved), _flatten(identity(settings))
    differ = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
    if differ:
        lines = [f"{key}: this folder's run has {theirs.get(key)}, this command {ours.get(key)}" for key in differ]
        raise ConfigError([f"{_shown(folder)} holds a run with other settings; use fresh=true to start over, or another folder", *lines])


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _wipe(folder: Path) -> None:
    """Remove what a former run has recorded here, and nothing else."""
    for name in OURS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    scored = [row for row in rows if row.get("test/acc") is not None]
    if not scored:
        return {"test/acc": None, "test/acc_best": None, "round_best": None}
    # the first of equals: a later round that is no better does not count as the best
    best = max(scored, key=lambda row: row["test/acc"])
    last = {key: value for key, value in scored[-1].items() if key.startswith("test/")}
    tops = {f"{key}_best": max(row[key] for row in scored) for key in last if key.startswith("test/acc")}
    return last | tops | {"round_best": best["round"]}


def _sizes(run: Assembly) -> dict[str, int]:
    found = {}
    for level, cost in run.costs.items():
        sub = run.split.submodel(level, 0)
        found |= {f"params/{sub.name}": sub.params.layout.numel, f"flops/{sub.name}": cost.flops}
    return found


def _peak_memory(ranks: Ranks) -> int:
    """Return the largest resident size of each rank, summed, in bytes. Every rank must call it."""
    unit = 1 if sys.platform == "darwin" else 1024
    return sum(ranks.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def _sha256(state: ServerState) -> str:
    hasher = hashlib.sha256()
    for vector in (state.w, state.b):
        hasher.update(vector.cpu().numpy().tobytes())
    return hasher.hexdigest()


def _versions() -> dict[str, str]:
    named = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "hydra-core", "wandb"):
        try:
            named[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            named[package] = "absent"
    from inco import __version__

    return {"inco": __version__} | named


def _header(run: Assembly, ranks: Ranks, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    population, sizes = run.simulator.population, run.partition.sizes
    models = ", ".join(f"{run.split.names[level]} ({_sizes(run)[f'params/{run.split.names[level]}']:,})" for level in run.costs)
    return {
        "dataset": f"{run.dataset.name}: {len(run.dataset.train.labels):,} training, {len(run.dataset.test.labels):,} test images",
        "clients": f"{population.num_clients:,}, {population.cohort_size} a round; {sizes.min()} to {sizes.max()} examples each",
        "models": f"{models} parameters",
        "method": facts["method"],
        "rounds": settings["rounds"],
        "workers": f"{ranks.world} on {ranks.device.type}",
    }


def _shown(folder: Path) -> str:
    from inco.progress import short_path

    return short_path(folder)

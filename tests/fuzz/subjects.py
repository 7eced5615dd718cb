"""What the file fuzzer damages: partitions, checkpoints, clients' vectors, tables, weights and
records; datasets stand beside.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import settings_of

from fuzz.subject import Subject
from fuzz.subjects_data import Batches, Cache, Idx, ImageArchive, Pictures
from inco.clients.capacity import Table
from inco.clients.store import ClientStore
from inco.config.naming import identity
from inco.data.partition_file import read_partition, save_partition
from inco.flat import Layout, Slice
from inco.models.base import read_weights
from inco.records.checkpoint import META, TENSORS, Checkpoints, State, _hash_json
from inco.records.record import RunRecord
from inco.run.resume import finished_summary
from inco.types import ClientTask, SubModel

NUM_EXAMPLES, NUM_CLIENTS = 60, 5


class Partition(Subject):
    """A partition in one of its three formats.

    Nothing vouches for its content, so another partition that keeps the contract is one.
    """

    def make(self) -> None:
        from inco.data.dealing import Partition as Dealt

        order, offsets = (
            np.random.default_rng(3).permutation(NUM_EXAMPLES),
            np.array([0, 10, 25, 30, 48, 60]),
        )
        for suffix in (".npy", ".npz", ".json"):
            save_partition(self.folder / f"p{suffix}", Dealt(order, offsets))

    def damage(self, marker: Path) -> str:
        self.name = super().damage(marker)
        return self.name

    def read(self) -> Any:
        return read_partition(self.folder / self.name, NUM_EXAMPLES, NUM_CLIENTS)

    def judge(self, got: Any) -> str | None:
        order, offsets = got
        whole = (
            order.dtype == np.int64
            and offsets.dtype == np.int64
            and len(offsets) == NUM_CLIENTS + 1
            and offsets[0] == 0
        )
        whole = (
            whole
            and offsets[-1] == len(order)
            and (np.diff(offsets) > 0).all()
            and len(set(order.tolist())) == len(order)
        )
        return (
            None
            if whole and order.min() >= 0 and order.max() < NUM_EXAMPLES
            else f"no partition: {order} {offsets}"
        )


def run_state(round: int) -> State:
    return State(
        round,
        {"model/w": torch.arange(40.0) * round, "n": torch.tensor([round])},
        {"settings": {"seed": 0}, "wall_s": 1.5},
    )


def alike(a: State, b: State) -> bool:
    tensors = a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors
    )
    return tensors and (a.round, a.meta) == (b.round, b.meta)


class Checkpoint(Subject):
    """Two checkpoints of a run: what is read is one of them, bit for bit, whatever became of a
    file.
    """

    def make(self) -> None:
        for round_ in (1, 2):
            Checkpoints(self.folder).save(run_state(round_))

    def read(self) -> Any:
        return Checkpoints(self.folder).load_latest()

    def judge(self, got: Any) -> str | None:
        return (
            None
            if got is not None and any(alike(got, run_state(r)) for r in (1, 2))
            else f"neither of the two: {got}"
        )


class ForgedCheckpoint(Checkpoint):
    """The same with manifests that vouch for the damage, as somebody makes who wants to harm.

    What comes is a state, whatever is in it.
    """

    def damage(self, marker: Path) -> str:
        name = super().damage(marker)
        for home in (self.folder / "checkpoint").glob("round_*"):
            files = {n: (home / n).read_bytes() for n in (TENSORS, META)}
            said: dict[str, Any] = {
                n: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for n, data in files.items()
            }
            manifest = {"format_version": 1, "round": 2, "files": said}
            if self.rng.random() < 0.2:
                manifest[self.rng.choice(("format_version", "round", "files"))] = self.rng.choice(
                    (None, -1, "x", [], {META: 5}, 10**30)
                )
            (home / "manifest.json").write_text(
                json.dumps({**manifest, "sha256": _hash_json(manifest)})
            )
        return name

    def judge(self, got: Any) -> str | None:
        if (
            not isinstance(got, State)
            or not isinstance(got.round, int)
            or not isinstance(got.meta, dict)
        ):
            return f"no state: {got}"
        return None


class ClientState(Subject):
    """A client's own vectors: those that were written, or a refusal."""

    def make(self) -> None:
        self.sub = SubModel(
            0,
            "s",
            lambda: None,
            *[Slice(Layout.of({"x": torch.zeros(4)}), torch.arange(4)) for _ in range(2)],
        )  # type: ignore[arg-type, return-value]
        self.state = {"control": torch.arange(4.0), "n": torch.tensor([3.0])}
        store = self._store()
        store.save(ClientTask(3, 1, 0, torch.arange(1)), self.sub, self.state)
        store.flush()  # files are written behind

    def _store(self) -> ClientStore:
        return ClientStore(str(self.folder), False, 4, 4)

    def read(self) -> Any:
        store = self._store()
        store.advance(1, [3])
        return store.load(ClientTask(3, 2, 0, torch.arange(1)), self.sub)

    def judge(self, got: Any) -> str | None:
        same = (
            got is not None
            and got.keys() == self.state.keys()
            and all(torch.equal(got[n], t) for n, t in self.state.items())
        )
        return None if same else f"other vectors: {got}"


class Levels(Subject):
    """Which client holds which level."""

    def make(self) -> None:
        (self.folder / "levels.json").write_text(json.dumps([0, 1, 2, 0, 1]))

    def read(self) -> Any:
        table = Table(str(self.folder / "levels.json"), num_clients=5, num_levels=3, seed=0)
        return [table.level(client, 1) for client in range(5)]

    def judge(self, got: Any) -> str | None:
        return None if set(got) == {0, 1, 2} else f"levels {got}"


class Weights(Subject):
    """Files of pretrained weights."""

    def make(self) -> None:
        from safetensors.torch import save_file

        tensors = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(2)}
        torch.save(tensors, self.folder / "w.pt")
        save_file(tensors, self.folder / "w.safetensors")

    def damage(self, marker: Path) -> str:
        self.name = super().damage(marker)
        return self.name

    def read(self) -> Any:
        return read_weights(str(self.folder / self.name))

    def judge(self, got: Any) -> str | None:
        return (
            None if all(isinstance(t, torch.Tensor) for t in got.values()) else f"no tensors: {got}"
        )


class Record(Subject):
    """What a run has written of itself, as the same command reads it when it is given again."""

    def make(self) -> None:
        self.settings = settings_of("debug=tiny")
        record = RunRecord(self.folder)
        for round_ in (1, 2, 3):
            record.append({"round": round_, "test/acc": 1.5})
        record.write_summary(
            {
                "status": "finished",
                "rounds": 2,
                "settings": identity(self.settings),
                "test/acc": 1.5,
                "warnings": [],
            }
        )

    def read(self) -> Any:
        return finished_summary(self.settings, self.folder), RunRecord(self.folder).rows()

    def judge(self, got: Any) -> str | None:
        return None if all(isinstance(row, dict) for row in got[1]) else f"rows {got[1]}"


SUBJECTS: tuple[type[Subject], ...] = (
    Partition, Checkpoint, ForgedCheckpoint, ClientState, Idx, ImageArchive, Batches, Pictures, Cache, Levels, Weights, Record,
)  # fmt: skip

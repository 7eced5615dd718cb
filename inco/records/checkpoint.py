"""Checkpoints that survive a kill, a full disk and a flipped byte: one folder each, hashed, renamed
into place.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from inco.errors import StorageError
from inco.records.record import fsync_path, storage_error

FORMAT_VERSION = 1
TENSORS = "state.safetensors"
META = "meta.json"
MANIFEST = "manifest.json"
_SPARE_BYTES = 1 << 20  # asked for beyond the tensors: file headers, meta, the folder itself
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class State:
    """All that a run needs to go on after `round`: tensors by name, and JSON facts (tuples come
    back as lists).
    """

    round: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


class _Damaged(Exception):
    """A checkpoint is not what its manifest says."""


class Checkpoints:
    """The last `keep` checkpoints of a run, in `<folder>/checkpoint/round_000012/`.

    Each holds state.safetensors, meta.json and manifest.json with the size and sha256 of both;
    nothing is pickled. A checkpoint is made in a hidden folder, forced to the disk and renamed, so
    a name without a dot is always whole.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.root = folder / "checkpoint"
        self.keep = keep
        self.warnings: list[str] = []

    def save(self, state: State) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        On failure the earlier ones stay.
        """
        final = self.root / f"round_{state.round:06d}"
        temp = self.root / f".new-{final.name}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._need_space(state)
            _remove(temp)
            _fill(temp, state)
            _swap_in(temp, final)
        except (OSError, SafetensorError) as error:
            raise storage_error("write the checkpoint", final, error) from error
        finally:
            _remove(temp)
        self._prune(state.round)
        return final

    def rounds(self) -> list[int]:
        """Return the rounds of the checkpoints that are there, oldest first."""
        return sorted(_round(path) for path in self._found())

    def load_latest(self) -> State | None:
        """Return the newest whole checkpoint, or None if there are none at all. Only for the run
        that writes here.

        A damaged one is passed over with a line in `warnings`. If all are damaged this is an error:
        to begin again at round 0 silently would throw a run away.
        """
        self._tidy()
        found = self._found()
        for path in found:
            try:
                return _read(path)
            except (OSError, _Damaged) as error:
                self.warnings.append(f"checkpoint {path} is damaged and was passed over: {error}")
        if found:
            why = "; ".join(self.warnings[-len(found) :])
            raise StorageError(
                f"no checkpoint in {self.root} can be used: {why}; restore one, or start over with"
                " fresh=true"
            )
        return None

    def _need_space(self, state: State) -> None:
        need = sum(tensor.nbytes for tensor in state.tensors.values()) + _SPARE_BYTES
        free = shutil.disk_usage(self.root).free
        if free < need:
            sizes = f"needs {need / 2**20:.1f} MiB and the disk has {free / 2**20:.1f} MiB left"
            raise OSError(errno.ENOSPC, f"the checkpoint {sizes}")

    def _prune(self, round: int) -> None:
        """Remove all but the newest `keep`, and later rounds, which a run that went back left."""
        paths = self._found()
        kept = [path for path in paths if _round(path) <= round][: self.keep]
        for path in set(paths) - set(kept):
            try:
                hidden = path.with_name(f".gone-{path.name}")
                # first out of sight, so that a kill while deleting leaves no half checkpoint
                os.rename(path, hidden)
                shutil.rmtree(hidden)
            except OSError as error:
                self.warnings.append(f"old checkpoint {path} could not be removed: {error}")

    def _found(self) -> list[Path]:
        """List the checkpoints, newest first; not a user's copy of one."""
        folders = self.root.glob("round_*")
        named = (path for path in folders if path.name.removeprefix("round_").isdecimal())
        return sorted(named, key=_round, reverse=True)

    def _tidy(self) -> None:
        """Clear what a killed process left: finish a swap cut in two, drop hidden folders."""
        for old in self.root.glob(".old-round_*"):
            final = self.root / old.name.removeprefix(".old-")
            if not final.exists():
                with suppress(OSError):
                    os.rename(old, final)
        for leftover in self.root.glob(".*-round_*"):
            _remove(leftover)


def _round(path: Path) -> int:
    return int(path.name.removeprefix("round_"))


def _fill(folder: Path, state: State) -> None:
    folder.mkdir()
    save_file(_saved(state.tensors), folder / TENSORS)
    meta = {"format_version": FORMAT_VERSION, "round": state.round, "meta": state.meta}
    (folder / META).write_text(json.dumps(meta))
    files = {}
    for name in (TENSORS, META):
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
    manifest = {"format_version": FORMAT_VERSION, "round": state.round, "files": files}
    signed = manifest | {"sha256": _hash_json(manifest)}
    (folder / MANIFEST).write_text(json.dumps(signed, indent=1))
    for path in (folder / TENSORS, folder / META, folder / MANIFEST, folder):
        fsync_path(path)


def _saved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors wants them: on the CPU, contiguous, each its own storage."""
    saved: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().to("cpu").contiguous()
        storage = here.untyped_storage()
        shared = storage.data_ptr() in storages or storage.nbytes() != here.nbytes
        saved[name] = here.clone() if shared else here
        storages.add(storage.data_ptr())
    return saved


def _swap_in(temp: Path, final: Path) -> None:
    """Rename into place, also over a checkpoint of the same round (`_tidy` ends half a swap)."""
    old = final.with_name(f".old-{final.name}")
    _remove(old)
    if final.exists():
        os.rename(final, old)
    os.rename(temp, final)
    fsync_path(final.parent)
    _remove(old)


def _read(path: Path) -> State:
    """Read a checkpoint. What was hashed is what is used: each file is read once."""
    manifest = _manifest(path)
    raw = {name: _checked(path / name, manifest["files"].get(name)) for name in (TENSORS, META)}
    try:
        meta = json.loads(raw[META])
        return State(int(meta["round"]), load(raw[TENSORS]), dict(meta["meta"]))
    except (*_UNREADABLE, SafetensorError) as error:  # though its hashes are right
        what = f"{type(error).__name__}: {error}"
        raise _Damaged(f"its files are not a checkpoint's ({what})") from error


def _manifest(path: Path) -> dict[str, Any]:
    """Read the manifest, which holds its own hash, and refuse a format of the future."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        recorded = manifest.pop("sha256")
        version = int(manifest["format_version"])
        _ = manifest["files"].get
    except _UNREADABLE as error:
        raise _Damaged(f"{MANIFEST} is not readable ({type(error).__name__}: {error})") from error
    if recorded != _hash_json(manifest):
        raise _Damaged(f"{MANIFEST} has changed since it was written")
    if version > FORMAT_VERSION:
        raise StorageError(
            f"checkpoint {path} has format {version}; this InCo reads formats up to"
            f" {FORMAT_VERSION}: go on with the newer InCo that wrote it, or start over with"
            " fresh=true"
        )
    return dict(manifest)


def _checked(path: Path, recorded: Mapping[str, Any] | None) -> bytes:
    """Read a file that has the size and the hash of its entry in the manifest."""
    data = path.read_bytes()
    expected = recorded or {}
    if len(data) != expected.get("bytes"):
        raise _Damaged(f"{path.name} has {len(data)} bytes, not {expected.get('bytes')}")
    if hashlib.sha256(data).hexdigest() != expected.get("sha256"):
        raise _Damaged(f"{path.name} has changed since it was written (sha256)")
    return data


def _hash_json(value: Mapping[str, Any]) -> str:
    """Hash a JSON object whatever its layout in the file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """Remove a folder; one that will not go is left, since nothing reads hidden names."""
    shutil.rmtree(path, ignore_errors=True)

"""Read and write partitions: the published `.npy` (a pickled dict), our `.npz`, and `.json`.
Nothing in a file is ever run.

A partition file comes from somebody else, so it is treated as hostile: its pickle is scanned opcode
by opcode against the few that the published format needs, then rebuilt by an unpickler that knows
no class but inert stand-ins. Every problem is a `DataError` that names the file, the client and the
index.
"""

import io
import itertools
import json
import os
import pickle
import pickletools
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from inco.data.dealing import Partition, offsets_of
from inco.data.readers import write_atomic
from inco.errors import DataError

# 90,000 examples are 0.3 MB in the published format: this is room for a hundred million
MAX_BYTES = 512 * 2**20
SUFFIXES = (".npy", ".npz", ".json")

# What numpy writes for a 0-d object array around {int: [int, ...]}, pickle protocols 2 to 5. What
# makes objects is counted: the array and its dtype need two calls and three names, and few tuples
# keep nesting (and hashing) shallow.
_PLAIN = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 INT LONG BINPUT LONG_BINPUT
PUT MEMOIZE BINGET LONG_BINGET GET EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
BINUNICODE SHORT_BINUNICODE UNICODE SHORT_BINBYTES
"""
PLAIN_OPCODES = frozenset(_PLAIN.split())
COUNTED_OPCODES = {"GLOBAL": 4, "STACK_GLOBAL": 4, "REDUCE": 3, "BUILD": 2}
TUPLE_OPCODES = frozenset(["EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"])
MAX_TUPLES = 12


def read_partition(
    path: str | os.PathLike[str], num_examples: int, num_clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (order int64 [total], offsets int64 [N + 1]) of a file, checked against M and N.

    Raises DataError: no such file, not a partition, clients not 0..N-1, a number of clients other
    than N, an empty client, an index that is no integer, is outside 0..M-1, or is held twice.
    Examples that nobody holds are allowed.
    """
    file = Path(path).expanduser()
    try:
        _check_file(file)
        if file.suffix == ".npz":
            order, offsets = _read_npz(file)
        else:
            clients = _read_npy(file) if file.suffix == ".npy" else _read_json(file)
            order, offsets = _flatten(clients, num_examples, num_clients)
        _check_partition(order, offsets, num_examples, num_clients)
    except DataError as error:
        raise DataError(f"partition.path={file}: {error}") from None
    return order, offsets


def save_partition(path: str | os.PathLike[str], partition: Partition) -> None:
    """Write `.npz` (compact), `.json` (readable) or `.npy` (for the published code); atomically."""
    file = Path(path)

    def clients() -> dict[int, list[int]]:
        return {i: partition.examples(i).tolist() for i in range(partition.num_clients)}

    writers: dict[str, Callable[[Any], None]] = {
        ".npz": lambda f: np.savez_compressed(f, order=partition.order, offsets=partition.offsets),
        ".json": lambda f: f.write(json.dumps(clients()).encode()),
        ".npy": lambda f: np.save(f, np.array(clients(), dtype=object)),
    }
    if file.suffix not in writers:
        raise DataError(
            f"partition.path={file}: a partition is written as {', '.join(SUFFIXES)}; change the"
            " name's ending"
        )
    write_atomic(file, writers[file.suffix])


def _check_file(file: Path) -> None:
    if file.suffix not in SUFFIXES:
        endings = ", ".join(SUFFIXES)
        raise DataError(f"a partition file ends in {endings}; convert or rename it")
    if not file.is_file():
        raise DataError(
            f"no such file (looked at {file.absolute()}); set partition.path to one that is"
        )
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{size:,} bytes; a partition file has at most {MAX_BYTES:,}")


# --- the published .npy


class _Inert:
    """Stands in for what the pickle names: takes any arguments, and only keeps its state."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, integers, and inert objects for the few names of an object array."""

    allowed = (
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "_codecs.encode",  # how protocol 2 spells the bytes b"b"; its result is never looked at
    )

    def find_class(self, module: str, name: str) -> type[_Inert]:
        full_name = f"{module}.{name}"
        if full_name not in self.allowed:
            raise DataError(
                f"it asks for {full_name}, which a partition has no use for; nothing of it was run"
            )
        return _Inert

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("it refers to an object outside the file")


def _read_npy(file: Path) -> dict[Any, Any]:
    """Return the dict of a 0-d object array without running anything that its pickle asks for."""
    try:
        stream = io.BytesIO(file.read_bytes())
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if shape != () or not dtype.hasobject:
            raise DataError(f"it holds an array of shape {shape} and type {dtype}, not one dict")
        body = stream.read()
        _scan(body)
        clients = _Unpickler(io.BytesIO(body)).load().state[-1][0]
        if type(clients) is not dict:
            raise DataError(f"it holds a {type(clients).__name__}, not a dict")
    except Exception as error:  # a damaged stream can raise nearly anything
        why = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"refused: {why}. A published partition is a .npy around {{client: [index, ...]}};"
            " convert anything else to .json or .npz"
        ) from None
    return clients


def _scan(body: bytes) -> None:
    """Raise DataError for an opcode that a partition does not need, or for too many of one."""
    counts: Counter[str] = Counter()
    for opcode, argument, _ in pickletools.genops(body):
        name = opcode.name
        if name in PLAIN_OPCODES:
            # the unpickler allocates its memo up to the largest number it is told
            if name.endswith("PUT") and int(str(argument)) > len(body):
                raise DataError(f"its pickle numbers an object {argument}, more than it has bytes")
            continue
        counts["tuples" if name in TUPLE_OPCODES else name] += 1
        if name not in TUPLE_OPCODES and counts[name] > COUNTED_OPCODES.get(name, 0):
            raise DataError(
                f"its pickle uses {name} where a partition has none or fewer; nothing of it was run"
            )
        if counts["tuples"] > MAX_TUPLES:
            raise DataError("its pickle is nested more deeply than a partition")


# --- .json and .npz


def _read_json(file: Path) -> dict[Any, Any]:
    """Return {client: indices} of `{"0": [...], ...}`; whole-number keys become integers."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise DataError(f"client {twice} is written twice")
        return found

    fix = 'write {"0": [index, ...], ...}'
    try:
        clients = json.loads(file.read_bytes(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON ({error}); {fix}") from None
    if type(clients) is not dict:
        raise DataError(f"holds a {type(clients).__name__}; {fix}")
    return {
        int(key) if key.isdecimal() and len(key) < 19 else key: value
        for key, value in clients.items()
    }


def _read_npz(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (order, offsets) of an archive with these two integer arrays."""
    wrong = "an .npz partition holds integer arrays `order` [total] and `offsets` [clients + 1]"
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > 8 * MAX_BYTES:
                raise DataError(f"{wrong}; this one unpacks to more than {8 * MAX_BYTES:,} bytes")
        with np.load(file, allow_pickle=False) as arrays:
            order = arrays["order"]
            offsets = arrays["offsets"]
    except DataError:
        raise
    except Exception as error:  # zlib's, tokenize's and others, for what a damaged archive can hold
        raise DataError(f"{wrong}; reading it failed: {type(error).__name__}: {error}") from None
    if not (isinstance(order, np.ndarray) and isinstance(offsets, np.ndarray)):
        raise DataError(f"{wrong}; this one has members of these names that are no arrays")
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (order, offsets)):
        raise DataError(
            f"{wrong}; this one has {order.dtype} {order.shape} and {offsets.dtype} {offsets.shape}"
        )
    order = order.astype(np.int64)
    offsets = offsets.astype(np.int64)
    rises = len(offsets) > 1 and (np.diff(offsets) >= 0).all()
    if not rises or offsets[0] != 0 or offsets[-1] != len(order):
        raise DataError(f"{wrong}; offsets must rise from 0 to {len(order)}, the length of order")
    return order, offsets


# --- checks


def _flatten(
    clients: dict[Any, Any], num_examples: int, num_clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (order, offsets) of {client: indices}, of which nothing is known yet."""
    strange = next((type(key).__name__ for key in clients if type(key) is not int), None)
    if strange is not None:
        raise DataError(f"a client is named by a {strange}; names are integers from 0")
    _check_clients(len(clients), num_clients)
    missing = next((i for i in range(num_clients) if i not in clients), None)
    if missing is not None:
        raise DataError(
            f"clients must be 0 to {num_clients - 1} without a gap; {missing} is missing"
        )
    lists = [clients[i] for i in range(num_clients)]
    for i, values in enumerate(lists):
        if type(values) is not list or not set(map(type, values)) <= {int}:
            raise DataError(f"client {i} must hold a list of integers; something else is in it")
        for extreme in (min(values, default=0), max(values, default=0)):
            _check_index(i, extreme, num_examples)
    sizes = [len(values) for values in lists]
    total = sum(sizes)
    # before anything is laid out: one list can stand for many clients in a small file
    if total > num_examples:
        raise DataError(f"{total:,} indices for {num_examples:,} examples: some are held twice")
    order = np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int64, count=total)
    return order, offsets_of(sizes)


def _check_clients(found: int, num_clients: int) -> None:
    if found != num_clients:
        raise DataError(
            f"the file has {found} clients and num_clients={num_clients}; use num_clients={found}"
        )


def _check_index(client: int, index: int, num_examples: int) -> None:
    if not 0 <= index < num_examples:
        raise DataError(
            f"client {client} holds index {index}, and the training set has {num_examples} examples"
            f" (0 to {num_examples - 1}); is this the file of another dataset?"
        )


def _check_partition(
    order: np.ndarray, offsets: np.ndarray, num_examples: int, num_clients: int
) -> None:
    """Raise DataError for a wrong number of clients, an empty client, or a wrong index."""
    _check_clients(len(offsets) - 1, num_clients)
    empty = np.flatnonzero(np.diff(offsets) == 0)
    if len(empty):
        raise DataError(f"client {empty[0]} holds no examples; every client needs at least one")
    holder = np.repeat(np.arange(num_clients), np.diff(offsets))
    outside = np.flatnonzero((order < 0) | (order >= num_examples))
    if len(outside):
        _check_index(int(holder[outside[0]]), int(order[outside[0]]), num_examples)
    by_index = np.argsort(order, kind="stable")
    again = np.flatnonzero(np.diff(order[by_index]) == 0)
    if len(again):
        first = by_index[again[0]]
        second = by_index[again[0] + 1]
        raise DataError(
            f"index {order[first]} is held twice, by client {holder[first]} and client"
            f" {holder[second]}"
        )

"""Read and write partitions: the published `.npy` (a pickled dict), our `.npz`, and `.json`.

A partition file comes from somebody else, so nothing in it is ever run: its pickle may use only the
opcodes that the published format needs, and is rebuilt by an unpickler that knows no class but
inert stand-ins. Every problem is a `DataError` that names the file, the client and the index.
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

# what numpy writes for a 0-d object array around {int: [int, ...]}, pickle protocols 2 to 5
_OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 INT LONG BINPUT
LONG_BINPUT PUT MEMOIZE BINGET LONG_BINGET GET EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT
SETITEM SETITEMS BINUNICODE SHORT_BINUNICODE UNICODE SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1
TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD
"""
OPCODES = frozenset(_OPCODES.split())
MAX_TUPLES = 12  # hashing a tuple that is nested deeply overflows the stack
NAMES = (
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",  # how protocol 2 spells the bytes b"b"; its result is never looked at
)


def read_partition(
    path: str | os.PathLike[str], num_examples: int, num_clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (order int64 [total], offsets int64 [N + 1]) of a file, checked against M and N.

    Raises DataError: no such file, not a partition, clients not 0..N-1, a number of clients other
    than N, an empty client, an index that is no integer, is outside 0..M-1, or is held twice.
    Examples that nobody holds are allowed.
    """
    file = Path(path).expanduser()
    readers = {".npy": _read_npy, ".npz": _read_npz, ".json": _read_json}
    try:
        if file.suffix not in readers:
            endings = ", ".join(readers)
            raise DataError(f"a partition file ends in {endings}; convert or rename it")
        if not file.is_file():
            raise DataError(
                f"no such file (looked at {file.absolute()}); set partition.path to one that is"
            )
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{size:,} bytes; a partition file has at most {MAX_BYTES:,}")
        lists = _in_order(readers[file.suffix](file), num_clients)
        return _flatten(lists, num_examples)
    except DataError as error:
        raise DataError(f"partition.path={file}: {error}") from None


def save_partition(path: str | os.PathLike[str], partition: Partition) -> None:
    """Write `.npz` (compact), `.json` (readable) or `.npy` (for the published code); atomically."""
    file = Path(path)

    def clients() -> dict[int, list[int]]:
        return {i: partition.examples(i).tolist() for i in range(partition.num_clients)}

    writers: dict[str, Callable[[Any], object]] = {
        ".npz": lambda f: np.savez_compressed(f, order=partition.order, offsets=partition.offsets),
        ".json": lambda f: f.write(json.dumps(clients()).encode()),
        ".npy": lambda f: np.save(f, np.array(clients(), dtype=object)),
    }
    if file.suffix not in writers:
        raise DataError(
            f"partition.path={file}: a partition is written as .npy, .npz, .json; change the name's"
            " ending"
        )
    write_atomic(file, writers[file.suffix])


class _Inert:
    """Stands in for what the pickle names: takes any arguments, and only keeps its state."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, integers, and inert objects for `NAMES`."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if f"{module}.{name}" not in NAMES:
            raise DataError(
                f"it asks for {module}.{name}, which a partition has no use for; nothing of it was"
                " run"
            )
        return _Inert


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
        _check_opcodes(body)
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


def _check_opcodes(body: bytes) -> None:
    """Raise DataError for an opcode that no partition needs, and for memory or stack bombs."""
    tuples = 0
    for opcode, argument, _ in pickletools.genops(body):
        if opcode.name not in OPCODES:
            raise DataError(
                f"its pickle uses {opcode.name} where a partition has none; nothing of it was run"
            )
        # the unpickler allocates its memo up to the largest number
        if opcode.name.endswith("PUT") and int(str(argument)) > len(body):
            raise DataError(f"its pickle numbers an object {argument}, more than it has bytes")
        tuples += "TUPLE" in opcode.name
        if tuples > MAX_TUPLES:
            raise DataError("its pickle is nested more deeply than a partition")


def _read_json(file: Path) -> dict[Any, Any]:
    """Return {client: indices} of `{"0": [...], ...}`; whole-number keys become integers."""
    fix = 'write {"0": [index, ...], ...}'
    try:
        clients = json.loads(file.read_bytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON ({error}); {fix}") from None
    if type(clients) is not dict:
        raise DataError(f"holds a {type(clients).__name__}; {fix}")
    return {
        int(key) if key.isdecimal() and len(key) < 19 else key: value
        for key, value in clients.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"client {twice[0]} is written twice")
    return dict(pairs)


def _read_npz(file: Path) -> dict[Any, Any]:
    """Return {client: indices} of an archive with the arrays `order` and `offsets`."""
    wrong = "an .npz partition holds integer arrays `order` [total] and `offsets` [clients + 1]"
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > 8 * MAX_BYTES:
            raise ValueError(f"it unpacks to more than {8 * MAX_BYTES:,} bytes")
        with np.load(file, allow_pickle=False) as arrays:
            order = arrays["order"]
            offsets = arrays["offsets"]
    except Exception as error:  # zlib's, tokenize's and others, for what a damaged archive can hold
        raise DataError(f"{wrong}; reading it failed: {type(error).__name__}: {error}") from None
    if not (isinstance(order, np.ndarray) and isinstance(offsets, np.ndarray)):
        raise DataError(f"{wrong}; this one has members of these names that are no arrays")
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in (order, offsets)):
        raise DataError(
            f"{wrong}; this one has {order.dtype} {order.shape} and {offsets.dtype} {offsets.shape}"
        )
    offsets = offsets.astype(np.int64)
    rises = len(offsets) > 1 and (np.diff(offsets) >= 0).all()
    if not rises or offsets[0] != 0 or offsets[-1] != len(order):
        raise DataError(f"{wrong}; offsets must rise from 0 to {len(order)}, the length of order")
    ends = offsets.tolist()
    return {i: order[a:b].tolist() for i, (a, b) in enumerate(itertools.pairwise(ends))}


def _in_order(clients: dict[Any, Any], num_clients: int) -> list[Any]:
    """Return what clients 0 to N - 1 hold; DataError where other clients are there."""
    strange = next((type(key).__name__ for key in clients if type(key) is not int), None)
    if strange is not None:
        raise DataError(f"a client is named by a {strange}; names are integers from 0")
    found = len(clients)
    if found != num_clients:
        raise DataError(
            f"the file has {found} clients and num_clients={num_clients}; use num_clients={found}"
        )
    missing = next((i for i in range(num_clients) if i not in clients), None)
    if missing is not None:
        raise DataError(
            f"clients must be 0 to {num_clients - 1} without a gap; {missing} is missing"
        )
    return [clients[i] for i in range(num_clients)]


def _flatten(lists: list[Any], num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (order, offsets) of the clients' indices, of which nothing is known yet."""
    for i, values in enumerate(lists):
        if type(values) is not list or not set(map(type, values)) <= {int}:
            raise DataError(f"client {i} must hold a list of integers; something else is in it")
        if not values:
            raise DataError(f"client {i} holds no examples; every client needs at least one")
        for index in (min(values), max(values)):
            if not 0 <= index < num_examples:
                raise DataError(
                    f"client {i} holds index {index}, and the training set has {num_examples}"
                    f" examples (0 to {num_examples - 1}); is this the file of another dataset?"
                )
    offsets = offsets_of([len(values) for values in lists])
    # before anything is laid out: one list can stand for many clients in a small file
    if offsets[-1] > num_examples:
        raise DataError(
            f"{offsets[-1]:,} indices for {num_examples:,} examples: some are held twice"
        )
    order = np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int64)
    by_index = np.argsort(order, kind="stable")
    again = np.flatnonzero(np.diff(order[by_index]) == 0)
    if len(again):
        first = by_index[again[0]]
        second = by_index[again[0] + 1]
        holder = np.repeat(np.arange(len(lists)), np.diff(offsets))
        raise DataError(
            f"index {order[first]} is held twice, by client {holder[first]} and client"
            f" {holder[second]}"
        )
    return order, offsets

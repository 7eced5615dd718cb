"""Read and write partitions: the published `.npy` (a pickled dict), our `.npz`, and `.json`.

A partition file comes from somebody else, so nothing in it is ever run (`inert_pickle.py`). Every
problem is a `DataError` that names the file, the client and the index.
"""

import io
import itertools
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from inco.data.dealing import Partition, offsets_of
from inco.data.inert_pickle import InertPickle
from inco.data.readers import write_atomic
from inco.errors import DataError

# 90,000 examples are 0.3 MB in the published format: this is room for a hundred million
MAX_BYTES = 512 * 2**20

_NPZ = (
    "an .npz partition holds integer arrays `order` [total] and `offsets` [clients + 1], or one"
    " array a client, named 0, 1, ..."
)
CONVERT = (
    "in Python, if you trust the file: import json, numpy; d = numpy.load(FILE, allow_pickle=True)"
    "; d = d.tolist() if isinstance(d, numpy.ndarray) else d; json.dump([[int(i) for i in d[k]]"
    " for k in range(len(d))], open('p.json', 'w'))"
)


def read_partition(
    path: str | os.PathLike[str], num_examples: int, num_clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (order int64 [total], offsets int64 [N + 1]) of a file, checked against M and N.

    A file holds a dict of clients, or one entry a client in their order; what a client holds is a
    list or an array of integers. Raises DataError: no such file, not a partition, clients not
    0..N-1, a number of clients other than N, an empty client, an index that is no integer, is
    outside 0..M-1, or is held twice. Examples that nobody holds are allowed.
    """
    file = Path(path).expanduser()
    readers = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".json": _read_json,
        ".pkl": _read_pickle,
        ".pickle": _read_pickle,
    }
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


def _read_npy(file: Path) -> Any:
    """Return the dict or the rows of an array, without running what its pickle asks for."""
    try:
        stream = io.BytesIO(file.read_bytes())
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if not dtype.hasobject:
            return _rows(np.load(file, allow_pickle=False))
        held = InertPickle().load(stream.read())
        if shape != ():
            return held
        (held,) = held
        return held
    except Exception as error:  # a damaged stream can raise nearly anything
        raise _refused(error) from None


def _read_pickle(file: Path) -> Any:
    """Return what a pickle holds, without running what it asks for."""
    try:
        return InertPickle().load(file.read_bytes())
    except Exception as error:  # as above
        raise _refused(error) from None


def _refused(error: Exception) -> DataError:
    damaged = f"it is damaged or of another kind ({type(error).__name__}: {error})"
    why = str(error) if isinstance(error, DataError) else damaged
    return DataError(
        f"refused: {why}. A partition is {{client: [index, ...]}}, or one list a client; to"
        f" convert, {CONVERT}"
    )


def _rows(array: np.ndarray) -> list[Any]:
    """Return what the clients hold, of an array with one row a client."""
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise DataError(
            f"it holds an array of {array.dtype} {array.shape}; as an array a partition is one row"
            " of integers a client"
        )
    rows: list[Any] = array.tolist()
    return rows


def _read_json(file: Path) -> Any:
    """Return the dict or the list of a file."""
    fix = 'write {"0": [index, ...], ...}'
    try:
        clients = json.loads(file.read_bytes(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON ({error}); {fix}") from None
    if isinstance(clients, dict) and "user_data" in clients:
        raise DataError(
            "a LEAF file holds the images themselves and no indices into a dataset; write the"
            " images as class folders (dataset=images), and the indices as"
            ' {"0": [index, ...], ...}'
        )
    return clients


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise DataError(f"client {twice[0]} is written twice")
    return dict(pairs)


def _read_npz(file: Path) -> Any:
    """Return what an archive holds: `order` and `offsets`, or one array a client."""
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > 8 * MAX_BYTES:
            raise DataError(f"it unpacks to more than {8 * MAX_BYTES:,} bytes")
        with np.load(file, allow_pickle=False) as opened:
            arrays = dict(opened)
    except Exception as error:  # zlib's, tokenize's and others, for what a damaged archive can hold
        raise DataError(f"{_NPZ}; reading it failed: {type(error).__name__}: {error}") from None
    wrong = {
        name: f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
        for name, array in arrays.items()
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu"
    }
    if wrong:
        name, found = next(iter(wrong.items()))
        raise DataError(f"{_NPZ}; this one has {name}: {found}")
    if {"order", "offsets"} <= arrays.keys():
        return _cut(arrays["order"], arrays["offsets"].astype(np.int64))
    # numpy's own names of arrays without one are arr_0, arr_1, ...
    return {name.removeprefix("arr_"): array.tolist() for name, array in arrays.items()}


def _cut(order: np.ndarray, offsets: np.ndarray) -> list[Any]:
    rises = len(offsets) > 1 and (np.diff(offsets) >= 0).all()
    if not rises or offsets[0] != 0 or offsets[-1] != len(order):
        raise DataError(f"{_NPZ}; offsets must rise from 0 to {len(order)}, the length of order")
    ends = offsets.tolist()
    return [order[a:b].tolist() for a, b in itertools.pairwise(ends)]


def _in_order(clients: Any, num_clients: int) -> list[Any]:
    """Return what clients 0 to N - 1 hold; DataError where other clients are there."""
    if not isinstance(clients, dict | list):
        raise DataError(f"it holds a {type(clients).__name__}, not a dict or a list of clients")
    by_number = _numbered(clients) if isinstance(clients, dict) else dict(enumerate(clients))
    found = len(by_number)
    if found != num_clients:
        raise DataError(
            f"the file has {found} clients and num_clients={num_clients}; use num_clients={found}"
        )
    missing = next((i for i in range(num_clients) if i not in by_number), None)
    if missing is not None:
        raise DataError(
            f"clients must be 0 to {num_clients - 1} without a gap; {missing} is missing"
        )
    return [by_number[i] for i in range(num_clients)]


def _numbered(clients: dict[Any, Any]) -> dict[int, Any]:
    """Return the clients by number; a number may be written as text."""
    numbered: dict[int, Any] = {}
    for key, value in clients.items():
        text = str(key)
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise DataError(
                f"a client is named {text[:40]!r}; clients are numbers from 0, which have to be"
                " put in the place of names"
            )
        if int(text) in numbered:
            raise DataError(f"client {int(text)} is written twice")
        numbered[int(text)] = value
    return numbered


def _flatten(lists: list[Any], num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (order, offsets) of the clients' indices, of which nothing is known yet."""
    for i, values in enumerate(lists):
        if not isinstance(values, list) or not set(map(type, values)) <= {int}:
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

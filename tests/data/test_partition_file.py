"""Partition files: the published format is read, everything hostile or wrong is refused, and
nothing in a file runs.
"""

import builtins
import io
import json
import os
import pickle
import struct
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inco.data.partition import IID, Fixed, Partition
from inco.data.partition_file import MAX_BYTES, read_partition, save_partition
from inco.errors import DataError, StorageError
from inco.seeding import numpy_rng

CLIENTS = {0: [4, 2, 0], 1: [1], 2: [5, 3]}
# the published files are not ours to copy
OFFICIAL = Path(os.environ.get("INCO_OFFICIAL_PARTITIONS", "official_partitions"))


def npy(path: Path, value: Any, protocol: int = 3) -> Path:
    """Write `value` as numpy writes a 0-d object array, the pickle in the given protocol."""
    array = np.empty((), dtype=object)
    array[()] = value
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    path.write_bytes(header.getvalue() + pickle.dumps(array, protocol=protocol))
    return path


def raw_npy(path: Path, body: bytes) -> Path:
    """Write a hand-made pickle behind the header of a 0-d object array."""
    npy(path, {})
    head = path.read_bytes()
    path.write_bytes(head[: head.index(b"\n") + 1] + body)
    return path


def refused(path: Path, match: str, clients: int = 3, examples: int = 6) -> None:
    with pytest.raises(DataError, match=match) as error:
        read_partition(path, examples, clients)
    assert path.name in str(error.value)


def assert_is_clients(path: Path) -> None:
    order, offsets = read_partition(path, 6, 3)
    assert order.tolist() == [4, 2, 0, 1, 5, 3] and offsets.tolist() == [0, 3, 4, 6]
    assert order.dtype == offsets.dtype == np.int64


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_published_format_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert_is_clients(npy(tmp_path / "p.npy", CLIENTS, protocol))


def test_what_numpy_save_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array(CLIENTS, dtype=object), allow_pickle=True)
    assert_is_clients(tmp_path / "p.npy")


def test_the_older_module_name_that_the_published_files_use(tmp_path: Path) -> None:
    path = npy(tmp_path / "p.npy", CLIENTS)
    data = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(data)
    assert b"numpy.core.multiarray\n_reconstruct" in data
    assert_is_clients(path)


def test_clients_may_come_in_any_order_and_examples_may_stay_unused(tmp_path: Path) -> None:
    path = npy(tmp_path / "p.npy", {2: [5, 3], 0: [4, 2, 0], 1: [1]})
    assert_is_clients(path)
    order, _ = read_partition(path, 60_000, 3)
    assert len(order) == 6


ROWS = [np.array([4, 2, 0]), np.array([1]), np.array([5, 3])]
SQUARE = [[0, 3], [4, 1], [2, 5]]


def objects(rows: list[Any]) -> np.ndarray:
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


COMMON: dict[str, Any] = {
    "arrays by number": dict(enumerate(ROWS)),
    "arrays by text": {str(i): row for i, row in enumerate(ROWS)},
    "lists by numpy's numbers": {np.int64(i): row.tolist() for i, row in enumerate(ROWS)},
    "lists of numpy's numbers": {i: list(row) for i, row in enumerate(ROWS)},
    "narrow arrays": {i: row.astype(np.uint8) for i, row in enumerate(ROWS)},
    "big-endian arrays": {i: row.astype(">i4") for i, row in enumerate(ROWS)},
    "an array of arrays": objects(ROWS),
    "a defaultdict": defaultdict(list, enumerate(ROWS)),
    "an ordered dict": OrderedDict(enumerate(ROWS)),
    "a list of lists": [row.tolist() for row in ROWS],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", COMMON)
def test_forms_that_other_tools_write(tmp_path: Path, form: str, protocol: int) -> None:
    """As a pickle, and as the pickle in a 0-d object array; an array by its own header as well."""
    value = COMMON[form]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    assert_is_clients(tmp_path / "p.pkl")
    if isinstance(value, np.ndarray):
        np.save(tmp_path / "p.npy", value, allow_pickle=True)
        assert_is_clients(tmp_path / "p.npy")
    else:
        assert_is_clients(npy(tmp_path / "p.npy", value, protocol))


@pytest.mark.parametrize("kind", [np.int64, np.uint16, object])
def test_an_array_with_one_row_a_client(tmp_path: Path, kind: type) -> None:
    np.save(tmp_path / "p.npy", np.array(SQUARE, dtype=kind), allow_pickle=True)
    order, offsets = read_partition(tmp_path / "p.npy", 6, 3)
    assert order.tolist() == [0, 3, 4, 1, 2, 5] and offsets.tolist() == [0, 2, 4, 6]


def test_an_archive_with_one_array_a_client(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **{str(i): row for i, row in enumerate(ROWS)})
    assert_is_clients(tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", *ROWS)
    assert_is_clients(tmp_path / "p.npz")


def test_what_has_no_indices_is_refused_in_words(tmp_path: Path) -> None:
    leaf = {"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[0.0]], "y": [0]}}}
    (tmp_path / "p.json").write_text(json.dumps(leaf))
    refused(tmp_path / "p.json", "LEAF.*class folders")
    flbench = {"separation": {"train": [0, 1]}, "data_indices": [{"train": ROWS[0]}]}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(flbench))
    refused(tmp_path / "p.pkl", "named 'separation'")
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({0: {1, 2}}))
    refused(tmp_path / "p.pkl", r"EMPTY_SET.*to convert, in Python")


def test_the_line_that_converts_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {i: set(row.tolist()) for i, row in enumerate(ROWS)}
    np.save(tmp_path / "p.npy", np.array(sets, dtype=object), allow_pickle=True)
    with pytest.raises(DataError) as error:
        read_partition(tmp_path / "p.npy", 6, 3)
    line = str(error.value).split("if you trust the file: ")[1]
    monkeypatch.chdir(tmp_path)
    exec(line, {"FILE": "p.npy"})
    order, _ = read_partition(tmp_path / "p.json", 6, 3)
    assert order.tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("suffix", [".npz", ".json", ".npy"])
def test_what_is_saved_is_read_back(tmp_path: Path, suffix: str) -> None:
    labels = np.arange(500) % 10
    partition = IID()(labels, 10, 30, numpy_rng(0, "p"))
    path = tmp_path / "new" / f"p{suffix}"
    save_partition(path, partition)
    again = Fixed(str(path))(labels, 10, 30, numpy_rng(1, "other"))
    assert again.digest == partition.digest
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file stays


def test_a_saved_npy_is_what_the_published_code_reads(tmp_path: Path) -> None:
    save_partition(
        tmp_path / "p.npy", Partition(np.array([4, 2, 0, 1, 5, 3]), np.array([0, 3, 4, 6]))
    )
    assert np.load(tmp_path / "p.npy", allow_pickle=True).item() == CLIENTS


def test_saving_says_what_is_wrong_with_the_path(tmp_path: Path) -> None:
    partition = Partition(np.arange(4), np.array([0, 2, 4]))
    with pytest.raises(DataError, match=r"\.npy, \.npz, \.json"):
        save_partition(tmp_path / "p.csv", partition)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save_partition(tmp_path / "file" / "p.npz", partition)


# --- hostile files
# ----------------------------------------------------------------------------------------------------


class Runs:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that hostile pickles try to make, and that must not be there afterwards."""
    flag = tmp_path / "ran"
    yield flag
    assert not flag.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["whole", "value", "index", "key", "nested"])
def test_calls_are_refused_and_not_run(
    tmp_path: Path, trap: Path, place: str, protocol: int
) -> None:
    hostile: list[Any] = [
        Runs(os.system, f"touch {trap}"),
        Runs(builtins.eval, f"open({str(trap)!r}, 'w')"),
        Runs(builtins.exec, f"open({str(trap)!r}, 'w')"),
        Runs(getattr, Runs(__import__, "os"), "system"),
        Runs(np.save, str(trap), 1),
        Runs(Path, "x"),
    ]
    for bad in hostile:
        value = {
            "whole": bad,
            "value": {0: bad},
            "index": {0: [1, bad]},
            "key": {bad: [1]},
            "nested": {0: [[{0: bad}]]},
        }[place]
        refused(npy(tmp_path / "p.npy", value, protocol), "refused", clients=1)


def test_a_bare_pickle_and_hand_made_streams_are_refused(tmp_path: Path, trap: Path) -> None:
    path = tmp_path / "p.npy"
    path.write_bytes(pickle.dumps(Runs(os.system, f"touch {trap}")))
    refused(path, "refused")
    call = f"(S'touch {trap}'\n".encode()
    streams = {  # some have opcodes that nothing answers, the others names that are not known
        b"cos\nsystem\n" + call + b"tR.": "asks for os.system",
        call + b"tR.": "uses STRING",
        b"(cos\nsystem\n" + call[1:] + b"o.": "asks for os.system",
        b"(ios\nsystem\n.": "uses INST",
        b"(cnumpy\nndarray\no.": "uses OBJ",
        b"Pid\n.": "uses PERSID",
        b"\x82\x01.": "uses EXT1",
        b"\x80\x02cnumpy\nndarray\n)\x81.": "uses NEWOBJ",
        b"cnumpy\ndtype\n" + b")R0" * 9 + b".": "makes something other",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.": "refused",
        b"cos\nsystem\n.": "asks for os.system",
        b"cos\nsystem\nX" + struct.pack("<I", 9) + b"touch ran\x85R.": "asks for os.system",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.": "asks for os.system",
        b"cbuiltins\neval\n.": "asks for builtins.eval",
        b"cnumpy\nload\n)R.": "asks for numpy.load",
        b"cnumpy.core.multiarray\nscalar\n)R.": "makes something other",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\0\0\0O8tRC\x08aaaaaaaatR.": "refused",
        b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93.": "asks for numpy.dtype.__new__",
        b"cnumpy\nndarray\n.": "refused",
        b"cnumpy\nndarray\n)R.": "refused",
    }
    for body, said in streams.items():
        refused(raw_npy(path, body), said)


def test_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    # Python's own unpickler lays out a memo of 16 GB
    refused(raw_npy(path, b"]r" + struct.pack("<I", 2**31 - 1) + b"."), "refused")
    # a tuple that hashes through the C stack
    nested = b")" + b"\x85" * 100_000
    refused(raw_npy(path, nested + b"."), "holds a tuple|refused")
    refused(raw_npy(path, b"}" + nested + b"Ns."), "named by a tuple")
    deep = b"]" * 100_000 + b"a" * 99_999 + b"."
    refused(raw_npy(path, deep), "client 0 must hold a list", clients=1)
    shared = list(range(1000))
    refused(npy(path, dict.fromkeys(range(3), shared)), "some are held twice", examples=2000)
    loop: list[Any] = [1]
    loop.append(loop)
    refused(npy(path, {0: loop, 1: [2], 2: [3]}), "client 0 must hold a list of integers")


def test_a_file_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p.npy"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no room
    refused(path, "at most")


@pytest.mark.parametrize("cut", [3, 40, 130, 200, -1])
def test_cut_off_files_are_refused(tmp_path: Path, cut: int) -> None:
    for path in (npy(tmp_path / "p.npy", CLIENTS), tmp_path / "p.npz"):
        if path.suffix == ".npz":
            save_partition(path, Partition(np.arange(6), np.array([0, 3, 4, 6])))
        path.write_bytes(path.read_bytes()[:cut])
        refused(path, "p.np")


@pytest.mark.parametrize(
    "array", [np.arange(6), np.array([CLIENTS], dtype=object), np.array(3.0), np.zeros((), "V4")]
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "p.npy", array, allow_pickle=True)
    refused(tmp_path / "p.npy", "not one dict|refused")


# --- honest files with mistakes
# ---------------------------------------------------------------------------------------

MISTAKES: list[tuple[Any, str]] = [
    ({0: [0, 1], 1: [2, 6], 2: [3]}, r"client 1 holds index 6.*6 examples"),
    ({0: [0, 1], 1: [2, 10**30], 2: [3]}, r"client 1 holds index 10{30}"),
    ({0: [0, 1], 1: [2], 2: [-1]}, r"client 2 holds index -1"),
    ({0: [0, 1], 1: [2, 3], 2: [3]}, r"index 3 is held twice, by client 1 and client 2"),
    ({0: [0, 0], 1: [2, 3], 2: [4]}, r"index 0 is held twice, by client 0 and client 0"),
    ({0: [0], 1: [1], 3: [2]}, r"2 is missing"),
    ({1: [0], 2: [1], 3: [2]}, r"0 is missing"),
    ({0: [0], 1: [1]}, r"2 clients and num_clients=3; use num_clients=2"),
    ({0: [0], 1: [], 2: [2]}, r"client 1 holds no examples"),
    ({0: [0], 1: [1.0], 2: [2]}, r"client 1 must hold a list of integers"),
    ({0: [0], 1: [True], 2: [2]}, r"client 1 must hold a list of integers"),
    ({0: [0], 1: ["1"], 2: [2]}, r"client 1 must hold a list of integers"),
    ({0: [0], 1: [[1]], 2: [2]}, r"client 1 must hold a list of integers"),
    ({0: [0], 1: {"1": 1}, 2: [2]}, r"client 1 must hold a list of integers"),
    ({0: [0], "one": [1], 2: [2]}, r"named 'one'"),
    ({0: [0], "0": [1], 2: [2]}, r"client 0 is written twice"),
    ([[0], [1], [1]], r"index 1 is held twice, by client 1 and client 2"),
    ([[0], 1, [1]], r"client 1 must hold a list of integers"),
    ({}, r"0 clients"),
]


@pytest.mark.parametrize(("clients", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_name_the_client_and_the_index(tmp_path: Path, clients: Any, said: str) -> None:
    if any(
        type(v) is float
        for vs in (clients.values() if isinstance(clients, dict) else [])
        for v in vs
    ):
        said += "|refused"  # a float is already more than the pickle of a partition may hold
    refused(npy(tmp_path / "p.npy", clients), said)
    (tmp_path / "p.json").write_text(json.dumps(clients))
    refused(tmp_path / "p.json", said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"0": [0], "0": [1], "1": [2]}', "client 0 is written twice"),
        ("[" * 100_000, "not readable|list"),
        ('{"0": [0', "not readable"),
        ('{"0": [0], "1": [NaN], "2": [1]}', "client 1"),
        ("\x00", "not readable"),
    ],
)
def test_json_mistakes(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.json").write_text(text)
    refused(tmp_path / "p.json", said)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"order": np.arange(6), "offsets": np.array([0, 3, 6])}, "2 clients and num_clients=3"),
        ({"order": np.arange(6), "offsets": np.array([0, 3, 3, 6])}, "client 1 holds no examples"),
        ({"order": np.arange(6), "offsets": np.array([0, 4, 3, 6])}, "offsets must rise"),
        ({"order": np.arange(6), "offsets": np.array([1, 2, 3, 6])}, "offsets must rise"),
        ({"order": np.arange(6), "offsets": np.array([0, 2, 3, 5])}, "offsets must rise"),
        ({"order": np.arange(6.0), "offsets": np.array([0, 2, 3, 6])}, "float64"),
        ({"order": np.arange(6).reshape(2, 3), "offsets": np.array([0, 2, 3, 6])}, r"\(2, 3\)"),
        (
            {"order": np.array([0, 1, 2, 3, 4, 9]), "offsets": np.array([0, 2, 3, 6])},
            "client 2 holds index 9",
        ),
        (
            {"order": np.array([0, 1, 2, -3, 4, 5]), "offsets": np.array([0, 2, 3, 6])},
            "client 2 holds index -3",
        ),
        (
            {"order": np.array([0, 1, 2, 2, 4, 5]), "offsets": np.array([0, 2, 3, 6])},
            "by client 1 and client 2",
        ),
        (
            {
                "order": np.array([0, 1, 2, 3, 4, 2**64 - 1], np.uint64),
                "offsets": np.array([0, 2, 3, 6]),
            },
            "client 2 holds index",
        ),
        ({"order": np.arange(6)}, "named 'order'"),
        ({"0": np.arange(3), "1": np.arange(3, 6).reshape(1, 3)}, r"1: int64 \(1, 3\)"),
        ({"order": np.array([{}, 1]), "offsets": np.array([0, 1, 2])}, "ValueError"),
    ],
)
def test_npz_mistakes(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "p.npz", **arrays)
    refused(tmp_path / "p.npz", said)


def test_a_missing_file_and_a_strange_ending_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "p.npy", "no such file")
    (tmp_path / "p.pt").write_bytes(b"")
    refused(tmp_path / "p.pt", r"ends in \.npy")


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the published files are not on this machine")
@pytest.mark.parametrize(
    ("prefix", "examples"), [("", 50_000), ("SVHN_", 73_257), ("cinic10_", 90_000)]
)
def test_the_published_files(prefix: str, examples: int) -> None:
    for alpha in ("0.5", "1.0"):
        partition = Fixed(str(OFFICIAL / f"{prefix}hetero-fix-100-{alpha}.npy"))(
            np.zeros(examples, int), 10, 100, numpy_rng(0, "p")
        )
        assert np.array_equal(np.sort(partition.order), np.arange(examples))

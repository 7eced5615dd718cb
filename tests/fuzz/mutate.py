"""Damage to files: bits, bytes, lengths, numbers written in them, members of archives, and files
that would run something.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = (
    b"-1",
    b"0",
    b"1",
    b"2",
    b"60",
    b"99999999999999999999",
    b"4294967296",
    b"1099511627776",
    b"1e400",
    b"1.5",
    b"NaN",
    b"-Infinity",
    b"null",
)
PIECES: tuple[bytes, ...] = (
    b"null",
    b"{}",
    b"[]",
    b"[[",
    b'"',
    b"\\",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"true",
    b"'",
    b"(",
    b")",
    b",",
    b":",
    b"\n",
    b"[" * 5000,
)
PIECES += (
    b'{"a":' * 3000,
    b"1" * 5000,
    b"c__builtin__\nopen\n(",
    b"\x80\x05",
    b"L" * 40,
    b"|O8",
    b"<f4",
    b"True",
    b"(9999999999,)",
)


class Bomb:
    """Pickles as a call that makes a file: harmless, and seen."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def bombs(marker: Path) -> list[bytes]:
    """Files that run something for whoever unpickles them: bare, in .npy, in .npz, as torch saves,
    as JSON's neighbours.
    """
    bare, array, archive, torchlike = (
        pickle.dumps(Bomb(marker)),
        io.BytesIO(),
        io.BytesIO(),
        io.BytesIO(),
    )
    np.save(array, np.array({0: Bomb(marker)}, dtype=object), allow_pickle=True)
    objects: dict[str, Any] = {
        name: np.array([Bomb(marker)], dtype=object)
        for name in ("order", "offsets", "x_train", "y_train")
    }
    np.savez(archive, **objects)
    with zipfile.ZipFile(torchlike, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb(marker), protocol=2))
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return [
        bare,
        pickle.dumps(Bomb(marker), protocol=0),
        array.getvalue(),
        archive.getvalue(),
        torchlike.getvalue(),
    ]


def damaged(rng: random.Random, data: bytes, marker: Path) -> bytes:
    """Damage a file's bytes in a random way, now and then inside what is compressed or archived
    there.
    """
    at = rng.random()
    if at < 0.06:
        return rng.choice(bombs(marker))
    if at < 0.36:
        inner = _inside(rng, data)
        if inner is not None:
            return inner
    out = data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        out = rng.choice(WAYS)(rng, out)
    return out


def _inside(rng: random.Random, data: bytes) -> bytes | None:
    """Damage a member of a zip archive, or the body of a gzip file, and pack it again, so that
    checksums hold.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            return gzip.compress(rng.choice(WAYS)(rng, gzip.decompress(data)), 1)
        except (OSError, EOFError, zlib.error):
            return None
    if data[:4] != b"PK\x03\x04":
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # it was damaged before
        return None
    name = rng.choice(sorted(members))
    members[name] = rng.choice(WAYS)(rng, members[name])
    if rng.random() < 0.1:
        del members[name]
    out = io.BytesIO()
    with zipfile.ZipFile(
        out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for member, body in members.items():
            archive.writestr(member, body)
    return out.getvalue()


def _flip(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _flip_early(rng: random.Random, data: bytes) -> bytes:
    """In the first bytes, where headers are."""
    return _flip(rng, data[:128]) + data[128:]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _behead(rng: random.Random, data: bytes) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def _longer(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((b"\x00", b" ", rng.randbytes(rng.randrange(1, 200)), data))


def _swap(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    if len(out) > 1:
        a, b = rng.randrange(len(out)), rng.randrange(len(out))
        out[a], out[b] = out[b], out[a]
    return bytes(out)


def _hole(rng: random.Random, data: bytes) -> bytes:
    a = rng.randrange(len(data) + 1)
    b = min(len(data), a + rng.choice((1, 8, 100, 5000)))
    return data[:a] + rng.choice((b"\x00" * (b - a), b"", rng.randbytes(b - a))) + data[b:]


def _number(rng: random.Random, data: bytes) -> bytes:
    """Write another number in place of one: sizes in headers, counts, indices."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return _flip(rng, data)
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(NUMBERS) + data[chosen.end() :]


def _number_in_place(rng: random.Random, data: bytes) -> bytes:
    """Another number of as many digits, which leaves lengths as they are."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return _swap(rng, data)
    chosen = rng.choice(found)
    return (
        data[: chosen.start()]
        + bytes(rng.choice(b"0123456789") for _ in chosen.group())
        + data[chosen.end() :]
    )


def _huge_field(rng: random.Random, data: bytes) -> bytes:
    """A binary field of all ones, or of a very large number: shapes, lengths, offsets."""
    a = rng.randrange(max(1, min(len(data), 256)))
    return (
        data[:a]
        + rng.choice(
            (
                b"\xff\xff\xff\xff",
                b"\x7f\xff\xff\xff",
                b"\xff\xff\xff\x7f",
                b"\x00\x00\x00\x40",
                b"\xff" * 8,
            )
        )
        + data[a + 4 :]
    )


def _piece(rng: random.Random, data: bytes) -> bytes:
    a = rng.randrange(len(data) + 1)
    return data[:a] + rng.choice(PIECES) + data[a + rng.choice((0, 1, 3)) :]


def _nothing(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(
        (b"", b"\x00" * len(data), b"null", b"{}", b"[]", b"0", b'""', b"PK\x05\x06" + bytes(18))
    )


def _json_value(rng: random.Random, data: bytes) -> bytes:
    """Another value somewhere in a JSON file: still JSON, with something else in it."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(rng, data)
    value = rng.choice(
        (None, True, -1, 0, 1.5, 10**30, "x", "", [], {}, [[1]], {"a": 1}, float("nan"))
    )
    node = tree
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.4:
            if rng.random() < 0.25:
                del node[key]
            else:
                node[key] = value
            return json.dumps(tree).encode()
        node = node[key]
    return json.dumps(value).encode()


WAYS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip, _flip, _flip_early, _cut, _behead, _longer, _swap, _hole, _number, _number_in_place, _huge_field, _piece, _json_value, _nothing,
)  # fmt: skip

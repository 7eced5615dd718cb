"""Read the dicts, lists, integers and numpy arrays of a pickle, by an interpreter of those alone.

A partition file comes from somebody else, and Python's unpickler runs what a file asks for. Here
nothing can be run: there is no opcode that calls, only such as build data.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from inco.errors import DataError

# what numpy and collections.defaultdict name, in their present and former places
_NAMES = {
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "frombuffer",
    "numpy._core.numeric._frombuffer": "frombuffer",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "type",
    "_codecs.encode": "bytes",  # how protocol 2 spells them
    "collections.OrderedDict": "dict",
    "collections.defaultdict": "dict",
    "builtins.list": "list",
    "__builtin__.list": "list",
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_VALUE_OPCODES = """
BININT BININT1 BININT2 LONG1 INT LONG BINFLOAT FLOAT BINUNICODE SHORT_BINUNICODE UNICODE
SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
"""
_VALUES = frozenset(_VALUE_OPCODES.split())
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """A class or function that a pickle names; it stands for nothing but its name."""

    name: str


class _Type:
    """What a pickle says of a numpy type: its kind and size, later its order of bytes."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.code}")


class _Array(list[Any]):
    """The entries of a numpy array, nested as its dimensions are."""


class InertPickle:
    """The stack, the marks and the memo of one pickle.

    `load` raises DataError for an opcode or a name that no data needs, and nearly anything for a
    damaged stream.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self, body: bytes) -> Any:
        """Return what the pickle holds: arrays as lists."""
        for opcode, argument, _ in pickletools.genops(body):
            self._do(opcode.name, argument)
        (value,) = self.stack
        return value

    def _do(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in _VALUES:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            case "MARK":
                self.marks.append(len(stack))
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE" | "LIST":
                stack.append((tuple if name == "TUPLE" else list)(self._marked()))
            case _ if name in _TUPLES:
                stack.append(tuple(self._popped(_TUPLES[name])))
            case "APPEND" | "APPENDS":
                values = self._popped(1) if name == "APPEND" else self._marked()
                _kind(stack[-1], list).extend(values)
            case "DICT":
                stack.append(_with({}, self._marked()))
            case "SETITEM" | "SETITEMS":
                values = self._popped(2) if name == "SETITEM" else self._marked()
                _with(_kind(stack[-1], dict), values)
            case "GLOBAL":
                stack.append(_known(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(_known(".".join(self._popped(2))))
            case "REDUCE":
                stack.append(_made(*self._popped(2)))
            case "BUILD":
                stack.append(_restored(*self._popped(2)))
            case _:
                raise DataError(
                    f"its pickle uses {name}: it holds more than dicts, lists, integers and arrays;"
                    " nothing of it was run"
                )

    def _popped(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count:
            raise IndexError("the stack is empty")
        del self.stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _known(name: str) -> _Name:
    if name not in _NAMES:
        raise DataError(
            f"it asks for {name}, which a partition has no use for; nothing of it was run"
        )
    return _Name(_NAMES[name])


def _made(name: Any, arguments: Any) -> Any:
    """Return what a call stands for. An array is empty until its state is set."""
    match (name.name if isinstance(name, _Name) else None, arguments):
        case "array", (_Name(), tuple(), _):
            return _Array()
        case "frombuffer", (bytes(data) | bytearray(data), _Type() as kind, tuple(shape), order):
            entries = np.frombuffer(data, kind.dtype)
            return _Array(entries.reshape(shape, order=order).tolist())
        case "type", (str(code), *_):
            return _Type(code)
        case "scalar", (_Type() as kind, bytes(data)):
            return np.frombuffer(data, kind.dtype, 1)[0].item()
        case "bytes", (str(text), "latin1"):
            return text.encode("latin1")
        case "dict", () | (_Name("list"),):
            return {}
    raise DataError("its pickle makes something other than dicts, lists, integers and arrays")


def _restored(made: Any, state: Any) -> Any:
    """Return an array or a type with its state, as numpy's `__setstate__` takes it."""
    match made, state:
        case _Type(), (_, str(order), *_):
            made.order = order if order in "<>" else "="
        case _Array(), (_, tuple(shape), _Type() as kind, bool(fortran), bytes(data)):
            entries = np.frombuffer(data, kind.dtype)
            made[:] = entries.reshape(shape, order="F" if fortran else "C").tolist()
        case _Array(), (_, tuple(shape), _Type(), False, list(entries)):
            rows, columns = shape if len(shape) == 2 else (1, len(entries))
            if rows * columns != len(entries):
                raise DataError(f"an array of shape {shape} holds {len(entries)} entries")
            ends = range(0, len(entries), columns)
            made[:] = [entries[a : a + columns] for a in ends] if len(shape) == 2 else entries
        case _:
            raise DataError("its pickle sets the state of something that has none")
    return made


def _kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise DataError(
            f"its pickle fills a {type(value).__name__} as if it were a {kind.__name__}"
        )
    return value


def _with(filled: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Put keys and values that alternate into a dict. Keys are numbers or texts: hashing a tuple
    that is nested deeply overflows the stack.
    """
    for key, value in zip(values[::2], values[1::2], strict=True):
        if type(key) not in (int, str):
            raise DataError(f"a client is named by a {type(key).__name__}; names are integers")
        filled[key] = value
    return filled

"""Reads a pickle of plain values, and of nothing else.

A pickle is a program: it names functions and calls them while it is opened. Here it can name only what NumPy's arrays
and numbers are stored with, and even those names stand for functions of this file, which check what they are given. So
a file of someone else's can hold dictionaries, lists, tuples, strings, numbers, booleans, None, and arrays of booleans
and numbers; whatever else is in it is an error, and nothing of it has run.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

LARGEST = 2**28  # bytes of a file: a mask of 16 megapixels in double precision is half of that
PLAIN = (dict, list, tuple, str, int, float, bool, type(None), np.ndarray)


class Refused(Exception):
    """What a file asks for is not plain."""


class Named:
    """What a name in a pickle stands for: can be called, and cannot be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise Refused("it would change a function")


class Type:
    """A type of booleans or numbers, as `numpy.dtype` is stored: its name, and the order of its bytes as its state."""

    def __init__(self, name: Any = None, *flags: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", name):
            raise Refused(f"an array of type {name!r}; only booleans and numbers can be read")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise Refused("an array's type that is damaged")
        if any(part is not None for part in state[2:5]):  # a nested type, its names and its fields
            raise Refused("an array of records; only booleans and numbers can be read")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
    """An array that takes its state only where shape, type and bytes agree."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array that is damaged")
        _, shape, kind, fortran, data = state
        shape, dtype = checked(shape, kind, data)
        super().__setstate__((1, shape, dtype, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def checked(shape: Any, kind: Any, data: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """The shape and dtype of an array, if they are those of so many bytes."""
    if not isinstance(kind, Type) or not isinstance(data, bytes | bytearray):
        raise Refused("an array whose values are not stored as bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape) or len(shape) > 8:
        raise Refused(f"an array of shape {shape!r}")
    if math.prod(shape) * kind.dtype.itemsize != len(data):
        raise Refused(f"an array of shape {shape!r} in {len(data)} bytes")
    return shape, kind.dtype


def empty_array(subtype: Any, shape: Any, code: Any) -> Array:
    """`numpy.core.multiarray._reconstruct`: an array whose state comes next."""
    return Array((0,), dtype=np.uint8)


def array_of_bytes(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """`numpy.core.numeric._frombuffer`: an array as protocol 5 stores it."""
    shape, dtype = checked(shape, kind, data)
    return np.frombuffer(bytes(data), dtype).reshape(shape, order="F" if order == "F" else "C")


def number(kind: Any, data: Any) -> int | float | bool:
    """`numpy.core.multiarray.scalar`: a number of NumPy's, as Python's."""
    _, dtype = checked((), kind, data)
    return np.frombuffer(data, dtype)[0].item()


def text_as_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, with which the old protocols store bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"text in {encoding!r}")
    return text.encode("latin1")


def no_bytes(*arguments: Any) -> bytes:
    """`bytes`, with which the old protocols store the bytes of an array without any."""
    if arguments:
        raise Refused("it would make bytes of what are not bytes")
    return b""


def _not_called(*arguments: Any) -> NoReturn:
    raise Refused("it would make an array by other means than its bytes")


NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _not_called,  # only ever named, as the first argument of _reconstruct
    ("numpy", "dtype"): Type,
    ("_codecs", "encode"): text_as_bytes,
    ("__builtin__", "bytes"): no_bytes,
}
for core in ("numpy.core", "numpy._core"):  # NumPy 1's name and NumPy 2's
    NAMES[f"{core}.multiarray", "_reconstruct"] = empty_array
    NAMES[f"{core}.multiarray", "scalar"] = number
    NAMES[f"{core}.numeric", "_frombuffer"] = array_of_bytes


class Unpickler(pickle._Unpickler):  # the one in Python: that in C can be made to allocate a memo of any size
    def find_class(self, module: str, name: str) -> Named:
        if (module, name) not in NAMES:
            raise Refused(f"it names {module}.{name}")
        return Named(NAMES[module, name])

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("it names an object outside of the file")


def load(path: str | Path) -> Any:
    """The value in a pickle of plain values.

    Raises ValueError that names the file and what in it is not plain, or that it is damaged or too large; OSError where
    it cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; no more than {LARGEST} are read")
    data = path.read_bytes()
    try:
        value = Unpickler(io.BytesIO(data)).load()
        check_plain(value)
    except Refused as error:
        raise ValueError(f"{path}: not a file of plain values: {error}. It was not run") from None
    except (Exception, RecursionError) as error:  # whatever a stack machine makes of a damaged program
        raise ValueError(f"{path}: damaged pickle ({type(error).__name__})") from None
    return value


def check_plain(value: Any) -> None:
    """Raise `Refused` unless all that a value holds is of the types in `PLAIN`."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if type(one) not in PLAIN and type(one) is not Array:
            raise Refused(f"it holds a {type(one).__name__}")
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            waiting.extend([*one.keys(), *one.values()])
        elif isinstance(one, list | tuple):
            waiting.extend(one)

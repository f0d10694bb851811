"""Reads a pickle of plain values, and of nothing else.

A pickle is a program: it names functions and calls them while it is opened. Here it can name only what NumPy's arrays
and numbers are stored with, and even those names stand for functions of this file, which check what they are given. So
a file can hold dictionaries, lists, tuples, strings, numbers, booleans, None, and arrays of booleans and numbers;
anything else in it is an error, and nothing of it has run.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

LARGEST = 2**28  # bytes of a file: a mask of 16 megapixels in double precision is half of that


class Refused(Exception):
    """A file asks for something that is not plain."""


class Type:
    """A type of booleans or numbers, as `numpy.dtype` is stored: its name, and the order of its bytes as its state."""

    def __init__(self, name: Any = None, *flags: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", name):
            raise Refused(f"an array of type {name!r}; only booleans and numbers can be read")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        nested = not isinstance(state, tuple) or any(part is not None for part in state[2:5])
        if nested or state[1] not in ("<", ">", "=", "|"):
            raise Refused("an array of records, or a damaged type; only booleans and numbers can be read")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
    """An array that takes its state only where shape, type and bytes agree."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        super().__setstate__((1, shape, checked(shape, kind, data), bool(fortran), bytes(data)))  # type: ignore[arg-type]


def checked(shape: Any, kind: Any, data: Any) -> np.dtype[Any]:
    """Return the dtype of an array, if it has that shape in so many bytes."""
    if not isinstance(kind, Type) or not isinstance(data, bytes | bytearray):
        raise Refused("an array whose values are not stored as bytes")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape) or len(shape) > 8:
        raise Refused(f"an array of shape {shape!r}")
    if math.prod(shape) * kind.dtype.itemsize != len(data):
        raise Refused(f"an array of shape {shape!r} in {len(data)} bytes")
    return kind.dtype


def array_of_bytes(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """`numpy.core.numeric._frombuffer`: an array as protocol 5 stores it."""
    dtype = checked(shape, kind, data)
    return np.frombuffer(bytes(data), dtype).reshape(shape, order="F" if order == "F" else "C")


def number(kind: Any, data: Any) -> int | float | bool:
    """`numpy.core.multiarray.scalar`: a number of NumPy's, as Python's."""
    return np.frombuffer(data, checked((), kind, data))[0].item()


def text_as_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, with which the old protocols store bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused(f"text in {encoding!r}")
    return text.encode("latin1")


NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): object(),  # only ever named, as the first argument of _reconstruct
    ("numpy", "dtype"): Type,
    ("_codecs", "encode"): text_as_bytes,
    ("__builtin__", "bytes"): lambda: b"",  # with which the old protocols store the bytes of an array without any
}
for core in ("numpy.core", "numpy._core"):  # NumPy 1's name and NumPy 2's
    NAMES[f"{core}.multiarray", "_reconstruct"] = lambda kind, shape, code: Array(
        (0,), np.uint8
    )  # its state comes next
    NAMES[f"{core}.multiarray", "scalar"] = number
    NAMES[f"{core}.numeric", "_frombuffer"] = array_of_bytes


class Unpickler(pickle._Unpickler):  # the one in Python: that in C can be made to allocate a memo of any size
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # what each opcode does
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise Refused(f"it names {module}.{name}")
        return NAMES[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("it names an object outside of the file")

    def load_build(self) -> None:
        if type(self.stack[-2]) not in (Type, Array):
            raise Refused("it would change a function")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build


def load(path: str | Path) -> Any:
    """Return the value in a pickle of plain values.

    Raises ValueError that names the file and what in it is not plain, or that it is damaged or too large; OSError where
    it cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; no more than {LARGEST} are read")
    data = path.read_bytes()
    try:
        value = Unpickler(io.BytesIO(data)).load()
        check_plain(value, set())
    except Refused as error:
        raise ValueError(f"{path}: not a file of plain values: {error}. It was not run") from None
    except (Exception, RecursionError) as error:  # whatever a stack machine makes of a damaged program
        raise ValueError(f"{path}: damaged pickle ({type(error).__name__})") from None
    return value


def check_plain(value: Any, seen: set[int]) -> None:
    """Raise `Refused` unless a value and all that it holds is plain. `seen`: the ids of values that were checked."""
    if type(value) not in (dict, list, tuple, str, int, float, bool, type(None), np.ndarray, Array):
        raise Refused(f"it holds a {type(value).__name__}")
    if isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for one in [*value, *(value.values() if isinstance(value, dict) else ())]:
            check_plain(one, seen)

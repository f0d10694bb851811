"""Reads a pickle of plain values, and of nothing else.

A pickle is a program: it names functions and calls them while it is opened. Here it can name only what NumPy's arrays
and numbers are stored with, and even those names stand for functions of this file, which check what they are given. So
a file can hold dictionaries, lists, tuples, strings, numbers, booleans, None, and arrays of booleans and numbers;
anything else in it is an error, and nothing of it has run.

Nor can a small file ask for much time or memory: its steps, and the bytes that these make, are counted while it is
read; lengths that it gives are taken from what is there; keys are texts, whose hashes no file can foresee; and no
message shows a value, which may be endless.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

LARGEST = 2**28  # bytes of a file, and of the arrays made of it: a mask of 16 megapixels in float64 is half of that
STEPS = 2**17  # of the program that a pickle is, and values in what it makes


class Refused(Exception):
    """A file asks for something that is not plain."""


class Type:
    """A type of booleans or numbers, as `numpy.dtype` is stored: its name, and the order of its bytes as its state."""

    def __init__(self, name: Any = None, *flags: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", name):
            kind = name if isinstance(name, str) and re.fullmatch(r"\w{1,4}", name) else "unknown"
            raise Refused(f"an array of type {kind!r}; only booleans and numbers can be read")
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
    if not isinstance(shape, tuple) or len(shape) > 8:
        raise Refused(f"an array whose shape is a {type(shape).__name__}, and not of up to 8 numbers")
    if not all(type(side) is int and 0 <= side <= LARGEST for side in shape):
        raise Refused("an array with a side that is none")
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
        raise Refused("text in another encoding than latin1")
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


def counted(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a step of the program that counts itself."""

    def run(reader: Unpickler) -> None:
        reader.steps += 1
        if reader.steps > STEPS:
            raise Refused(f"it has more than {STEPS} steps")
        step(reader)

    return run


class Unpickler(pickle._Unpickler):  # the one in Python: that in C can be made to allocate a memo of any size
    stack: list[Any]
    steps = 0
    made = 0  # bytes of arrays, bytes and texts that functions returned

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            asked = re.fullmatch(r"[\w.]{1,99}", f"{module}.{name}", re.ASCII)
            raise Refused(f"it names {asked[0] if asked else 'what is no name'}")
        return NAMES[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("it names an object outside of the file")

    def load_build(self) -> None:
        if type(self.stack[-2]) not in (Type, Array):
            raise Refused("it would change a function")
        super().load_build()  # type: ignore[misc]
        self.count_bytes()

    def load_reduce(self) -> None:
        super().load_reduce()  # type: ignore[misc]
        self.count_bytes()

    def count_bytes(self) -> None:
        made = self.stack[-1]
        self.made += made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
        if self.made > LARGEST:
            raise Refused(f"it makes more than {LARGEST} bytes")

    def load_bytearray8(self) -> None:  # pickle's own sets aside whatever length is asked for
        self.stack.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))  # type: ignore[attr-defined]

    def load_put(self) -> None:
        place = int(self.readline())  # type: ignore[attr-defined]
        if not 0 <= place < STEPS:  # larger numbers can be chosen so that they collide
            raise Refused("it keeps values at places that are none")
        self.memo[place] = self.stack[-1]  # type: ignore[attr-defined]

    def load_setitem(self) -> None:
        check_keys([self.stack[-2]])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        check_keys(self.stack[::2])
        super().load_dict()  # type: ignore[misc]

    def load_set(self) -> NoReturn:
        raise Refused("it holds a set")

    dispatch: ClassVar[dict[int, Any]] = {  # what each opcode does
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.REDUCE[0]: load_reduce,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.PUT[0]: load_put,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.EMPTY_SET[0]: load_set,
        pickle.ADDITEMS[0]: load_set,
        pickle.FROZENSET[0]: load_set,
    }
    dispatch = {code: counted(step) for code, step in dispatch.items()}


def check_keys(keys: Sequence[Any]) -> None:
    """Raise `Refused` unless keys of a dictionary are texts: the hashes of numbers can be chosen to be the same."""
    if not all(type(key) is str for key in keys):
        raise Refused("it holds a dictionary with other keys than texts")


def load(path: str | Path) -> Any:
    """Return the value in a pickle of plain values.

    Raises ValueError that names the file and what in it is not plain, or that it is damaged or too large; OSError where
    it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"{path}: too large a file; no more than {LARGEST} bytes are read")
    try:
        value = Unpickler(io.BytesIO(data)).load()
        check_plain(value)
    except Refused as error:
        raise ValueError(f"{path}: not a file of plain values: {error}. It was not run") from None
    except (Exception, RecursionError) as error:  # whatever a stack machine makes of a damaged program
        raise ValueError(f"{path}: damaged pickle ({type(error).__name__})") from None
    return value


def check_plain(value: Any) -> None:
    """Raise `Refused` unless a value and all that it holds is plain, and holds no more than so many values.

    One that stands in several places counts in each, as whoever walks through it meets it: a list that holds itself
    has no end.
    """
    waiting, count = [value], 1
    while waiting:
        one = waiting.pop()
        if type(one) not in (dict, list, tuple, str, int, float, bool, type(None), np.ndarray, Array):
            raise Refused(f"it holds a {type(one).__name__}")
        inside = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
        count += len(inside)
        if count > STEPS:
            raise Refused(f"it holds more than {STEPS} values, or itself")
        waiting += inside

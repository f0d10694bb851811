"""Pickles of plain values are read as NumPy and Python wrote them; any other is refused and nothing of it runs."""

import datetime
import os
import pickle
import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from dragsa.evaluation import plain_pickle

PLAIN = {
    "prompt": "a cat, «drawn»",
    "points": [[3, 4], (5.5, -1e300), [np.int64(7), np.float32(0.5)], [True, None, 2**200]],
    "mask": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "others": [
        np.array([[True, False]]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(5, dtype=">i4"),
        np.zeros((0, 4), np.float16),
        np.array(3.0),
        np.arange(10)[::3],
    ],
    "bool": np.bool_(True),
}


def same(a, b):
    if isinstance(a, np.ndarray):
        same_type = isinstance(b, np.ndarray) and a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        return same_type and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


@pytest.fixture
def load(tmp_path):
    def load(data):
        file = tmp_path / "meta_data.pkl"
        file.write_bytes(data)
        return plain_pickle.load(file)

    return load


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(load, protocol):
    data = pickle.dumps(PLAIN, protocol)
    assert same(PLAIN, load(data))
    if protocol < 4:  # names are lines, and can be those of NumPy 1
        older = data.replace(b"numpy._core.", b"numpy.core.")
        assert older != data and same(PLAIN, load(older))


def test_a_value_in_several_places(load):
    pair = [1, (2, 3)]
    assert load(pickle.dumps([pair, pair, {"a": pair}])) == [pair, pair, {"a": pair}]


def circle(times):
    """A list that holds itself so many times."""
    inside: list[Any] = []
    inside.extend([inside] * times)
    return inside


def laughter(levels):
    """A value of 2 to the `levels` values, of as many lists."""
    value: Any = [0, 0]
    for _ in range(levels):
        value = [value, value]
    return value


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def long(value):
    return b"\x8a\x0c" + value.to_bytes(12, "little")


FROM_BYTES = b"\x80\x02cnumpy.core.numeric\n_frombuffer\n"
SHAPE_OF_LISTS = FROM_BYTES + b"(C\x00cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R]q\x00(h\x00h\x00eX\x01\x00\x00\x00CtR."
# By name: few bytes that ask for much, and what is said of them.
LARGE = {
    "13 bytes for 3 GB": (b"\x80\x05\x96" + struct.pack("<Q", 3 * 2**30) + b"a.", "damaged pickle"),
    "a list that holds itself": (pickle.dumps(circle(1)), "or itself"),
    "a list that holds itself twice": (pickle.dumps(circle(2)), "or itself"),
    "endless as a type": (b"\x80\x02cnumpy\ndtype\n]q\x00(h\x00h\x00e\x85R.", "type 'unknown'"),
    "endless as a shape": (SHAPE_OF_LISTS, "whose shape is a list"),
    "endless as an encoding": (
        b"\x80\x02c_codecs\nencode\nX\x00\x00\x00\x00]q\x00(h\x00h\x00e\x86R.",
        "another encoding",
    ),
    "2 to the 60 values": (pickle.dumps(laughter(60)), "more than 131072 values"),
    "lists without end": (b"\x80\x02" + b"]" * 2**21 + b".", "more than 131072 steps"),
    "one text as bytes a thousand times": (
        b"\x80\x02" + text(b"a" * 2**20) + b"q\x00c_codecs\nencode\nq\x01" + b"h\x01h\x00\x85R" * 1000 + b".",
        "more than 268435456 bytes",
    ),
    "numbers of one hash": (
        b"\x80\x02}(" + b"".join(long(n * (2**61 - 1)) + b"N" for n in range(1, 60_000)) + b"u.",
        "other keys than texts",
    ),
    "numbers of one hash, one by one": (b"}I1\nI2\ns.", "other keys than texts"),
    "numbers of one hash, at once": (b"(I1\nI2\nd.", "other keys than texts"),
    "places of one hash": (b"N" + b"".join(b"p%d\n" % (n * (2**61 - 1)) for n in range(1, 60_000)) + b".", "places"),
    "a number of many digits": (b"I" + b"9" * 10**6 + b"\n.", "damaged pickle"),
    "a name of many lines": (b"\x80\x04" + text(b"os\nx" * 10**5) + text(b"system") + b"\x93.", "what is no name"),
    "nested deep": (b"]" * 50_000 + b"a" * 49_999 + b".", None),
}


@pytest.mark.parametrize("which", LARGE)
def test_few_bytes_ask_for_little(load, which):
    """At once, in little memory, and in one short line."""
    data, says = LARGE[which]
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        if says is None:
            assert isinstance(load(data), list)
        else:
            with pytest.raises(ValueError, match=says) as caught:
                load(data)
            assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 2 * plain_pickle.LARGEST
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 20


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile(marker):
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    array = np.arange(4, dtype=np.uint8)
    ndarray, reconstruct = b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"
    return {
        "os.system": Calls(os.system, command),
        "posix.system by hand": b"cposix\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "in a list": [1, {"a": Calls(os.system, command)}],
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "getattr": b"cbuiltins\ngetattr\n(cos\npath\nS'x'\ntR.",
        "a name within a name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command.encode() + b"'\no.",
        "a class of this file": Calls(Calls, 1),
        "numpy.load": Calls(np.load, str(marker)),
        "numpy's own eval": b"cnumpy.testing._private.utils\nrunstring\n(S'" + code.encode() + b"'\n}tR.",
        "an array of objects": np.array([Calls(os.system, command), None], dtype=object),
        "an array of plain objects": np.array([1, "a"], dtype=object),
        "an array of records": np.zeros(3, dtype=[("a", "u1"), ("b", "f4")]),
        "an array of strings": np.array(["a"]),
        "an array of dates": np.array(["2024-01-01"], dtype="M8[D]"),
        "a dtype": np.dtype("u1"),
        "an array of objects in disguise": pickle.dumps(array, 2).replace(b"u1", b"O8"),
        "an array made at will": ndarray + b"(I1000000000000\ntR.",
        "a subtype made at will": reconstruct + b"(cos\nsystem\n(I0\ntS'b'\ntR.",
        "more shape than bytes": pickle.dumps(array, 2).replace(b"K\x04\x85", b"K\x7f\x85"),
        "a function changed": reconstruct + b"}(S'_call'\ncnumpy\ndtype\nub.",
        "a function changed by its slots": reconstruct + b"(N}(S'_call'\ncnumpy\ndtype\nutb.",
        "a name alone": ndarray + b".",
        "a persistent id": b"Pposix.system\n.",
        "an extension": b"\x82\x01.",
        "bytes of any length": b"c__builtin__\nbytes\n(I1000000000000\ntR.",
        "bytes": b"\x80\x03C\x02ab.",
        "a set": {1, 2},
        "a date": datetime.date(2024, 1, 1),
        "a complex number": 1j,
        "a memo of any size": b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b"h\x00.",
        "a text of any length": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
        "cut short": pickle.dumps(PLAIN)[:-20],
        "no pickle": b"\x89PNG\r\n\x1a\n",
        "empty": b"",
    }


@pytest.mark.parametrize("which", list(hostile("")))
def test_whatever_is_not_plain_is_refused_and_not_run(load, tmp_path, which):
    marker = tmp_path / "it-ran"
    value = hostile(marker)[which]
    data = value if isinstance(value, bytes) else pickle.dumps(value)
    with pytest.raises(ValueError, match=r"meta_data\.pkl: (not a file of plain values|damaged pickle)") as caught:
        load(data)
    assert "\n" not in str(caught.value)
    assert not marker.exists() and [file.name for file in tmp_path.iterdir()] == ["meta_data.pkl"]


def test_a_refused_file_changes_nothing_for_the_next(load, tmp_path):
    for value in hostile(tmp_path / "it-ran").values():
        with pytest.raises(ValueError):
            load(value if isinstance(value, bytes) else pickle.dumps(value))
    assert same(PLAIN, load(pickle.dumps(PLAIN)))


def test_the_reason_is_said(load):
    with pytest.raises(ValueError, match=r"it names posix\.system\. It was not run"):
        load(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(ValueError, match="an array of type 'O8'; only booleans and numbers"):
        load(pickle.dumps(np.array([None])))
    with pytest.raises(ValueError, match=r"an array of shape \(\) in 16 bytes"):
        load(pickle.dumps(np.float64(1), 3).replace(b"C\x08", b"C\x10" + bytes(8)))


def test_a_file_too_large_to_be_a_sample(load, monkeypatch):
    monkeypatch.setattr(plain_pickle, "LARGEST", 10)
    with pytest.raises(ValueError, match="no more than 10 bytes"):
        load(pickle.dumps("a" * 20))

"""Pickles of plain values are read as NumPy and Python wrote them; any other is refused and nothing of it runs."""

import datetime
import os
import pickle
import struct
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


def test_a_value_that_holds_itself(load):
    circle: list[Any] = [1]
    circle.append(circle)
    assert load(pickle.dumps(circle))[1][0] == 1


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
    with pytest.raises(ValueError, match="no more than 10"):
        load(pickle.dumps("a" * 20))

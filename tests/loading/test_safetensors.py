"""Files that are no safetensors or are damaged."""

from __future__ import annotations

import pickle
from pathlib import Path

import tiny_models
import torch
from loading_checks import holds, refused

from dragsa import loading


def test_tensors_that_begin_at_an_odd_byte(single, tmp_path):
    """Older writers did not pad the header."""
    data = single.read_bytes()
    length = int.from_bytes(data[:8], "little")
    odd = length + 1 + (length % 2)
    header = data[8 : 8 + length].rstrip().ljust(odd)
    (tmp_path / "model.safetensors").write_bytes(odd.to_bytes(8, "little") + header + data[8 + length :])
    tiny_models.write_tokenizer(tmp_path)
    sd = loading.load(tmp_path / "model.safetensors")
    holds(sd)
    assert all(value.data_ptr() % 4 == 0 for value in sd.unet.parameters())


def test_pickles_under_any_name_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for name, write in (
        ("zip.safetensors", lambda path: torch.save({"x": Trap()}, path)),
        ("old.safetensors", lambda path: torch.save({"x": Trap()}, path, _use_new_zipfile_serialization=False)),
        ("bare.safetensors", lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=4))),
        ("model.ckpt", lambda path: torch.save({"x": Trap()}, path)),
        ("model.pt", lambda path: path.write_bytes(b"anything")),
        ("model.bin", lambda path: path.write_bytes(pickle.dumps(Trap(), protocol=2))),
    ):
        write(tmp_path / name)
        refused(tmp_path / name, "pickle")
    assert not (tmp_path / "sprung").exists()


def test_damaged_files(single, tmp_path):
    data = single.read_bytes()
    broken = tmp_path / "model.safetensors"
    for content, words in (
        (b"", "empty"),
        (data[:100], "cut short"),
        (data[:-1], "cut short"),
        (data + b"x", "damaged"),
        (data[:8] + b"{" * 20 + data[28:], "damaged"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "GGUF"),
        ((8 + 200000).to_bytes(8, "little") + b"{" + b'"a":[' * 40001 + b"1" * 3, "damaged"),
        (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ):
        broken.write_bytes(content)
        refused(broken, words)

"""Safetensors files: their headers, checked, and their tensors. Nothing else is ever opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dragsa.layouts.fitting import Shape, WeightsError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
WHOLE = {"I32": torch.int32, "I64": torch.int64}  # types of counts, which some programs write a LoRA's α as
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class TensorInfo(NamedTuple):
    """A tensor as a safetensors file describes it; `start` and `end` are bytes from the beginning of the file."""

    file: Path
    name: str
    dtype: str
    shape: Shape
    start: int
    end: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file by name, without values.

    Raises WeightsError if it is another kind of file or is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as raw:
        start = raw.read(64)
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or length > 100_000_000:  # the format's own limit
            raise WeightsError(f"{file}: {_not_safetensors(file, start)}")
        raw.seek(8)
        header = raw.read(length)
    try:
        if len(header) < length:
            raise WeightsError(f"{file}: the file is cut short, within its header; download it again")
        entries = json.loads(header)
        tensors, origin = {}, 8 + length
        for name in entries.keys() - {"__metadata__"}:
            begin, end = entries[name]["data_offsets"]
            shape = tuple(entries[name]["shape"])
            tensors[name] = TensorInfo(file, name, entries[name]["dtype"], shape, origin + begin, origin + end)
        promised = max((info.end for info in tensors.values()), default=origin)
        if size < promised:
            raise WeightsError(f"{file}: the file is cut short, {size} of {promised} bytes; download it again")
        with safe_open(file, framework="pt"):  # this checks everything else that the format asks for
            pass
    except WeightsError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file}: damaged ({one_line(error)}); download it again") from None
    return dict(sorted(tensors.items()))


def read_metadata(file: Path) -> dict[str, str]:
    """Return the words that a safetensors file's header has beside its tensors; `read_header` has checked the file."""
    with safe_open(file, framework="pt") as mapped:
        return mapped.metadata() or {}


# Words of a header that are for the one who runs the model.
_TOLD = {"modelspec.encoder_layer": "encoder layer", "ss_clip_skip": "clip skip"}


def notes_of(words: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a header's words say to the one who runs the model."""
    return tuple(f"{what} {words[key]} is said by {key}" for key, what in _TOLD.items() if key in words)


def _not_safetensors(file: Path, start: bytes) -> str:
    """Say what kind of file begins like this, which is not safetensors."""
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "this is Git LFS's pointer to the weights, not the weights; run `git lfs pull`"
    if start.startswith(b"GGUF") or file.suffix.lower() == ".gguf":
        return (
            "this is a GGUF file (quantised weights); dragsa takes safetensors, in float32, bfloat16, float16 or float8"
        )
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if pickled or start.startswith(b"PK\x03\x04") or file.suffix.lower() in PICKLES:
        return "this is a pickle (PyTorch's own format), which can run any code and is never opened; get .safetensors"
    return "this is not a safetensors file"


def read_tensors(
    tensors: Mapping[str, TensorInfo], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read the tensors to the device: mapped where they are stored as wanted, else converted one at a time.

    By default on the CPU, each in the type that it is stored in.
    """
    device, found = torch.device("cpu") if device is None else device, {}
    with ExitStack() as opened:
        files = {
            file: (opened.enter_context(safe_open(file, framework="pt")), opened.enter_context(file.open("rb")))
            for file in dict.fromkeys(info.file for info in tensors.values())
        }
        for name, info in tensors.items():
            stored, (mapped, raw) = {**DTYPES, **WHOLE}[info.dtype], files[info.file]
            wanted = stored if dtype is None else dtype
            # Older writers let tensors begin at any byte; one that is not aligned cannot be used in place.
            if stored == wanted and device.type == "cpu" and info.start % wanted.itemsize == 0:
                tensor = mapped.get_tensor(info.name)
            else:  # read beside the mapping, or the file's pages would pile up next to the converted values
                buffer = bytearray(info.end - info.start)
                raw.seek(info.start)
                raw.readinto(buffer)
                tensor = torch.frombuffer(buffer, dtype=stored).to(device, wanted)
            found[name] = tensor.reshape(info.shape)
    return found


def one_line(error: object) -> str:
    """Return the words of an error or a warning without line breaks; of one that has none its type's name."""
    return " ".join(str(error).split()) or type(error).__name__

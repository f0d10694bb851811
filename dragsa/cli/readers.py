"""Readers of the options' texts: each function returns the value, or raises argparse's error."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragsa.config import BLOCKS

LARGEST = 8192  # pixels, of a working picture's side


def whole(lowest: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers of at least `lowest`, and at most as many as 63 bits hold or `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or not lowest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, came {text!r}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, came {text!r}")
        return int(text)

    return read


def whole_or_never(text: str) -> int | None:
    """Read a whole number of at least 0, or "never", for which a job file has null."""
    return None if text == "never" else whole(0)(text)


def scale(text: str) -> float:
    """Read a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, came {text!r}")
    return number


def optional_path(text: str) -> Path | str:
    """Read a path. Empty text, as from an unset variable, and argparse's mark of an absent IMAGE stay as they are."""
    return text if text in ("", argparse.SUPPRESS) else Path(text)


def drag(text: str) -> tuple[tuple[float, float], tuple[float, float]]:
    number = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
    found = re.fullmatch(f"{number},{number}:{number},{number}", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be X0,Y0:X1,Y1 (handle and target in pixels), came {text!r}")
    x0, y0, x1, y1 = map(float, found.groups())
    return (x0, y0), (x1, y1)


def blocks(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise argparse.ArgumentTypeError(f"must be blocks such as 11-16 or 11,12,14, came {text!r}")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not 1 <= first <= last <= BLOCKS:
            raise argparse.ArgumentTypeError(f"blocks are numbered 1 to {BLOCKS}, from low to high, came {text!r}")
        found += range(first, last + 1)
    return tuple(found)


def extent(text: str) -> int | tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be pixels, N or WIDTHxHEIGHT, came {text!r}")
    if max(int(side) for side in found.groups("0")) > LARGEST:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST} pixels, came {text!r}")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def listed(one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Return a reader of values with commas between them, each of which `one` reads; repeated ones count once."""
    return lambda text: tuple(dict.fromkeys(one(part.strip()) for part in text.split(",")))


@dataclass(frozen=True)
class FileWith:
    """A file and what was written behind it: a LoRA's scale, or an embedding's token, None where there was none."""

    file: Path
    extra: float | str | None = None

    def __str__(self) -> str:
        """Return the text that reads as this."""
        return str(self.file) if self.extra is None else f"{self.file}:{self.extra}"

    def within(self, folder: Path) -> FileWith:
        """Return the same of a file whose path is relative to the folder."""
        return FileWith(folder / self.file, self.extra)


def lora(text: str) -> FileWith:
    """Read FILE or FILE:SCALE; what is no number behind a colon belongs to the file's name."""
    file, _, end = text.rpartition(":")
    try:
        number = float(end)
    except ValueError:
        return FileWith(Path(text))
    if not math.isfinite(number) or not file:
        raise argparse.ArgumentTypeError(f"must be FILE or FILE:SCALE, came {text!r}")
    return FileWith(Path(file), number)


def embedding(text: str) -> FileWith:
    """Read FILE or FILE:TOKEN; a colon that a path goes on behind belongs to the file's name."""
    file, _, token = text.rpartition(":")
    if not file or not token or "/" in token or "\\" in token or token.endswith(".safetensors"):
        return FileWith(Path(text))
    return FileWith(Path(file), token)


# Readers of settings, by the types that `config` gives them; of other types are words, which `get_args` knows.

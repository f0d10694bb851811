"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_output(path: str | Path, overwrite: bool = False) -> Path:
    """Return the path if a file can be written there; call it before the work, not after.

    Raises OSError that says why not. A file that is already there may be replaced only if `overwrite`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: is there, and is not a plain file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: is there already")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: the folder cannot be written to")
    return path


def save_bytes(data: bytes, path: str | Path, overwrite: bool = False) -> None:
    """Write a file whole or not at all: under another name in the same folder, then renamed.

    Raises as `check_output` does, and OSError where writing fails.
    """
    path = check_output(path, overwrite)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """Return the value as strict JSON can hold it: a number that is not finite becomes null, a tuple a list."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_json(value: Any, path: str | Path, overwrite: bool = False) -> None:
    """Write strict JSON as `save_bytes` does. Raises ValueError for a number that is not finite: see `finite`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    save_bytes(text.encode(), path, overwrite)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which is renamed to `folder` once everything is written, else removed.

    A `folder` that another process has written by then stays as it is. Its parent must be there.
    """
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if not folder.exists():
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)

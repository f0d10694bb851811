"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "dragsa-store-"  # of temporary folders
# What is said where weights are missing.
WHERE = "`dragsa fetch` downloads SD 1.5; the small model is in weights/small of https://github.com/dragsa/dragsa"
REPLACE = "--force (overwrite=True) replaces it"


def check_output(path: str | Path, overwrite: bool = False) -> Path:
    """Return the path if a file can be written there; call it before the work, not after.

    Raises OSError that says why not. A file that is already there may be replaced only if `overwrite`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: is there, and is not a plain file")
    if os.path.lexists(path) and not overwrite:  # a link to nothing is there, too
        raise FileExistsError(f"{path}: is there already; {REPLACE}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: the folder cannot be written to")
    return path


def save_bytes(data: bytes, path: str | Path, overwrite: bool = False) -> None:
    """Write a file whole or not at all: under another name in the same folder, then renamed.

    Raises as `check_output` does, and OSError that names the file where writing fails.
    """
    path = check_output(path, overwrite)
    part = path.with_name(part_name(path.name))
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def check_folder(folder: str | Path, names: str, overwrite: bool = False) -> Path:
    """Return the path if a folder of output can be written there; call it before the work, as `check_output`.

    One that is there may be replaced only if `overwrite`, and if it holds nothing but files whose names match this
    regular expression: no other folder is ever removed. Raises OSError that says why not.
    """
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():  # no `overwrite` replaces it by a folder
        raise FileExistsError(f"{folder}: is there, and is not a folder")
    if not folder.is_dir() or folder.is_symlink():
        return check_output(folder)
    if not overwrite:
        raise FileExistsError(f"{folder}: is there already; {REPLACE}")
    _check_inside(folder, names)
    return check_output(folder.with_name(part_name(folder.name))).with_name(folder.name)


def _check_inside(folder: Path, names: str) -> None:
    for one in folder.iterdir():
        if not one.is_file() or not re.fullmatch(names, one.name):
            raise FileExistsError(f"{folder}: holds {one.name}, so it is not replaced; give another folder")


def part_name(name: str) -> str:
    """Return the name that a file or folder has until it is whole: short, since the system bounds names."""
    return f".{zlib.crc32(os.fsencode(name)):08x}.{os.getpid()}.part"


def finite(value: Any) -> Any:
    """Return the value as strict JSON can hold it: a number that is not finite becomes null, a tuple a list."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_json(value: Any, path: str | Path, overwrite: bool = False) -> None:
    """Write strict JSON as `save_bytes` does. Raises ValueError for a number that is not finite: see `finite`.

    Where a text is no Unicode, as a file's name can be, all that is not ASCII is escaped.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(value, indent=2, allow_nan=False)
    save_bytes(f"{text}\n".encode(), path, overwrite)


@contextmanager
def whole_folder(folder: Path, replaced: str | None = None) -> Iterator[Path]:
    """Give a folder to write into, which is renamed to `folder` once everything is written, else removed.

    A `folder` that is there by then is replaced where `replaced` matches the names of all files in it: raises as
    `check_folder` does where one does not. For None it stays as it is, as another process has written it. Its parent
    must be there.
    """
    part = folder.with_name(part_name(folder.name))
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if replaced is not None and folder.is_dir():
            _check_inside(folder, replaced)  # anything may have come there since the work began
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class OwnFolder:
    """A temporary folder of this process, `path`, which goes when nothing refers to it, and when Python ends.

    A process that is killed leaves it behind, for `sweep` to find: it is locked as long as its process lives, or one
    that was forked from it, which does not remove it.
    """

    def __init__(self) -> None:
        made = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}"))  # by another name, until it is locked
        lock = _locked(made)
        self.path = made.rename(made.with_name(made.name.removeprefix("new-")))
        weakref.finalize(self, _remove, self.path, lock, os.getpid())


@cache
def sweep() -> None:
    """Remove the folders of processes that were killed; once in a process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = _locked(folder)
        if lock is not None:
            _remove(folder, lock, os.getpid())


def _locked(folder: Path) -> int | None:
    """Lock a folder and return what holds the lock; None where another process holds it, or the system has none."""
    if fcntl is None:
        return None
    with suppress(OSError):
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        except OSError:
            os.close(held)
    return None


def _remove(folder: Path, lock: int | None, process: int) -> None:
    """Remove a process's folder, unless this is one forked from it."""
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)

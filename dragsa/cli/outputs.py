"""Where a command writes: whether it can, before the work, and the writing itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragsa import files
from dragsa.cli.options import Options

if TYPE_CHECKING:
    from PIL import Image

FILES = ("out", "source", "path", "sheet", "chart", "json", "markdown")
# By option: the names, as a pattern, that the files have in the folder which it writes. No other file is ever removed.
FOLDERS = {"frames": r"\d{4,}\.png", "trace": r"\d{2,}\.png|index\.html"}


def place(path: Path) -> Path:
    """Return where a path leads; one into a circle of links stays, where `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def is_folder(options: Options, name: str) -> bool:
    """Tell whether an output is a folder, which is written as a whole."""
    return name in FOLDERS and options[name].suffix.lower() != ".gif"


def is_kept(options: Options, name: str) -> bool:
    """Tell whether an output is there already and is to be left as it is."""
    return bool(options.get("skip_existing")) and options[name].exists()


def check_outputs(options: Options, taken: set[Path]) -> None:
    """Raise an error unless every output can be written. Those of earlier jobs are `taken`; these are added."""
    from dragsa import pictures

    if "out" not in options and options["command"] != "bench":
        raise ValueError("--out PNG is missing: where should the picture go?")
    for name in (*FILES, *FOLDERS):
        if name not in options:
            continue
        path, force = options[name], options.get("force", False)
        if is_folder(options, name):
            if not is_kept(options, name):
                files.check_folder(path, FOLDERS[name], force)
        else:
            files.check_output(path, force or is_kept(options, name))
            if name not in ("json", "markdown"):
                pictures.check_format(path)
        if place(path) in taken:
            raise ValueError(f"{path}: two outputs of the same name")
        taken.add(place(path))


def check_apart(jobs: Sequence[Options]) -> None:
    """Raise an error for a file or folder of any job within a folder that one of them writes, and so replaces."""
    named = [(name, job) for job in jobs for name in FOLDERS if name in job and is_folder(job, name)]
    folders = {place(job[name]): name for name, job in named}
    for job in jobs:
        for path in (job[name] for name in ("job", "image", "mask", *FILES, *FOLDERS) if job.get(name)):
            for folder in folders.keys() & set(place(path).parents):
                said = f"lies in {folder}, a folder that --{folders[folder]} replaces as a whole"
                raise ValueError(f"{path}: {said}: give --{folders[folder]} another one")


def write(options: Options, made: Mapping[str, Callable[[], Image.Image]]) -> None:
    """Make and write the pictures that were asked for, one by one: the result first.

    So a drawing that fails loses nothing of what was made before it.
    """
    from dragsa import pictures

    force = options.get("force", False)
    for name, make_picture in made.items():
        if name in options and not is_kept(options, name):
            pictures.save_picture(make_picture(), options[name], force)


def write_report(options: Options, report: dict[str, Any]) -> None:
    """Write the JSON where it was asked for; call it last, so that where it is, everything is."""
    if "json" in options and not is_kept(options, "json"):
        files.save_json(report, options["json"], options.get("force", False))

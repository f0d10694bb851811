"""Job files: JSON of the options of `dragsa edit`, a list of them, or the report of an edit that is repeated."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dragsa.cli.options import Options, Parser, build_parser
from dragsa.cli.readers import FileWith, whole_or_never

NO_KEYS = (
    "help",
    "job",
    "quiet",
    "explain",
    "keep_going",
    "skip_existing",
)  # options of `edit` that make no sense in a job
OF_ONE_RUN = (
    "force",
)  # what a job may have, and a report does not hand on: to repeat an edit replaces nothing unasked
# What stands between the values of an option for which a job may give a list.
SEPARATORS = {"control_blocks": ",", "mask_blocks": ",", "object_words": ",", "size": "x"}


def read_jobs(path: Path) -> list[Options]:
    """Read the jobs of a JSON file, whose keys are options of `dragsa edit`; paths in it are relative to its folder.

    The report of an edit is a job: its options, with `weights_sha256` to compare the weights with. Raises ValueError
    that names the job and the key.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deep for a list of jobs") from None
    jobs = value if isinstance(value, list) else [value]
    if not jobs or not all(isinstance(job, dict) for job in jobs):
        raise ValueError(f"{path}: must hold a job ({{option: value}}) or a list of jobs")
    read = []
    for n, job in enumerate(jobs, start=1):
        try:
            options = read_job(job)
        except ValueError as error:
            raise ValueError(f"{path}, job {n}: {error}") from None
        read.append({key: within(path.parent, one) for key, one in options.items()})
    return read


def read_job(job: Mapping[str, Any]) -> Options:
    """Read one job; paths in it stay as they are written. Raises ValueError that names the key."""
    parser, known = _edit_parser()
    asked = options_of(job)
    options = vars(parser.parse_args(["edit", *job_arguments(asked, known)]))
    if job is not asked and isinstance(job.get("weights_sha256"), dict):
        options["weights_sha256"] = job["weights_sha256"]
    return options


@cache
def _edit_parser() -> tuple[Parser, Mapping[str, argparse.Action]]:
    """Return the parser, and the options of `dragsa edit` that a job may have, by their names."""
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    every = commands.choices["edit"]._actions
    return parser, {action.dest: action for action in every if action.dest not in NO_KEYS}


def within(folder: Path, value: Any) -> Any:
    """Return an option's value with the paths in it relative to the folder."""
    if isinstance(value, list):
        return [within(folder, one) for one in value]
    if isinstance(value, FileWith):
        return value.within(folder)
    return folder / value if isinstance(value, Path) else value


def options_of(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a job's options: its own, or those that an edit's report holds. Raises ValueError for another report."""
    if "command" not in job or not isinstance(job.get("options"), dict):
        return job
    if job["command"] != "edit":
        raise ValueError(f"a report of {job['command']!r}, not of an edit")
    options: dict[str, Any] = job["options"]
    return {key: value for key, value in options.items() if key not in (*NO_KEYS, *OF_ONE_RUN)}


def job_arguments(job: Mapping[str, Any], known: Mapping[str, argparse.Action]) -> list[str]:
    """Return a job as the arguments that mean the same. Raises ValueError that names the key."""
    arguments: list[str] = []
    image: list[str] = []
    for key, value in job.items():
        action = known.get(key.replace("-", "_"))
        if action is None:
            raise ValueError(f"unknown key {key!r}: the keys are {', '.join(sorted(known))}")
        names = action.option_strings  # none: IMAGE, which has no name; two: --blend and --no-blend
        if value is None:
            arguments += [f"{names[0]}=never"] if action.type is whole_or_never else []
        elif isinstance(value, bool) != (action.nargs == 0):
            raise ValueError(f"{key}: must {'not ' if isinstance(value, bool) else ''}be true or false, came {value!r}")
        elif isinstance(value, bool):
            arguments += names[:1] if value else names[1:]
        elif not names:
            image = ["--", value_text(key, value, action.dest)]
        else:
            repeated = isinstance(value, list) and isinstance(action, argparse._AppendAction) and not is_drag(value)
            values = value if repeated else [value]
            arguments += [f"{names[0]}={value_text(key, one, action.dest)}" for one in values if one != []]
    return arguments + image


def is_drag(value: list[Any]) -> bool:
    """Tell whether a list is one drag, [[x, y], [x, y]], and no list of drags."""
    return len(value) == 2 and all(
        isinstance(end, list) and len(end) == 2 and all(isinstance(x, int | float) for x in end) for end in value
    )


def value_text(key: str, value: Any, name: str) -> str:
    """Return the value of a job's key as the command line has it for the option of that name. Raises ValueError."""
    if isinstance(value, list) and name == "drag":
        try:
            (x0, y0), (x1, y1) = value
        except (TypeError, ValueError):
            came = json.dumps(value)
            raise ValueError(f"drag: must be [[X0, Y0], [X1, Y1]] or 'X0,Y0:X1,Y1', came {came}") from None
        return f"{x0},{y0}:{x1},{y1}"
    if isinstance(value, list) and name in SEPARATORS:
        return SEPARATORS[name].join(map(str, value))
    if not isinstance(value, str | int | float):
        raise ValueError(f"{key}: came {json.dumps(value)}, expected a text or a number")
    return str(value)

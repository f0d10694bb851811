"""Job files: JSON whose keys are options of `dragsa edit`, read by the same parser as the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dragsa.cli.options import FileWith, Listable, Options, Parser, whole_or_never


def read_jobs(path: Path, parser: Parser) -> list[Options]:
    """Read the jobs of a JSON file; paths in it are relative to its folder. ValueError names the job and the key."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    jobs = value if isinstance(value, list) else [value]
    if not jobs or not all(isinstance(job, dict) for job in jobs):
        raise ValueError(f"{path}: must hold a job ({{option: value}}) or a list of jobs")
    read = []
    for n, job in enumerate(jobs, start=1):
        try:
            options = vars(parser.parse_args(["edit", *job_arguments(job, known_options(parser))]))
        except ValueError as error:
            raise ValueError(f"{path}, job {n}: {error}") from None
        read.append({key: within(path.parent, one) for key, one in options.items()})
    return read


def within(folder: Path, value: Any) -> Any:
    """Return an option's value with the paths in it relative to the folder."""
    if isinstance(value, list):
        return [within(folder, one) for one in value]
    if isinstance(value, FileWith):
        return value.within(folder)
    return folder / value if isinstance(value, Path) else value


def known_options(parser: Parser) -> dict[str, argparse.Action]:
    """Return the options of `edit` by name, less those that make no sense in a job."""
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices["edit"]._actions
    return {action.dest: action for action in actions if action.dest not in ("help", "job", "quiet")}


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
            image = ["--", value_text(key, value, action)]
        else:
            repeated = isinstance(value, list) and isinstance(action, argparse._AppendAction)
            arguments += [f"{names[0]}={value_text(key, one, action)}" for one in (value if repeated else [value])]
    return arguments + image


def value_text(key: str, value: Any, action: argparse.Action) -> str:
    if isinstance(value, list) and isinstance(action.type, Listable):
        return action.type.text(value)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{key}: came {json.dumps(value)}, expected a text or a number")
    return str(value)

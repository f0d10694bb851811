"""Child processes: each does one task of `tasks.py` and nothing else, so that none finds memory as another left it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import starmap
from pathlib import Path
from typing import Any

from dragsa.speed.laps import Lap
from dragsa.speed.problems import Errand, Settings


class ChildError(RuntimeError):
    """A child process has failed; the message says how it ended."""


@contextmanager
def child(task: Errand, settings: Settings, name: str = "", **environment: str) -> Iterator[Iterator[Any]]:
    """Start a fresh process for a task, and yield the iterator of its answers; it waits until the next one is taken.

    The iterator raises ChildError where the process ends instead.
    """
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    command = [sys.executable, "-m", "dragsa.speed.tasks", json.dumps({**task, "settings": asdict(settings)})]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, env=variables) as process,
    ):

        def answers() -> Iterator[Any]:
            assert process.stdin is not None and process.stdout is not None
            while True:
                with suppress(OSError):  # of a pipe whose other end is closed: then the process has said why
                    os.write(process.stdin.fileno(), b"\n")
                line = process.stdout.readline()
                if not line:
                    break
                yield json.loads(line)
            code = process.wait()
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or [""])[-1]
            raise ChildError(f"{name} ended with code {code}{last and f': {last}'}".lstrip())

        yield answers()


def in_child(task: Errand, settings: Settings, **environment: str) -> Any:
    """Return the first answer of a task in a process of its own. Raises ChildError."""
    with child(task, settings, **environment) as answers:
        return next(answers)


@contextmanager
def children(tasks: Mapping[str, Errand], settings: Settings) -> Iterator[dict[str, Iterator[Lap]]]:
    """Start a process for each of several tasks, and yield the laps of each. They raise ChildError, with its name."""
    with ExitStack() as stack:
        yield {name: starmap(Lap, stack.enter_context(child(task, settings, name))) for name, task in tasks.items()}

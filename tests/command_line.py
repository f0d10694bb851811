"""The command line, run in this process, and what it did."""

from pathlib import Path

import pytest

from dragsa import cli

QUICK = ["--steps", "4", "--drag-step", "1", "--control-step", "1", "--updates", "2", "--lr", "0.02", "--seed", "7"]


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that an error is, after a look at the exit code and at the folder: nothing may be written."""
    before = {path: path.lstat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert run(*arguments) == 2
    assert {path: path.lstat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("dragsa: error: ")
    return said.err


def options(*arguments: str) -> cli.Options:
    return vars(cli.build_parser().parse_args(["edit", *arguments]))

"""What is said of the paper holds: every symbol, test and command that scripts/PAPER.md names is there."""

import re
from dataclasses import replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from dragsa import config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "scripts" / "PAPER.md").read_text(encoding="utf-8")


def table(title: str) -> list[list[str]]:
    """Return the rows of the table under a title, without its head."""
    lines = [line for line in TEXT.split(f"## {title}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def symbol(name: str) -> Any:
    """Return what a dotted name stands for: the longest part of it that is a module, then attributes."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[n:], module)
    raise ModuleNotFoundError(name)


def test_every_symbol_and_test_of_the_table_is_there() -> None:
    rows = table("Sentence by sentence")
    assert {row[0] for row in rows} == {"2.1", "2.2", "3.1", "3.2", "3.3", "4.3", "4.4"}
    for row in rows:
        assert len(row) == 5 and all(row), row
        name, test = (cell.strip("`") for cell in row[2:4])
        assert symbol(name) is not None, name
        file, _, function = test.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test


def test_settings_that_the_tables_name_are_there() -> None:
    named = set(re.findall(r'`(\w+)="(\w+)"`', TEXT))
    assert {name for name, _ in named} == {"loss", "optimizer", "reference"}
    for name, value in named:
        config.check(replace(config.DragConfig(), **{name: value}))


def test_every_experiments_script_is_there() -> None:
    rows = table("Experiments")
    for _, command, minutes in rows:
        script = command.strip("`").split()[1]
        assert (ROOT / script).is_file() and int(minutes) > 0, command


def test_no_cell_of_a_table_is_left_out() -> None:
    for title, width in (("What is printed, and what is done", 4), ("Words", 3), ("Experiments", 3)):
        assert all(len(row) == width and all(row) for row in table(title)), title

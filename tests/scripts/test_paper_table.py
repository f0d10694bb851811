"""What is said of the paper holds: every symbol, test and command that scripts/PAPER.md names is there."""

import re
import shlex
from dataclasses import replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dragsa import checks, cli, config, pictures
from dragsa.checks import values

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "scripts" / "PAPER.md").read_text(encoding="utf-8")


README = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")


def table(title: str, text: str = TEXT) -> list[list[str]]:
    """Return the rows of the table under a title, without its head."""
    lines = [line for line in text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
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
    assert {row[0] for row in rows} == {"2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "4.2", "4.3", "4.4"}
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
        values.check(replace(config.DragConfig(), **{name: value}))


def test_every_experiment_can_be_made_and_shows_what_comes_out() -> None:
    rows = table("Experiments", README)
    jobs = {path.name for path in (ROOT / "scripts" / "demo").glob("*.json")} - {"jobs.json"}
    assert jobs == {Path(command.strip("`").split()[-1]).name for _, command, *_ in rows if "--job" in command}
    for _, command, minutes, comes_out in rows:
        given = shlex.split(command.strip("`"))
        if given[0] == "dragsa":
            assert cli.build_parser().parse_args(given[1:]).command == "edit"
        assert (ROOT / (given[-1] if given[0] == "dragsa" else given[1])).is_file(), command
        assert minutes == "–" or int(minutes) > 0, command
        for picture in re.findall(r"!\[.+\]\((.+?)\)", comes_out):
            assert (ROOT / "scripts" / picture).stat().st_size < 60_000, picture


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "demo").glob("*.json")), ids=lambda path: path.name)
def test_the_job_files_that_ship_are_edits_that_can_be_made(path: Path) -> None:
    for job in cli.read_jobs(path):
        picture = pictures.open_picture(job["image"]) if job["image"].exists() else Image.new("RGB", (128, 128))
        asked = cli.config_of({"weights": cli.SMALL, **job})
        prompts = job["prompt"], job.get("negative_prompt", "")
        checks.request(asked, picture, job.get("drag", ()), job.get("mask"), prompts, job.get("target_prompt"))


def test_no_cell_of_a_table_is_left_out() -> None:
    for title, width, text in (
        ("What is printed, and what is done", 4, TEXT),
        ("Words", 3, TEXT),
        ("Experiments", 4, README),
    ):
        assert all(len(row) == width and all(row) for row in table(title, text)), title

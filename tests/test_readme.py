"""The README holds what it says: its Python runs, its commands parse, and its links and pictures are there."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dragsa import cli

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / name for name in ("README.md", "scripts/README.md", "weights/README.md")]
TEXT = TEXTS[0].read_text(encoding="utf-8")
# What the README's Python is run with, so that it takes seconds: fewer steps and updates.
SHORTER = {
    "EditConfig.small(drag_step=10)": "EditConfig.small(steps=20, drag_step=10)",
    "EditConfig.small(guidance=6)": "EditConfig.small(steps=20, drag_step=10, guidance=6)",
    "replace(config.drag, radius=9)": "replace(config.drag, radius=9, updates=8)",
}
EXAMPLE = (ROOT / "scripts" / "example.py").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's blocks of code in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """Return the arguments of each shell command that begins with a program's name; a backslash continues a line."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == [name]]


def links(text: str) -> list[str]:
    """Return the targets of a text's links and pictures that are files of the project."""
    return [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith(("http:", "https:"))]


@pytest.mark.filterwarnings("ignore:the drag did not arrive")
def test_the_python_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scripts", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}  # the example's last lines are for its own run
    code = "\n".join(blocks("python"))
    for written, shorter in SHORTER.items():
        assert code.count(written) == 1
        code = code.replace(written, shorter)
    exec(compile(code, "README.md", "exec"), namespace)
    saved = set(re.findall(r'save\("(.*?)"\)', TEXT))
    assert saved == {f"out/{path.name}" for path in Path("out").iterdir()}
    for path in saved:
        assert Image.open(path).size == (128, 128)


def test_the_example_is_the_file() -> None:
    assert EXAMPLE in blocks("python")


def test_the_commands_parse() -> None:
    parser = cli.build_parser()
    assert len(commands("dragsa")) >= 3
    for arguments in commands("dragsa"):
        assert parser.parse_args(arguments).command == arguments[0]


def test_the_two_commands_to_begin_with_are_there() -> None:
    assert commands("sh") == [["scripts/demo.sh"], ["scripts/test.sh"]]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_scripts_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in links(text):
        assert (path.parent / link).exists(), link
    for script in re.findall(r"python (scripts/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"`(dragsa/[\w/.]+)`", text):
        assert (ROOT / module).exists(), module


def test_files_are_named_as_they_stand_in_the_package() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", TEXT)) - {"dragsa/", "tests/"}
    assert len(named) > 10
    for name in named:
        assert (ROOT / name if name.startswith("scripts/") else ROOT / "dragsa" / name).exists(), name


def test_the_reading_order_gives_each_files_length() -> None:
    for name, lines in re.findall(r"^\d+\. `(.*?)` \((\d+)", TEXT, flags=re.MULTILINE):
        length = len((ROOT / "dragsa" / name).read_text(encoding="utf-8").splitlines())
        assert length == pytest.approx(int(lines), rel=0.2, abs=20), name


def test_every_script_is_in_the_list_of_scripts() -> None:
    listed = re.findall(r"^\| `(.*?)` \|", TEXTS[1].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in (ROOT / "scripts").glob("*.*") if path.suffix in (".py", ".sh")
    )


def test_it_is_short_and_has_pictures() -> None:
    assert len(TEXT.split()) <= 1800
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", TEXT)
    assert len(pictures) >= 3
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 150_000

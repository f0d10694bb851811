"""--explain, --frames and --trace: what they show, and that they change nothing."""

import json
from pathlib import Path

import pytest
from command_line import QUICK, refused, run
from PIL import Image

DRAG = ("--drag", "24,28:40,28", *QUICK, "--updates", "3")


def test_they_change_no_byte_and_say_what_happened(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("edit", picture, *DRAG, "--out", "plain.png") == 0
    assert "passes" not in capsys.readouterr().err
    shown = ("--explain", "--frames", "frames", "--trace", "trace", "--every", "2", "--json", "o.json")
    assert run("edit", picture, *DRAG, "--out", "o.png", *shown) == 0
    assert Path("plain.png").read_bytes() == Path("o.png").read_bytes()
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert [line.split(": ")[1] for line in lines] == ["encode", "inversion", "drag", "drag", "denoising", "decode"]
    assert lines[1] == "dragsa: inversion: 4 passes at τ_1 to τ_4 (t 1 to 751); 1 row; plain attention"
    assert "1 pass at τ_3 (t 501); 1 row; as far as decoder3; with the gradient; plain" in lines[2]
    assert "2 passes at τ_3" in lines[3] and lines[3].endswith("decoder3 is read") and "near the handles" in lines[3]
    assert "source, target; the source's K and V in blocks 11-16" in lines[4]
    assert sorted(path.name for path in Path("frames").iterdir()) == ["0002.png", "0003.png"]
    assert Image.open("frames/0002.png").size == (72, 64)
    page = Path("trace/index.html").read_text("utf-8")
    assert page.count("<li>") == len(lines) and "after 2 updates" in page
    assert '"explain"' not in Path("o.json").read_text("utf-8")  # which is a job
    assert not [path for path in Path.cwd().rglob("*") if path.name.endswith(".part")]


def test_a_gif_has_a_frame_for_every_so_many_updates(picture: Path) -> None:
    assert run("edit", picture, *DRAG, "--out", "o.png", "--frames", "f.gif", "--every", "1") == 0
    with Image.open("f.gif") as frames:
        assert getattr(frames, "n_frames", 1) == 3 and frames.size == (72, 64)


def test_a_drag_without_updates_is_shown_by_the_source(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = ("--drag", "24,28:26,28", *QUICK, "--json", "o.json", "--trace", "trace", "--force")
    said = "handle 1 is not dragged: it is 2.0 px from its target, and has arrived below 4.0 px; try a smaller arrival"
    for shown in ("f.gif", "frames"):
        assert run("edit", picture, *near, "--out", "o.png", "--frames", shown) == 0
        assert f"{said} threshold (--reach)\n" in capsys.readouterr().err
        assert Path("o.json").is_file() and Path("trace/index.html").is_file()
        Path("o.json").unlink()
    with Image.open("f.gif") as frames:
        assert getattr(frames, "n_frames", 1) == 1 and frames.size == (72, 64)
    assert [path.name for path in Path("frames").iterdir()] == ["0000.png"]
    assert Image.open("frames/0000.png").tobytes() == Image.open(picture).tobytes()


def test_mistakes(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there").mkdir()
    Path("there/mine.txt").write_text("mine")
    Path("f.gif").write_bytes(b"x")
    for shown, says in (
        (("--frames", "there"), "there: is there already"),
        (("--trace", "there"), "there: is there already"),
        (("--trace", "there", "--force"), "there: holds mine.txt, so it is not replaced"),
        (("--frames", "f.gif"), "f.gif: is there already"),
        (("--frames", "a", "--trace", "a"), "a: two outputs of the same name"),
        (("--frames", "no/where"), "there is no folder no"),
        (("--every", "3"), "--every: of which pictures?"),
        (("--every", "0", "--frames", "a"), "must be a whole number of at least 1"),
        (("--explain", "--compile", "whole"), "need --compile off"),
    ):
        assert says in refused(capsys, "edit", picture, *DRAG, "--out", "o.png", *shown)
    prompt = ("--target-prompt", "a cat", *QUICK[:-4])
    assert "there is no drag" in refused(capsys, "edit", picture, *prompt, "--out", "o.png", "--frames", "a")


def test_a_folder_takes_nothing_with_it(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a job reads or writes is not in a folder that one replaces, be its name one that the folder's files have."""
    Path("f").mkdir()
    Image.open(picture).save("f/0001.png")
    Path("link").symlink_to("f")
    out, within = ("--out", "o.png"), "lies in {}, a folder that --{} replaces as a whole"
    for asked, path, name in (
        (("f/0001.png", *DRAG, *out, "--frames", "f"), "f/0001.png", "frames"),
        (("f/0001.png", *DRAG, *out, "--trace", "f"), "f/0001.png", "trace"),
        (("picture.png", *DRAG, "--out", "link/0002.png", "--frames", "f"), "link/0002.png", "frames"),
        (("picture.png", *DRAG, *out, "--path", "f/0003.png", "--trace", "f"), "f/0003.png", "trace"),
        (("picture.png", *DRAG, *out, "--frames", "f/in", "--trace", "f"), "f/in", "trace"),
        (("picture.png", *DRAG, *out, "--frames", "f/f.gif", "--trace", "f"), "f/f.gif", "trace"),
    ):
        said = refused(capsys, "edit", *asked, "--force")
        assert f"{path}: {within.format(Path('f').resolve(), name)}: give --{name} another one" in said
    job = {"image": str(picture), "drag": "24,28:40,28"}
    Path("f/0002.png").write_text(json.dumps(job))
    said = refused(capsys, "edit", "--job", "f/0002.png", *out, "--frames", "f", "--force")
    assert "f/0002.png: lies in" in said
    Path("jobs.json").write_text(json.dumps([{**job, "out": "o.png", "frames": "f"}, {**job, "out": "f/0001.png"}]))
    assert "f/0001.png: lies in" in refused(capsys, "edit", "--job", "jobs.json", "--force")
    Path("f/0002.png").rename("f/photo.png")  # a name that neither writes
    for name in ("frames", "trace"):
        said = refused(capsys, "edit", picture, *DRAG, *out, f"--{name}", "f", "--force")
        assert "f: holds photo.png, so it is not replaced" in said


def test_force_replaces_a_folder_of_ones_own(picture: Path) -> None:
    for more in ((), ("--force",)):
        Path("frames").mkdir(exist_ok=True) if more else None
        if more:
            Image.new("RGB", (1, 1)).save("frames/0099.png")
        assert run("edit", picture, *DRAG, "--out", "o.png", "--frames", "frames", *more) == 0
        assert [path.name for path in Path("frames").iterdir()] == ["0003.png"]


def test_a_part_is_shown(picture: Path) -> None:
    Image.open(picture).resize((288, 256)).save("large.png")
    drag = ("--drag", "100,100:120,100", "--size", "64", "--crop", "auto", "--frames", "frames", "--trace", "trace")
    assert run("edit", "large.png", *QUICK, *drag, "--out", "o.png") == 0
    assert Image.open("frames/0002.png").size == (64, 64) and Path("trace/index.html").is_file()

import io
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import QUICK, refused, run
from PIL import Image

import dragsa

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(dragsa.__file__).parents[1])}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command"),
        (["paint"], "invalid choice: 'paint'"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--speed", "3"], "unrecognized arguments"),
        (["edit", "picture.png", "--drag", "1,2,3,4", "--out", "o.png"], "--drag: must be X0,Y0:X1,Y1"),
        (["edit", "picture.png", "--drag", "1,2:3,nan", "--out", "o.png"], "--drag: must be X0,Y0:X1,Y1"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--step", "4"], "--step"),  # no abbreviations
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--steps", "0"], "--steps: must be a whole"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--steps", "1000"], "999"),
        (
            ["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--threads", "100000"],
            "--threads: must be at",
        ),
        (["bench", "--threads", "100000"], "--threads: must be at most"),
        (["ui", "--port", "65536"], "--port: must be at most 65535, came '65536'"),
        (
            ["edit", "picture.png", *["--drag=1,2:3,4"] * 2000, "--out", "o.png", "--radius", "99"],
            "2000 handles are too",
        ),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--lr", "fast"], "--lr: must be a number"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--lr", "inf"], "--lr: must be a number"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--drag-step", "60"], "another drag step"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--tap", "block17"], "block17"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--variant", "odd"], "'odd'"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--control-blocks", "0-3"], "numbered 1 to 16"),
        (
            ["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--control-blocks", "1-9999999999"],
            "numbered 1 to 16",
        ),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--control-blocks", "16-11"], "low to high"),
        (["generate", "--out", "o.png", "--size", "99999992"], "at most 8192"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--control-blocks", "x"], "such as 11-16"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--size", "20"], "at least 64"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--size", "64x64"], "keeps its aspect"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--blend"], "no mask"),
        (["edit", "picture.png", "--drag", "1,2:72,4", "--out", "o.png"], "point 72,4 lies outside"),
        (["edit", "picture.png", "--drag=-2,2:3,4", "--out", "o.png"], "point -2,2 lies outside"),
        (["edit", "picture.png", "--drag", "1,2:3,4"], "--out"),
        (["edit", "picture.png", "--out", "o.png"], "nothing to change"),
        (["edit", "--drag", "1,2:3,4", "--out", "o.png"], "either IMAGE or --from-noise"),
        (
            ["edit", "picture.png", "--from-noise", "--drag", "1,2:3,4", "--out", "o.png"],
            "either IMAGE or --from-noise",
        ),
        (["edit", "none.png", "--drag", "1,2:3,4", "--out", "o.png"], "picture: no such file 'none.png'\n"),
        (["edit", "text.png", "--drag", "1,2:3,4", "--out", "o.png"], "text.png: not a picture"),
        (["edit", ".", "--drag", "1,2:3,4", "--out", "o.png"], "Is a directory"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "picture.png"], "picture.png: is there already"),
        (["edit", "picture.png", "--drag", "1,2:99,4", "--out", "picture.png"], "point 99,4 lies outside"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "no/o.png"], "there is no folder no"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.doc"], ".doc is not a picture format"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--path", "o.png"], "two outputs"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.ico"], ".ico changes a picture's size"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "nowhere.png"], "nowhere.png: is there"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "circle/o.png"], "there is no folder circle"),
        (["edit", "circle", "--drag", "1,2:3,4", "--out", "o.png"], "circle: Too many levels of symbolic links"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--prompt", "\udcff"], "is not text in UTF-8"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--json", "text.png"], "is there already"),
        (
            ["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--mask", "mask.png"],
            "error: mask mask.png: 8×8",
        ),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--weights", "gone"], "gone"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--control", "masked"], "object_words"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--lora-steps=-1"], "--lora-steps: must be"),
        (
            ["edit", "--from-noise", "--drag", "1,2:3,4", "--out", "o.png", "--lora-steps", "2"],
            "a LoRA is trained on a picture that is there",
        ),
        (["generate", "--out", "o.png", "--size", "70"], "multiples of 8"),
        (["generate", "--prompt", "a"], "--out"),
        (["generate", "--seed", str(2**64), "--out", "o.png"], "--seed: must be a whole"),
        (["info", "--size", "100"], "multiples of 8"),
        (["info", "--weights", "gone"], "gone"),
        (["bench", "--quick", "--only", "update,speed"], "only: 'speed' is none of roof, update"),
        (["bench", "--sizes", "512,wide"], "--sizes: must be a whole number of at least 8, came 'wide'"),
        (["bench", "--sizes", "500"], "multiples of 8 from 64, came 500"),
        (["bench", "--repeats", "0"], "--repeats: must be a whole"),
        (["bench", "--modes", "float64"], "modes: 'float64' is none of baseline"),
        (["bench", "--baseline", "--modes", "float32"], "leave out --modes"),
        (["bench", "--quick", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        *(
            (
                ["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--device", name],
                f"device '{name}' cannot",
            )
            for name in ("gpu", "hpu", "vulkan", "privateuseone", "cuda:x")
        ),
        (
            ["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--preset", "small", "--steps", "10"],
            "came 30; give a drag step (--drag-step) with the steps: of 10 steps, 6 is as far as 30 of 50",
        ),
        (
            ["edit", "no\x85\x1b[2J\u2028.png", "--drag", "1,2:3,4", "--out", "o.png"],
            r"no such file 'no\x85\x1b[2J\u2028.png'",
        ),
        (["bench", "--quick", "--only", "update", "--weights", "gone"], "gone"),
        (["bench", "--quick", "--json", "text.png"], "text.png: is there already"),
        (["bench", "--quick", "--json", "o.txt", "--markdown", "o.txt"], "two outputs"),
        (["bench", "--quick", "--chart", "o.doc"], ".doc is not a picture format"),
        (["bench", "--quick", "--markdown", "no/o.md"], "there is no folder no"),
    ],
)
def test_mistakes_are_one_line(
    picture: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    Path("text.png").write_text("not a picture")
    Image.new("L", (8, 8)).save("mask.png")
    Path("nowhere.png").symlink_to("gone.png")
    Path("circle").symlink_to("circle")
    line = refused(capsys, *arguments)
    assert said in line and len(line) < 400


def program(*arguments: object, weights: Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the real program with other weights in its environment; `more` goes to `subprocess.run`."""
    environment = {**ENVIRONMENT, "DRAGSA_WEIGHTS": str(weights)}
    return subprocess.run(
        [sys.executable, "-m", "dragsa", *map(str, arguments)], capture_output=True, env=environment, **more
    )


def test_a_full_disk_is_a_failure_that_names_the_file_and_keeps_what_was_written(
    picture: Path, tiny_folder: Path
) -> None:
    """A limit on files' size stands for the disk: the small result is written, the large sheet is not."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (40_000, 40_000))
    outputs = ("--out", "o.png", "--sheet", "s.bmp", "--json", "o.json")
    ignore = partial(signal.signal, signal.SIGXFSZ, signal.SIG_IGN)
    drag = ("--drag", "24,28:40,28", *QUICK)
    done = program("edit", picture, *drag, *outputs, weights=tiny_folder, preexec_fn=lambda: (ignore(), limit()))
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == b"dragsa: error: s.bmp: File too large"
    assert Path("o.png").exists() and not Path("s.bmp").exists() and not Path("o.json").exists()
    assert not [path for path in Path.cwd().iterdir() if path.name.endswith(".part")]


def test_a_closed_stderr_changes_nothing(picture: Path, tiny_folder: Path) -> None:
    line = f"{sys.executable} -m dragsa edit {picture} --drag 24,28:40,28 {' '.join(QUICK)} --out o.png 2>&-"
    environment = {**ENVIRONMENT, "DRAGSA_WEIGHTS": str(tiny_folder)}
    assert subprocess.run(line, shell=True, env=environment).returncode == 0 and Path("o.png").exists()


@pytest.mark.parametrize("command", [["edit", "--help"], ["info"]])
def test_a_terminal_of_few_letters_changes_nothing(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) as terminal, suppress(SystemExit):
        assert run(*command) == 0
    terminal.seek(0)
    assert "?" in terminal.read() and capsys.readouterr().err == ""


def test_help_imports_nothing_heavy() -> None:
    loaded = "print([name for name in ('torch', 'numpy', 'PIL', 'transformers') if name in sys.modules])"
    code = f"import sys; from dragsa import cli; cli.build_parser().format_help(); {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout == "[]\n", done.stderr


def test_the_package_gives_its_public_names() -> None:
    homes = {name: getattr(dragsa, name).__module__ for name in dragsa.__all__}
    assert set(homes) >= {"load", "edit", "EditConfig", "UNet", "Schedule", "drag_latent", "track_points"}
    assert homes["Source"] == "dragsa.editing" and homes["load"] == "dragsa.loading.stable_diffusion"
    assert set(dir(dragsa)) >= set(homes)


def test_a_terminal_is_left_clean_and_an_interrupt_writes_nothing(picture: Path, tiny_folder: Path) -> None:
    """The real program on a pseudo-terminal: progress is seen, and Ctrl-C ends it with 130 and a clean line."""
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "dragsa",
        "edit",
        str(picture),
        "--drag",
        "24,28:40,28",
        "--steps",
        "900",
        "--out",
        "o.png",
    ]
    environment = {**ENVIRONMENT, "DRAGSA_WEIGHTS": str(tiny_folder)}
    # Where the tests run in the background an interrupt is ignored, and a child inherits that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=slave, stdout=slave, env=environment, preexec_fn=heard)
    os.close(slave)
    said = b""
    begin = time.monotonic()
    while b"inversion" not in said and time.monotonic() - begin < 120:
        said += os.read(master, 4096)
    assert b"inversion" in said
    process.send_signal(signal.SIGINT)
    while True:
        try:
            more = os.read(master, 4096)
        except OSError:  # Linux's end of a pseudo-terminal
            break
        if not more:
            break
        said += more
    os.close(master)
    assert process.wait(30) == 130
    assert said.endswith(b"\r\x1b[Kdragsa: interrupted\r\n"), said[-200:]
    assert not Path("o.png").exists()

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dragsa
from dragsa.cli import cli
from dragsa.config import DragConfig, EditConfig
from dragsa.pictures import trace

QUICK = ["--steps", "4", "--drag-step", "1", "--control-step", "1", "--updates", "2", "--lr", "0.02", "--seed", "7"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}


@pytest.fixture(autouse=True)
def _surroundings(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGSA_WEIGHTS", str(tiny_folder))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A bright square on a ramp, 72×64."""
    y, x = np.mgrid[:64, :72]
    levels = np.stack([x * 3, y * 3, x * 0 + 90], axis=2)
    levels[20:36, 16:32] = (250, 240, 20)
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that an error is, after a look at the exit code and at the folder: nothing may be written."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")}
    assert run(*arguments) == 2
    assert {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*")} == before
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("dragsa: error: ")
    return said.err


# --- arguments and files that are wrong ----------------------------------------------------------------------------


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
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--lr", "fast"], "--lr: must be a number"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--lr", "inf"], "--lr: must be a number"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--drag-step", "50"], "drag step S"),
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
        (["edit", "none.png", "--drag", "1,2:3,4", "--out", "o.png"], "none.png: No such file"),
        (["edit", "text.png", "--drag", "1,2:3,4", "--out", "o.png"], "text.png: not a picture"),
        (["edit", ".", "--drag", "1,2:3,4", "--out", "o.png"], "Is a directory"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "picture.png"], "picture.png: is there already"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "no/o.png"], "there is no folder no"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.doc"], ".doc is not a picture format"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--path", "o.png"], "two outputs"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--json", "text.png"], "is there already"),
        (["edit", "picture.png", "--drag", "1,2:3,4", "--out", "o.png", "--mask", "mask.png"], "mask.png: 8×8 pixels"),
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
    assert said in refused(capsys, *arguments)


def test_mistakes_are_found_before_the_weights_are_loaded(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("dragsa.loading.load", load)
    refused(capsys, "edit", picture, "--drag", "1,2:99,4", "--out", "o.png")
    refused(capsys, "edit", picture, "--drag", "1,2:3,4", "--tap", "no", "--out", "o.png")
    refused(capsys, "edit", picture, "--drag", "1,2:3,4", "--out", "o.png", "--json", picture)


def test_no_weights_says_what_to_do(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRAGSA_WEIGHTS")
    small = Path.cwd() / "small"
    monkeypatch.setattr(cli, "SMALL", small)
    assert "DRAGSA_WEIGHTS" in refused(capsys, "edit", picture, "--drag", "1,2:3,4", "--out", "o.png")
    small.mkdir()
    assert cli.weights_of({}) == small
    assert cli.weights_of({"weights": "given"}) == Path("given")


def test_help_imports_nothing_heavy() -> None:
    loaded = "print([name for name in ('torch', 'numpy', 'PIL', 'transformers') if name in sys.modules])"
    code = f"import sys; from dragsa.cli import cli; cli.build_parser().format_help(); {loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout == "[]\n", done.stderr


def test_the_package_gives_its_public_names() -> None:
    homes = {name: getattr(dragsa, name).__module__ for name in dragsa.__all__}
    assert set(homes) >= {"load", "edit", "EditConfig", "UNet", "Schedule", "drag_latent", "track_points"}
    assert homes["Source"] == "dragsa.editing" and homes["load"] == "dragsa.loading.stable_diffusion"
    assert set(dir(dragsa)) >= set(homes)


# --- what the options mean -----------------------------------------------------------------------------------------


def options(*arguments: str) -> cli.Options:
    return vars(cli.build_parser().parse_args(["edit", *arguments]))


def test_presets_and_options_lie_over_one_another() -> None:
    assert cli.config_of(options()) == EditConfig.sd15()
    assert cli.config_of(options("--preset", "dragdiffusion")) == EditConfig.dragdiffusion()
    changed = cli.config_of(options("--preset", "masactrl", "--lr", "0.5", "--steps", "20", "--control-step", "never"))
    base = EditConfig.masactrl()
    assert changed == replace(base, drag=replace(base.drag, lr=0.5), steps=20, control_step=None)
    for name in cli.PRESETS:
        assert cli.config_of({"preset": name}) == getattr(EditConfig, name)()


def test_the_model_that_ships_brings_its_own_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAGSA_WEIGHTS", raising=False)
    monkeypatch.setattr(cli, "SMALL", Path.cwd())
    assert cli.config_of(options()) == EditConfig.small()
    assert cli.config_of(options("--preset", "paper")) == EditConfig.paper()
    assert cli.config_of(options("--weights", "elsewhere")) == EditConfig.sd15()


def test_every_number_has_an_option() -> None:
    given = options(
        *("--tap", "block13", "--updates", "1", "--lr", "2", "--radius", "3", "--track-radius", "4", "--lam", "5"),
        *("--reach", "6", "--optimizer", "sgd", "--reference", "current", "--patience", "7", "--lost-patience", "8"),
        *("--stall", "14", "--anchor", "0.5"),
        *("--steps", "9", "--variant", "even", "--drag-step", "10", "--control-step", "11"),
        *("--control-blocks", "1,3-5", "--guidance", "12", "--blend", "--fixed-point", "13", "--size", "140"),
        *("--control", "masked", "--object-words", "disc,star", "--mask-blocks", "14-16", "--mask-threshold", "0.5"),
        *("--lora-steps", "15"),
        *("--compile", "regions", "--checkpoint", "--source-kv", "inversion", "--source-kv-memory", "16"),
    )
    drag = DragConfig("block13", 1, 2.0, 3, 4, 5.0, 6.0, "sgd", "current", 7, 8, 14, 0.5, True, "regions")
    masked = {"control": "masked", "object_words": ("disc", "star"), "mask_blocks": (14, 15, 16), "mask_threshold": 0.5}
    schedule = {"steps": 9, "variant": "even", "guidance": 12.0, "fixed_point": 13, "size": 140, "lora_steps": 15}
    schedule |= {"source_kv": "inversion", "source_kv_memory": 16}
    control = {"drag_step": 10, "control_step": 11, "control_blocks": (1, 3, 4, 5), "blend": True, **masked}
    assert cli.config_of(given) == EditConfig(drag, **schedule, **control)


def test_drags_are_read() -> None:
    read = options("p.png", "--drag", "1,2:3,4", "--drag", " 1.5 , 2 : .5,1e1 ")
    assert read["drag"] == [((1, 2), (3, 4)), ((1.5, 2), (0.5, 10))]


# --- edits ---------------------------------------------------------------------------------------------------------


def test_edit_writes_what_was_asked_for(picture: Path, tiny_folder: Path) -> None:
    levels = np.zeros((64, 72), np.uint8)
    levels[10:50, 10:60] = 255
    Image.fromarray(levels).save("mask.png")
    outputs = ("--out", "o.png", "--source", "s.png", "--path", "p.png", "--sheet", "sheet.png", "--json", "o.json")
    drags = ("--drag", "24,28:40,28", "--drag", "20,22:36,22", "--mask", "mask.png", "--prompt", "a red dot")
    assert run("edit", picture, *drags, "--target-prompt", "a cat", *QUICK, *outputs) == 0

    assert Image.open("o.png").size == Image.open("p.png").size == (72, 64)
    assert np.array_equal(np.asarray(Image.open("s.png")), np.asarray(Image.open(picture)))
    assert Image.open("sheet.png").width > 3 * 384
    report = json.loads(Path("o.json").read_text(encoding="utf-8"))
    assert report["command"] == "edit" and report["seed"] == 7
    assert (report["prompt"], report["target_prompt"]) == ("a red dot", "a cat")
    assert report["picture_size"] == [72, 64] and report["grid_size"] == [36, 32] and report["masked"]
    assert [drag["handle"] for drag in report["drags"]] == [[24, 28], [20, 22]]
    assert report["config"]["drag"]["lr"] == 0.02 and report["config"]["control_blocks"] == list(range(11, 17))
    assert len(report["updates"]) == 2 and report["stop"] == "budget"
    first = report["updates"][0]
    assert np.allclose(first["handles"], [[24, 28], [20, 22]]) and np.allclose(first["distances_cells"], [8, 8])
    assert report["weights"] and report["threads"] >= 1 and report["peak_memory_bytes"] > 1e8
    stages = ("loading", "encode", "inversion", "drag", "denoising", "decode", "total")
    assert all(report["seconds"][stage] > 0 for stage in stages)
    assert report["dtype"] == "float32" and report["device"] == "cpu"


def test_same_seed_same_bytes_and_options_are_a_job(picture: Path) -> None:
    drag = ("--drag", "24,28:40,28", "--control-step", "never", "--control-blocks", "11,12", "--no-blend", "--quiet")
    assert run("edit", picture, *QUICK, *drag, "--out", "a.png", "--json", "a.json") == 0
    assert run("edit", picture, *QUICK, *drag, "--out", "b.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()

    before = Path("a.png").read_bytes()
    report = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert report["config"]["control_step"] is None
    Path("again.json").write_text(json.dumps(report["options"]))
    assert run("edit", "--job", "again.json", "--out", "c.png", "--json", "c.json") == 0
    assert Path("c.png").read_bytes() == before
    assert json.loads(Path("c.json").read_text(encoding="utf-8"))["config"] == report["config"]


def test_force_replaces(picture: Path) -> None:
    Path("o.png").write_bytes(b"old")
    assert run("edit", picture, *QUICK, "--drag", "24,28:40,28", "--out", "o.png", "--force") == 0
    assert Image.open("o.png").size == (72, 64)
    assert not [path for path in Path.cwd().iterdir() if path.name.endswith(".part")]


def test_from_noise_edits_what_generate_draws() -> None:
    same = ("--prompt", "a dot", "--seed", "3", "--steps", "4", "--size", "72x64", "--guidance", "2")
    assert run("generate", *same, "--out", "g.png", "--json", "g.json") == 0
    report = json.loads(Path("g.json").read_text(encoding="utf-8"))
    assert report["command"] == "generate" and report["size"] == [72, 64] and report["seconds"]["generation"] > 0
    drag = ("--drag", "20,20:30,20", "--drag-step", "1", "--updates", "1")
    assert run("edit", "--from-noise", *same, *drag, "--out", "o.png", "--source", "s.png", "--json", "o.json") == 0
    assert Path("g.png").read_bytes() == Path("s.png").read_bytes()
    assert json.loads(Path("o.json").read_text(encoding="utf-8"))["source"] == "generated"


def test_handles_outside_the_mask_are_warned_of(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "handle 1 stands outside of the mask's white, where nothing may move"
    Image.fromarray((np.arange(72) > 50)[None].repeat(64, 0)).save("mask.png")
    assert run("edit", picture, *QUICK, "--drag", "24,28:60,28", "--mask", "mask.png", "--out", "o.png") == 0
    assert capsys.readouterr().err == f"dragsa: warning: {said}\n"


# --- jobs ----------------------------------------------------------------------------------------------------------


def test_jobs_share_the_model_and_the_source(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("jobs")
    folder.mkdir()
    common = {"image": "../picture.png", "steps": 4, "drag_step": 1, "updates": 1, "control-step": None, "seed": 7}
    jobs = [
        {**common, "drag": [[[24, 28], [40, 28]]], "out": "a.png"},
        {**common, "drag": ["24,28:24,40", [[20, 22], [20, 34]]], "out": "b.png", "json": "b.json"},
        {**common, "target_prompt": "a cat", "prompt": "a dot", "out": "c.png", "json": "c.json"},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    assert run("edit", "--job", "jobs/jobs.json", "--lr", "0.5") == 0
    assert {path.name for path in folder.iterdir()} == {"jobs.json", "a.png", "b.png", "b.json", "c.png", "c.json"}
    second, third = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in "bc")
    assert second["source_reused"] and second["seconds"]["loading"] == 0 and "inversion" not in second["seconds"]
    assert second["config"]["drag"]["lr"] == 0.5 and len(second["drags"]) == 2
    assert not third["source_reused"] and third["seconds"]["inversion"] > 0  # another prompt
    assert third["stop"] is None

    # The source that was kept gives what a source of its own gives.
    alone = ("--drag", "24,28:24,40", "--drag", "20,22:20,34", "--lr", "0.5", "--out", "alone.png")
    assert run("edit", picture, *QUICK, "--updates", "1", "--control-step", "never", *alone) == 0
    assert Path("alone.png").read_bytes() == (folder / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("{", "not JSON"),
        ("3", "must hold a job"),
        ("[]", "must hold a job"),
        ({"speed": 3}, "job 1: unknown key 'speed'"),
        ({"job": "x"}, "unknown key 'job'"),
        ({"steps": "many"}, "--steps: must be a whole"),
        ({"steps": 2.5}, "--steps: must be a whole"),
        ({"steps": True}, "steps: must not be true or false"),
        ({"blend": "yes"}, "blend: must be true or false"),
        ({"drag": [[1, 2, 3, 4]]}, "drag: must be [[X0, Y0], [X1, Y1]]"),
        ({"drag": [[[1, 2], [3, "x"]]]}, "--drag: must be X0,Y0:X1,Y1"),
        ({"prompt": ["a"]}, "prompt: came"),
        ({"image": "gone.png"}, "job 1: "),
        ([{}, {"drag": "1,2:99,4", "out": "p.png"}], "job 2: point 99,4"),
        ([{}, {}], "two outputs"),
    ],
)
def test_wrong_jobs_are_named(picture: Path, capsys: pytest.CaptureFixture[str], job: object, said: str) -> None:
    usual = {"image": "picture.png", "drag": "1,2:3,4", "out": "o.png"}
    if isinstance(job, dict):
        job = {**usual, **job}
    elif isinstance(job, list):
        job = [{**usual, **one} for one in job]
    Path("job.json").write_text(job if isinstance(job, str) else json.dumps(job))
    assert said in refused(capsys, "edit", "--job", "job.json")


# --- info ----------------------------------------------------------------------------------------------------------


def test_info_shows_the_loaded_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json", "--size", "512x384") == 0
    report = json.loads(capsys.readouterr().out)
    rows = report["blocks"]
    assert [row["block"] for row in rows] == [f"block{n:02d}" for n in range(1, 17)]
    assert rows[13] == {
        "block": "block14",
        "diffusers": "up_blocks.3.attentions.0",
        "original": "output_blocks.9.1",
        "grid": [64, 48],
        "channels": 32,
        "heads": 8,
    }
    assert (rows[6]["diffusers"], rows[6]["original"]) == ("mid_block.attentions.0", "middle_block.1")
    assert rows[6]["grid"] == [8, 6]
    assert (rows[4]["original"], rows[4]["channels"]) == ("input_blocks.7.1", 64)
    assert report["parameters"]["unet"] > 100_000 and report["stored"] == ["F32"]

    assert run("info") == 0
    printed = capsys.readouterr().out
    assert "block08  up_blocks.1.attentions.0" in printed and "16×16" in printed


def test_info_verifies_before_it_loads(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    (broken / "vae" / "config.json").unlink()
    assert run("info", "--verify", "--weights", str(broken)) == 2
    said = capsys.readouterr()
    assert said.out.count("not a published file") == 3 and "config.json: the file is missing" in said.err


def test_info_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--verify") == 1
    assert capsys.readouterr().out.count("not a published file") == 3


# --- the terminal --------------------------------------------------------------------------------------------------


# --- bench -----------------------------------------------------------------------------------------------------------


def test_bench_prints_its_tables_and_writes_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--only", "fused,tracking", "--repeats", "1", "--threads", "1", "--quiet"]
    files = ["--json", "o.json", "--markdown", "o.md", "--chart", "o.png"]
    assert run("bench", "--quick", *asked, "--sizes", "64", *files) == 0
    printed = capsys.readouterr().out
    assert Path("o.md").read_text() == printed
    assert "| tracking, one handle, against the dense one |" in printed
    report = json.loads(Path("o.json").read_text())
    assert report["settings"]["sizes"] == [64] and report["settings"]["width"] == "tiny"
    assert report["settings"]["only"] == ["fused", "tracking"] and report["machine"]["threads"] == 1
    assert {(row["part"], row["case"]) for row in report["measurements"]} == {
        (part, case) for part in ("fused", "tracking") for case in ("dense", "fused")
    }
    with Image.open("o.png") as chart:
        assert chart.format == "PNG" and chart.width > 400
    assert "is there already" in refused(capsys, "bench", "--quick", *asked, *files)
    assert run("bench", "--quick", *asked, "--only", "tracking", *files, "--force") == 0
    assert json.loads(Path("o.json").read_text())["settings"]["only"] == ["tracking"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_and_erased() -> None:
    terminal = Terminal()
    progress = cli.Progress(terminal)
    progress.pixels_per_cell = 4
    progress(trace.StageProgress("inversion", 0, 50))
    progress(trace.StageProgress("inversion", 50, 50))
    progress(trace.DragProgress(80, 80, 0.125, [[1.0, 2.0], [3.0, 4.0]], [1.0, 2.5]))
    progress.erase()
    said = terminal.getvalue()
    assert "inversion  [....................] 0/50" in said and "[####################] 50/50" in said
    assert "drag       [####################] 80/80  loss 0.125, 10.0 px left" in said
    assert said.endswith("\r\x1b[K") and "\n" not in said


def test_progress_is_silent_elsewhere() -> None:
    for stream, quiet in ((io.StringIO(), False), (Terminal(), True)):
        progress = cli.Progress(stream, quiet)
        progress(trace.StageProgress("inversion", 1, 50))
        progress.say("loading")
        progress.erase()
        assert stream.getvalue() == ""


def test_a_terminal_is_left_clean_and_an_interrupt_writes_nothing(picture: Path, tiny_folder: Path) -> None:
    """The real program on a pseudo-terminal: progress is seen, and Ctrl-C ends it with 130 and a clean line."""
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "dragsa",
        "edit",
        picture,
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


def test_a_single_edit_keeps_nothing_of_its_source_and_a_list_does(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dragsa import editing

    kept, edit = [], editing.edit

    def watched(sd: object, source: editing.Source, *arguments: object, **more: object) -> editing.EditResult:
        result = edit(sd, source, *arguments, **more)  # type: ignore[arg-type]
        kept.append(source.recorded.nbytes)
        return result

    monkeypatch.setattr(editing, "edit", watched)
    job = {"image": str(picture), "drag": "20,20:30,30", "updates": 1, "steps": 4, "drag_step": 1, "control_step": 0}
    jobs = [{**job, "out": f"{n}.png"} for n in range(3)]
    for count in (1, 2):
        (tmp_path / "jobs.json").write_text(json.dumps(jobs[:count] if count == 1 else jobs[1:]))
        assert run("edit", "--job", "jobs.json", "--quiet") == 0
    assert kept[0] == 0 and kept[1] > 0

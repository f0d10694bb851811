import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from command_line import QUICK, options, refused, run
from PIL import Image

import dragsa
from dragsa import cli
from dragsa.config import EditConfig, Preset


def test_presets_and_options_lie_over_one_another() -> None:
    assert cli.config_of(options()) == EditConfig.sd15()
    assert cli.config_of(options("--preset", "dragdiffusion")) == EditConfig.dragdiffusion()
    changed = cli.config_of(options("--preset", "masactrl", "--lr", "0.5", "--steps", "20", "--control-step", "never"))
    base = EditConfig.masactrl()
    assert changed == replace(base, drag=replace(base.drag, lr=0.5), steps=20, control_step=None)
    for name in get_args(Preset):
        assert cli.config_of({"preset": name}) == getattr(EditConfig, name)()


def test_the_model_that_ships_brings_its_own_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAGSA_WEIGHTS", raising=False)
    if cli.SMALL.is_dir():
        assert cli.config_of(options()) == EditConfig.small()
    Path("copy/unet").mkdir(parents=True)
    shutil.copy(cli.SMALL / "unet/config.json", "copy/unet")
    assert cli.config_of(options("--weights", "copy")) == EditConfig.small()  # by what it holds, not by where it is
    assert cli.config_of(options("--weights", "copy", "--preset", "paper")) == EditConfig.paper()
    for text in ("{", "[]", '{"block_out_channels": [320, 640, 1280, 1280]}', "[" * 100_000):
        Path("copy/unet/config.json").write_text(text)
        assert cli.config_of(options("--weights", "copy")) == EditConfig.sd15()
    assert cli.config_of(options("--weights", "elsewhere")) == EditConfig.sd15()


def test_no_weights_says_what_to_do(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DRAGSA_WEIGHTS")
    small = Path.cwd() / "small"
    monkeypatch.setattr("dragsa.cli.edit.SMALL", small)
    assert "DRAGSA_WEIGHTS" in refused(capsys, "edit", picture, "--drag", "1,2:3,4", "--out", "o.png")
    small.mkdir()
    assert cli.weights_of({}) == small
    assert cli.weights_of({"weights": "given"}) == Path("given")


def test_mistakes_are_found_before_the_weights_are_loaded(
    picture: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("dragsa.loading.load", load)
    refused(capsys, "edit", picture, "--drag", "1,2:99,4", "--out", "o.png")
    refused(capsys, "edit", picture, "--drag", "1,2:3,4", "--tap", "no", "--out", "o.png")
    refused(capsys, "edit", picture, "--drag", "1,2:3,4", "--out", "o.png", "--json", picture)


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
    apart = np.array([[40, 28], [36, 22]]) - first["handles"]  # which were looked for in the re-prompted picture
    assert np.allclose(first["distances_px"], np.hypot(*apart.T))
    assert np.allclose(first["distances_cells"], np.hypot(*apart.T) / 2)
    assert report["weights"] and report["threads"] >= 1 and report["peak_memory_bytes"] > 1e8
    stages = ("loading", "encode", "inversion", "drag", "denoising", "decode", "total")
    assert all(report["seconds"][stage] > 0 for stage in stages)
    assert report["dtype"] == "float32" and report["device"] == "cpu"


def test_a_part_is_edited_as_in_python(picture: Path, tiny_folder: Path) -> None:
    large = Image.open(picture).resize((288, 256))
    large.save("large.png")
    drag = ("--drag", "100,100:120,100", "--size", "64", "--crop", "auto")
    assert run("edit", "large.png", *QUICK, *drag, "--out", "o.png", "--json", "o.json", "--path", "p.png") == 0
    report = json.loads(Path("o.json").read_text(encoding="utf-8"))
    assert report["part"] == [78, 68, 142, 132] and report["picture_size"] == [288, 256]
    assert report["config"]["crop"] == "auto" and report["drags"][0]["target"] == [120, 100]
    drags = [((100.0, 100.0), (120.0, 100.0))]
    config = replace(cli.config_of(options(*QUICK, *drag)), source_kv="none")
    made = dragsa.edit(dragsa.load(tiny_folder), "large.png", drags, seed=7, config=config).image
    assert np.array_equal(np.asarray(Image.open("o.png")), np.asarray(made)) and made.size == (288, 256)
    assert Image.open("p.png").size == (288, 256)


def test_an_edit_ends_with_one_line(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("edit", picture, *QUICK, "--drag", "24,28:40,28", "--out", "o.png", "--json", "o.json")
    assert run(*asked) == 0
    left = json.loads(Path("o.json").read_text(encoding="utf-8"))["drags"][0]["tracked_distance_px"]
    said = rf"o\.png: not reached \(budget\), 2 updates, {left:.1f} px left, \d+\.\d s\n"
    assert re.fullmatch(said, capsys.readouterr().out)
    assert run(*asked, "--force", "--quiet", "--target-prompt", "a dot") == 0
    assert capsys.readouterr().out == ""


def test_force_replaces(picture: Path) -> None:
    Path("o.png").write_bytes(b"old")
    assert run("edit", picture, *QUICK, "--drag", "24,28:40,28", "--out", "o.png", "--force") == 0
    assert Image.open("o.png").size == (72, 64)
    assert not [path for path in Path.cwd().iterdir() if path.name.endswith(".part")]


def test_from_noise_edits_what_generate_draws(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ("--prompt", "a dot", "--seed", "3", "--steps", "4", "--size", "72x64", "--guidance", "2")
    same = (*drawn, "--fixed-point", "2")  # which does nothing here, and is told of
    assert run("generate", *same, "--out", "g.png", "--json", "g.json") == 0
    assert capsys.readouterr().err.count("fixed-point iterations (--fixed-point) do nothing") == 1
    report = json.loads(Path("g.json").read_text(encoding="utf-8"))
    assert report["command"] == "generate" and report["size"] == [72, 64] and report["seconds"]["generation"] > 0
    drag = ("--drag", "20,20:30,20", "--drag-step", "1", "--updates", "1")
    outputs = ("--out", "o.png", "--source", "s.png", "--json", "o.json")
    assert run("edit", "--from-noise", *same, *drag, "--crop", "auto", *outputs) == 0
    told = capsys.readouterr().err
    assert told.count("fixed-point iterations (--fixed-point) do nothing") == told.count("crop auto does nothing") == 1
    assert Path("g.png").read_bytes() == Path("s.png").read_bytes()
    assert json.loads(Path("o.json").read_text(encoding="utf-8"))["source"] == "generated"


def test_handles_outside_the_mask_are_warned_of(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "1 stands outside of the mask's white, where nothing may move"
    Image.fromarray((np.arange(72) > 50)[None].repeat(64, 0)).save("mask.png")
    assert run("edit", picture, *QUICK, "--drag", "24,28:60,28", "--mask", "mask.png", "--out", "o.png") == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"dragsa: warning: handle {said}"
    assert second.startswith("dragsa: warning: the drag did not arrive (budget): handle 1 is ")
    assert run("edit", picture, *QUICK, "--drag", "60,28:24,28", "--mask", "mask.png", "--out", "p.png") == 0
    assert capsys.readouterr().err.splitlines()[0] == f"dragsa: warning: target {said}"


def test_a_drag_of_numbers_that_are_not_finite_fails_and_its_picture_is_there(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("edit", picture, *QUICK, "--drag", "24,28:60,28", "--lr", "1e38", "--out", "o.png") == 1
    assert "the drag ended at numbers that are not finite" in capsys.readouterr().err and Path("o.png").is_file()

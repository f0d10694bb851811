import json
import shutil
from pathlib import Path

import pytest
from command_line import run


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

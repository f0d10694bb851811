import json
from pathlib import Path

import pytest
from command_line import refused, run
from PIL import Image


def test_bench_prints_its_tables_and_writes_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--only", "handles,denoise", "--repeats", "1", "--threads", "1", "--quiet"]
    files = ["--json", "o.json", "--markdown", "o.md", "--chart", "o.png"]
    assert run("bench", "--quick", *asked, "--sizes", "64", *files) == 0
    printed = capsys.readouterr().out
    assert Path("o.md").read_text() == printed
    assert "| second edit, denoising, against the first |" in printed
    report = json.loads(Path("o.json").read_text())
    assert report["settings"]["sizes"] == [64] and report["settings"]["width"] == "tiny"
    assert report["settings"]["only"] == ["handles", "denoise"] and report["machine"]["threads"] == 1
    assert [(row["part"], row["case"]) for row in report["measurements"]] == [
        *(("handles", case) for case in ("1 handle", "20 handles")),
        *(("denoise", case) for case in ("first edit", "second edit")),
    ]
    with Image.open("o.png") as chart:
        assert chart.format == "PNG" and chart.width > 400
    assert "is there already" in refused(capsys, "bench", "--quick", *asked, *files)
    assert run("bench", "--quick", *asked, "--only", "roof", "--modes", "float32", *files, "--force") == 0
    assert json.loads(Path("o.json").read_text())["settings"]["only"] == ["roof"]

"""The evaluator's command line, on folders of results."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate
import pytest

from dragsa.evaluation import art_cases, cases, figures, truth
from dragsa.pictures import images

BY_KIND = {case.kind: case for case in cases.cases("figures", limit=1)}


def test_a_folder_of_anybodys_results_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in (BY_KIND["move"], BY_KIND["resize"]):
        truth.save(tmp_path, case, {})
        folder = tmp_path / case.name
        images.save_picture(case.truth, folder / "perfect.png")
        images.save_picture(case.source, folder / "idle.png")
    assert evaluate.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert set(results) == {"perfect", "idle"} and set(results["idle"]) == {"move-00", "resize-00"}
    assert results["idle"]["move-00"]["share"] == pytest.approx(1, abs=0.02)
    again = json.loads(json.dumps(figures.measure(BY_KIND["move"].truth, BY_KIND["move"])))
    assert results["perfect"]["move-00"] == again
    assert "| perfect | 2 |" in printed


def test_artworks_own_figures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case,) = (case for case in art_cases.list_cases("settings", limit=1) if case.kind == "move")
    truth.save(tmp_path, case, {})
    images.save_picture(case.truth, tmp_path / case.name / "perfect.png")
    assert evaluate.main([str(tmp_path)]) == 0
    heads, _, row = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    told = dict(zip(heads, row, strict=True))
    assert told["result"] == "perfect" and told["style kept, share"] == told["thing kept, share"] == "1.00"
    assert float(told["style's margin, dB"]) > 3 and "object's tint, of 255" not in told


def test_a_folder_without_results_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path)]) == 2
    assert evaluate.main([]) == 2
    assert evaluate.main([str(tmp_path), "--check"]) == 2
    assert capsys.readouterr().err.count("evaluate: error: ") == 3

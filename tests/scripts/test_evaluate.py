"""The evaluator's command line, on folders of results."""

from __future__ import annotations

import json
from pathlib import Path

import evaluate
import pytest

from dragsa.evaluation import cases, figures, truth
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


def test_a_folder_without_results_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path)]) == 2
    assert evaluate.main([]) == 2
    assert evaluate.main([str(tmp_path), "--check"]) == 2
    assert capsys.readouterr().err.count("evaluate: error: ") == 3

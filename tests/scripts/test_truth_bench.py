"""The truth benchmark's command line: what it runs, and what it writes and prints of a finished run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import truth_bench

from dragsa.config import DragConfig, EditConfig
from dragsa.evaluation import cases, lists, truth
from dragsa.evaluation.runs import MAIN, Setting
from dragsa.pictures import images

FAST = EditConfig(DragConfig(updates=2, lr=0.05), steps=6, drag_step=2, control_step=3, size=64)
SETTINGS = [Setting("no-edit"), Setting("reconstruction", FAST), Setting(MAIN, FAST, "five")]
SETTINGS.append(Setting("no-control", replace(FAST, control_step=None), "five"))
LISTED = cases.cases("figures", limit=1, size=64)[:3]


@pytest.fixture
def model(tiny_folder: Path) -> Path:
    return tiny_folder


@pytest.fixture
def finished(model: Path, tmp_path: Path) -> Path:
    assert truth.run(tmp_path / "run", LISTED, SETTINGS, model, published=False, explain=False)
    return tmp_path / "run"


def test_the_command_line_chooses_the_list(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(truth_bench.SETTINGS, "rivals", lambda ours: [Setting("nothing")])
    asked = ["run", str(tmp_path / "run"), "--settings", "rivals", "--limit", "1", "--size", "64", "--no-published"]
    assert truth_bench.main([*asked, "--weights", str(model), "--workers", "1"]) == 0
    assert "| nothing | 5 |" in capsys.readouterr().out
    assert truth_bench.main([*asked[:3], "none", "--weights", str(model)]) == 2
    assert "invalid choice: 'none'" in capsys.readouterr().err


def test_each_list_is_edited_by_the_model_that_was_trained_on_it() -> None:
    taken = {which: truth_bench.arguments_of(["run", "RUN", "--list", which]).weights for which in lists.NAMES}
    assert [path.parts[-2:] for path in taken.values()] == [("weights", "small"), ("weights", "artwork")]
    own = truth_bench.arguments_of(["run", "RUN", "--list", "artwork", "--weights", "own"])
    assert own.weights == Path("own")


def test_tables_are_made_of_the_folder_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert truth_bench.main(["table", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (finished / "table.md").read_text().strip()
    (row,) = [line for line in printed.splitlines() if line.startswith("| no-edit | 3 |")]
    assert row.split(" | ")[2].startswith("1.00") and row.split(" | ")[4:6] == ["1.00", "0%"]
    results = json.loads((finished / "results.json").read_text())
    assert results["summaries"]["no-edit"]["all"]["background_error"]["per_picture"]["mean"] == 0
    assert set(results["results"][MAIN]) == {case.name for case in LISTED}
    assert set(results["failures"][MAIN]) == {n for n, row in results["results"][MAIN].items() if row["share"] > 0.5}
    sheet = images.open_picture(finished / "sheet.png")
    assert sheet.width > 5 * 128 and sheet.height > 3 * 128


def test_no_run_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert truth_bench.main(["table", str(tmp_path)]) == 2
    assert "truth_bench: error: " in capsys.readouterr().err


def test_exported_cases_are_whole(tmp_path: Path) -> None:
    assert truth_bench.main(["export", str(tmp_path / "cases"), "--limit", "1", "--cases", "settings"]) == 0
    found = [lists.load(tmp_path / "cases" / f"{kind}-00") for kind in cases.KINDS]
    assert found == cases.cases("settings", limit=1)


def test_artwork_is_a_list_of_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")  # of the six cases, which take seconds each, this rank does one
    monkeypatch.setenv("RANK", "0")
    run = tmp_path / "run"
    asked = ["run", str(run), "--list", "artwork", "--settings", "warped", "--limit", "1", "--no-published"]
    assert truth_bench.main([*asked, "--weights", str(model), "--workers", "1"]) == 0
    assert truth_bench.main(["table", str(run)]) == 0
    printed = capsys.readouterr().out
    heads, _, *rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")][:4]
    table = {row[0].strip("| "): dict(zip(heads, row, strict=True)) for row in rows}
    assert table["no-edit"]["distance left, share"].startswith("1.0") and table["no-edit"]["cases"] == "1"
    assert float(table["warped"]["distance left, share"][:4]) < 0.5 and "style kept, share" in heads
    assert "hole, of 255" in heads and "object's tint, of 255" not in heads
    assert "## Share of the distance left, by what training showed" in printed
    with_drawn = ["run", str(run), "--settings", "warped", "--limit", "1", "--weights", str(model)]
    assert truth_bench.main(with_drawn) == 2
    assert "a run with other list; give another folder" in capsys.readouterr().err

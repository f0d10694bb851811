"""The comparison's table: every number from the file, put between the comments and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comparison
import pytest


def case(share: float, seconds: dict[str, float] | None) -> dict[str, Any]:
    row = {"left": 10 * share, "background_error": 2 * share, "truth_db": 20.0, "points": [{"share": share}]}
    return row if seconds is None else {**row, "seconds": seconds}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    lora = {"lora": 14.0, "inversion": 2.0, "all": 20.0}
    rows = {
        "no-edit": {"a": case(1, None), "b": case(1, None)},
        "dragdiffusion-first-lora": {"a": case(0.5, lora), "b": case(0.7, lora)},
        "ours": {"a": case(0.2, {"all": 6.0}), "b": case(0.4, {"all": 8.0})},
        "another": {"a": case(0.1, None)},
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": rows}))
    return path


def test_rows_are_the_runs_numbers(results: Path) -> None:
    lines = comparison.table(comparison.read(results)).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["no edit", "ours", "the same with LoRA"]
    ours = dict(zip(rows[0], rows[3], strict=True))
    assert ours["distance left, px"] == "3.0 (2.0 to 4.0)" and ours["distance left, share"] == "0.30 (0.20 to 0.40)"
    assert ours["background error, of 255"] == "0.60 (0.40 to 0.80)" and ours["seconds"] == "7.0"
    assert rows[2][-1] == "–" and rows[4][-1] == "20.0, LoRA 14.0"
    assert lines[-1].startswith("Means over 2 held-out drawn scenes") and "DragGAN" in lines[-1]


def test_only_what_is_between_the_comments_is_replaced(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# über\n\n{comparison.BEGIN}\nold\n{comparison.END}\n\nafter\n")
    for _ in range(2):  # the second time it is what it was
        assert comparison.main([str(results), "--readme", str(readme)]) == 0
        text = readme.read_text()
        before, rest = text.split(comparison.BEGIN)
        made, after = rest.split(comparison.END)
        assert (before, after) == ("# über\n\n", "\n\nafter\n")
        assert made.strip() == comparison.table(comparison.read(results)) and "old" not in text


def test_the_readme_has_the_place() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert comparison.inserted(text, "new").count("\nnew\n") == 1


@pytest.mark.parametrize(
    ("text", "readme", "says"),
    [
        ("no json", "", "results.json: not the results of truth_bench.py"),
        ('{"summaries": {}}', "", "not the results of truth_bench.py"),
        ('{"results": {"five-handles": {"a": {}}}}', "", "not a run of the rivals"),
        ('{"results": {"ours": {"a": {}, "b": {}}, "masactrl": {"a": {}}}}', "", "different numbers of cases: 1, 2"),
        (None, f"{comparison.END}\n{comparison.BEGIN}", "README.md: it must hold the lines"),
        (None, f"{comparison.BEGIN}\n" * 2 + comparison.END, "once, in that order"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, readme: str, says: str
) -> None:
    if text is not None:
        results.write_text(text)
    path = tmp_path / "README.md"
    path.write_text(readme)
    assert comparison.main([str(results), "--readme", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("comparison: error: ") and says in said
    assert path.read_text() == readme

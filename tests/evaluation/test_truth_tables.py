"""The tables of a run: the comparison's numbers are the run's, and it is made of ours beside others' methods."""

from __future__ import annotations

from typing import Any

from dragsa.evaluation import truth_tables


def case(share: float, seconds: dict[str, float] | None) -> dict[str, Any]:
    row = {"left": 10 * share, "background_error": 2 * share, "truth_db": 20.0, "points": [{"share": share}]}
    return {**row, "share": share, "kind": "move", "found": True, "nose_found": None} | (
        {} if seconds is None else {"seconds": seconds}
    )


LORA = {"lora": 14.0, "inversion": 2.0, "all": 20.0}
RESULTS = {
    "no-edit": {"a": case(1, None), "b": case(1, None)},
    "dragdiffusion-first-lora": {"a": case(0.5, LORA), "b": case(0.7, LORA)},
    "ours": {"a": case(0.2, {"all": 6.0}), "b": case(0.4, {"all": 8.0})},
    "another": {"a": case(0.1, None)},
}


def test_rows_of_the_comparison_are_the_runs_numbers() -> None:
    lines = truth_tables.compared(RESULTS).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["no edit", "ours", "the same with LoRA"]
    ours = dict(zip(rows[0], rows[3], strict=True))
    assert ours["distance left, px"] == "3.0 (2.0 to 4.0)" and ours["distance left, share"] == "0.30 (0.20 to 0.40)"
    assert ours["background error, of 255"] == "0.60 (0.40 to 0.80)" and ours["seconds"] == "7.0"
    assert rows[2][-1] == "–" and rows[4][-1] == "20.0, LoRA 14.0"
    assert lines[-1].startswith("Means over 2 held-out drawn scenes") and "DragGAN" in lines[-1]


def test_the_note_is_of_the_methods_and_cases_that_are_there() -> None:
    note = truth_tables.compared(RESULTS)
    assert "rows differ in the method alone" in note and "published with" not in note
    programs = truth_tables.compared({**RESULTS, "last-program": RESULTS["ours"]})
    assert "rows differ in the method alone" not in programs and "are their own" in programs
    settings = truth_tables.text_of(RESULTS, "settings")
    assert "Means over 2 drawn scenes for choosing settings with" in settings and "held-out" not in settings


def test_methods_are_compared_where_ours_ran_beside_others() -> None:
    heading = "## The methods compared"
    assert heading in truth_tables.text_of(RESULTS)
    for names in (("ours", "another"), ("no-edit", "dragdiffusion-first-lora")):
        assert heading not in truth_tables.text_of({name: RESULTS[name] for name in names})


def test_a_run_beside_others_says_what_it_bears_out_of_the_paper() -> None:
    heading = "## What the paper says of its figure 4"
    assert heading not in truth_tables.text_of(RESULTS)
    several = {str(n): case(0.2, None) for n in range(5)}
    text = truth_tables.text_of({"ours": several, "first-program-lora": {name: case(0.5, None) for name in several}})
    assert "distance left, share | -0.30 (-0.30 to -0.30) | 5 | borne out |" in text.partition(heading)[2]

"""What the paper says, asked of made-up runs whose answers are plain."""

from __future__ import annotations

from typing import Any

from dragsa.config import EditConfig
from dragsa.evaluation import claims, experiments, runs

WITH_AND_WITHOUT = (("ours", 5.0), ("no-control", 9.0))


def run(style: float, share: float, cases: int = 6) -> dict[str, dict[str, Any]]:
    """Figures of cases that differ among themselves, by the same in every setting."""
    return {str(n): {"style_margin": style + n, "share": share + n / 10} for n in range(cases)}


def rows(results: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in claims.verdicts(results).splitlines()[2:]]


def test_differences_are_taken_case_by_case() -> None:
    mine, theirs = run(3.0, 0.2), run(1.0, 0.5)
    theirs["2"]["style_margin"] = None
    del theirs["4"]
    found = experiments.differences(mine, theirs, "style_margin")
    assert found == {"0": 2.0, "1": 2.0, "2": None, "3": 2.0, "5": 2.0}


def test_a_verdict_says_whose_figure_is_the_better() -> None:
    results = {"ours": run(3.0, 0.2), "no-control": run(1.0, 0.2), "first-program-lora": run(3.5, 0.1)}
    assert [row[1:] for row in rows(results)] == [
        ["ours", "no-control", "style's margin, dB", "+2.00 (2.00 to 2.00)", "6", "borne out"],
        ["ours", "first-program-lora", "distance left, share", "+0.10 (0.10 to 0.10)", "6", "contradicted"],
        ["ours", "first-program-lora", "style's margin, dB", "-0.50 (-0.50 to -0.50)", "6", "contradicted"],
    ]


def test_few_cases_or_an_interval_with_zero_decide_nothing() -> None:
    few = {"ours": run(3.0, 0.2, 4), "first-program": run(1.0, 0.2, 4)}
    assert [row[-1] for row in rows(few)] == ["not decided, too few pictures (4)"]
    even = {"ours": run(1.0, 0.2), "first-program": run(1.0, 0.2)}
    for n, row in enumerate(even["first-program"].values()):
        row["style_margin"] += (-1) ** n
    assert [row[-1] for row in rows(even)] == ["not decided, the interval holds zero"]


def test_each_of_ours_is_compared_with_itself_without_control() -> None:
    names = ("ours", "no-control", "as-printed", "as-printed-no-control")
    found = {tuple(row[1:3]) for row in rows({name: run(1.0, 0.2) for name in names})}
    assert found == {("ours", "no-control"), ("as-printed", "as-printed-no-control")}


def test_a_ground_that_is_nearer_bears_out_that_the_style_is_kept() -> None:
    results = {name: {str(n): {"background_error": off + n} for n in range(6)} for name, off in WITH_AND_WITHOUT}
    assert [row[3:] for row in rows(results)] == [["background, of 255", "-4.00 (-4.00 to -4.00)", "6", "borne out"]]


def test_a_run_without_others_says_nothing() -> None:
    assert claims.verdicts({"ours": run(1.0, 0.2), "no-edit": run(1.0, 1.0)}) == ""


def test_settings_of_the_claims_are_those_that_are_run() -> None:
    named = {name for claim in claims.CLAIMS for name in claim.against} | set(claims.MINE)
    assert named <= {setting.name for setting in runs.published(EditConfig.small())}

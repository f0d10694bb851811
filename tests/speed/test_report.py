"""The goals, the tables and the JSON are made of the measurements."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dragsa import speed
from dragsa.speed.laps import Measurement
from dragsa.speed.report import Goal, goals_table, result


def test_a_ratio_is_of_medians():
    goal = Goal("speed", "update", "slow", "fast", "at least", 10)
    rows = [
        Measurement("update", "slow", 64, (10.0, 30.0, 100.0)),
        Measurement("update", "fast", 64, (3.0, 1.0, 2.0)),
    ]
    assert result(goal, rows, 64) == 15.0


@pytest.mark.parametrize(
    "relation, bound, value, reached",
    [
        ("at least", 2.5, 2.5, True),
        ("at least", 2.5, 2.49, False),
        ("at most", 0.45, 0.45, True),
        ("at most", 0.45, 0.46, False),
        ("under", 1.05, 1.0499, True),
        ("under", 1.05, 1.05, False),
        ("exactly", 0, 0.0, True),
        ("exactly", 0, 1.0, False),
    ],
)
def test_when_a_goal_is_reached(relation, bound, value, reached):
    goal = Goal("speed", "update", "slow", "fast", relation, bound)
    assert goal.reached_by(value) is reached
    rows = [Measurement("update", "slow", 64, (value,)), Measurement("update", "fast", 64, (1.0,))]
    assert result(goal, rows, 64) == value
    assert result(goal, rows, 512) is None
    assert goal.reached_by(result(goal, rows[:1], 64)) is None


def goals_of(report: speed.Report) -> list[list[str]]:
    """Return measured, goal and reached of the table's rows."""
    lines = goals_table(report).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in lines]


def test_the_goals_are_a_table(planted):
    assert goals_of(planted()) == [
        ["3×", "at least 2.5×; aim 3×", "yes"],
        ["2×", "at least 1.7×; aim 2.2×", "yes"],
        ["1.62×", "at least 1.4×", "yes"],
        ["0.433", "at most 0.45", "yes"],
        ["125×", "at least 100×", "yes"],
        ["10×", "at least 50×", "**no**"],
        ["2×", "at least 1.8×", "yes"],
        ["0", "0", "yes"],
        ["1.01", "under 1.05", "yes"],
    ]
    assert goals_of(planted(memory_baseline=()))[3] == ["not measured", "at most 0.45", "-"]
    assert goals_of(planted(update_float32=(17.0,)))[2] == ["1.24×", "at least 1.4×", "**no**"]


def test_tiny_networks_are_not_judged(planted):
    report = planted()
    tiny = replace(report, settings=replace(report.settings, width="tiny"))
    assert {row[2] for row in goals_of(tiny)} == {"not judged"}
    assert {goal["reached"] for goal in speed.to_json(tiny)["goals"]} == {None}
    assert goals_of(tiny)[5][0] == "10×"


def test_every_part_is_a_table_and_what_failed_is_said(planted):
    text = speed.markdown(planted())
    # 1,200 operations, 200 of attention's: 1,000 at 2 GFLOP/s and 200 at 0.5 take 0.9 µs of the 21 s
    assert "| baseline | 21 | 20 | 22 | 21 | 21 | 1.2e-06 | 5.71e-08 | 0.00 |" in text
    assert "| bfloat16 | 7 | 7 | 7 | 7 | 7 | 1.2e-06 | 1.71e-07 |  |" in text  # of a type without a known roof
    assert "The losses of float32 are those of baseline to 2.5e-05 of them." in text
    failed = planted(memory_baseline=())
    failed = replace(failed, rows=(*failed.rows, Measurement("memory", "float32", 512, (), "bytes", note="killed")))
    assert "| baseline | failed |" in speed.markdown(failed)
    assert "float32: killed." in speed.markdown(failed)
    for title in ("One update", "Peak memory", "Tracking", "Denoising", "Best rates"):
        assert f"**{title}" in text


def test_the_json_has_every_repeat_and_is_strict(planted):
    found = json.loads(json.dumps(speed.to_json(planted()), allow_nan=False))
    assert set(found) == {
        *("command", "settings", "machine", "versions", "seconds", "size", "goals", "roof", "measurements"),
    }
    row = next(one for one in found["measurements"] if one["part"] == "update" and one["case"] == "float32")
    assert row["values"] == [12.0, 15.0, 13.0] and row["median"] == 13.0 and row["unit"] == "seconds"
    assert row["flops"]["forward"] == 600
    assert [goal["reached"] for goal in found["goals"]].count(False) == 1
    assert found["settings"]["repeats"] == 5 and found["machine"]["threads"] == 1

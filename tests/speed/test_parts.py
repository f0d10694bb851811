"""Each part is measured; times are never asserted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dragsa import speed
from dragsa.speed.parts import in_turns
from dragsa.speed.problems import MODES
from dragsa.speed.report import GOALS
from dragsa.speed.tasks import memory_of


def test_a_process_that_ends_takes_its_comparison_with_it(tiny):
    task = {"task": "update", "mode": "float32", "masked": False, "size": 64}
    rows = in_turns("update", tiny, 64, lambda text: None, {"a": task, "b": {**task, "mode": "float8"}}, 1)
    assert [(row.case, row.values) for row in rows] == [("a", ()), ("b", ())]
    assert {row.note for row in rows} == {"b ended with code 1: KeyError: 'float8'"}


@pytest.mark.parametrize("name", MODES)
def test_the_memory_of_each_mode_is_that_of_an_update(name, tiny):
    for masked in (False, True):
        task = {"mode": name, "masked": masked, "size": 64}
        assert next(memory_of(tiny, task)) > 0


@pytest.mark.parametrize("part", ["update", "handles", "denoise", "whole", "fused", "tracking"])
def test_each_part_is_measured(part, tiny):
    found = speed.run(replace(tiny, only=(part,), modes=("baseline", "float32")))
    assert found.rows and {row.part for row in found.rows} == {part}
    assert all(len(row.values) >= 1 and min(row.values) > 0 for row in found.rows)
    wanted = {goal.over for goal in GOALS if goal.part == part and "bfloat16" not in str(goal.under)}
    assert wanted <= {row.case for row in found.rows}

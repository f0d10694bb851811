"""Each part is measured; times are never asserted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dragsa import speed
from dragsa.speed.problems import MODES
from dragsa.speed.report import GOALS
from dragsa.speed.tasks import memory_of, one_handle_of


@pytest.mark.parametrize("name", MODES)
def test_the_memory_of_each_mode_is_that_of_an_update(name, tiny):
    for masked in (False, True):
        task = {"mode": name, "masked": masked, "size": 64}
        assert next(memory_of(tiny, task)) > 0


@pytest.mark.parametrize("part", ["update", "handles", "denoise", "whole", "tracking"])
def test_each_part_is_measured(part, tiny):
    """Of an update one mode is: each mode, with a mask and without, is a process of its own, of some seconds."""
    modes = ("baseline",) if part == "update" else ("baseline", "float32")
    found = speed.run(replace(tiny, only=(part,), modes=modes))
    assert found.rows and {row.part for row in found.rows} == {part}
    assert all(len(row.values) >= 1 and min(row.values) > 0 for row in found.rows)
    wanted = {goal.over for goal in GOALS if goal.part == part and "bfloat16" not in str(goal.under)}
    assert wanted <= {row.case for row in found.rows}


@pytest.mark.parametrize("dense", [True, False])
def test_the_loss_of_one_handle_is_timed_as_tracking_is(dense, tiny):
    lap = next(one_handle_of(tiny, {"task": "fused", "size": 64, "dense": dense}))
    assert lap.total > 0 and lap.loss is None

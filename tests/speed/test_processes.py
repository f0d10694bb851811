"""Child processes answer, and say why they end."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from dragsa.speed.laps import interleaved
from dragsa.speed.machine import peak_memory
from dragsa.speed.processes import ChildError, children, in_child
from dragsa.speed.tasks import updates_of


def test_peak_memory_is_of_the_process_alone(tiny):
    """A child of a large process is not billed for it."""
    held = torch.ones(100_000_000)
    task = {"task": "memory", "mode": None, "size": 64}
    small = in_child(task, tiny)
    assert peak_memory("cpu") > held.nbytes + small / 2
    assert 50e6 < small < 600e6


def test_a_child_that_fails_says_why(tiny):
    with pytest.raises(ChildError, match=r"ended with code 1: KeyError: 'float8'"):
        in_child({"task": "memory", "mode": "float8", "size": 64, "masked": False}, tiny)


def test_laps_of_a_process_of_its_own_are_the_loops(tiny):
    task = {"task": "update", "mode": "float32", "masked": False, "size": 64}
    expected = [lap.loss for lap in islice(updates_of(tiny, task), 3)]
    with children({"one": task, "other": task}, tiny) as cases:
        laps = interleaved(cases, 2, lambda text: None, "")
    for case in ("one", "other"):
        assert [lap.loss for lap in laps[case]] == pytest.approx(expected[1:], rel=1e-5)
        assert set(laps[case][0].seconds) == {"forward", "loss", "backward", "optimiser", "tracking"}

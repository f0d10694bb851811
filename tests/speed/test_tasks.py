"""Child processes answer, and say why they end."""

from __future__ import annotations

from itertools import islice, repeat

import pytest
import torch

from dragsa.speed.laps import Lap, in_turns
from dragsa.speed.machine import peak_memory
from dragsa.speed.tasks import child, children, updates_of


def test_peak_memory_is_of_the_process_alone(tiny):
    """A child of a large process is not billed for it."""
    held = torch.ones(100_000_000)
    task = {"task": "memory", "mode": None, "size": 64}
    small = next(child(task, tiny))
    assert peak_memory("cpu") > held.nbytes + small / 2
    assert 50e6 < small < 600e6


def test_a_process_that_fails_says_why_and_takes_its_comparison_with_it(tiny):
    task = {"task": "update", "mode": "float8", "masked": False, "size": 64}
    cases = {"a": repeat(Lap({"seconds": 1.0})), **children({"b": task}, tiny)}
    rows = in_turns("update", 64, cases, 1, lambda text: None)
    assert [(row.case, row.values) for row in rows] == [("a", ()), ("b", ())]
    assert {row.note for row in rows} == {"b ended with code 1: KeyError: 'float8'"}


def test_laps_of_a_process_of_its_own_are_the_loops(tiny):
    task = {"task": "update", "mode": "float32", "masked": False, "size": 64}
    expected = [lap.loss for lap in islice(updates_of(tiny, task), 3)]
    (row,) = in_turns("update", 64, children({"one": task}, tiny), 2, lambda text: None)
    assert list(row.losses) == pytest.approx(expected[1:], rel=1e-5)
    assert set(row.parts) == {"forward", "loss", "backward", "optimiser", "tracking"}

"""The ten exercises: each changes the drag and has an answer; one sheet is made of them."""

import math
from dataclasses import replace
from pathlib import Path

import exercises
import pytest
from PIL import Image

import dragsa
from dragsa import pictures

FEW = replace(exercises.BASE, size=64, steps=17, drag=replace(exercises.LOOP, updates=2))


def test_each_exercise_changes_the_picture_and_the_sheet_has_all(tiny_folder: Path) -> None:
    panels = exercises.answers(dragsa.load(tiny_folder), FEW)
    assert len(panels) == 12 and len(exercises.EXERCISES) == 10
    base = panels[1][1]
    same = {n for n, (_, picture) in enumerate(panels[2:], start=1) if picture.tobytes() == base.tobytes()}
    assert same <= {7}  # two updates are too few for tracking to differ
    sheet = exercises.sheet_of(panels)
    assert sheet.height > 2 * 128 and sheet.width > 3 * 128


def test_a_check_can_fail() -> None:
    near = exercises.Outcome(Image.new("RGB", (8, 8)), 2.0, 1000, 1.0, 10, 1.0)
    far = exercises.Outcome(Image.new("RGB", (8, 8)), 30.0, 500, 5.0, 30, 20.0)
    for exercise in exercises.EXERCISES:
        assert exercise.check(near, far) is not exercise.check(far, near), exercise.question
        assert not exercise.check(near, near)


def test_what_is_measured_of_a_picture() -> None:
    source = pictures.open_picture(exercises.DISC)
    as_it_is = exercises.outcome_of(source, 3, 0.5)
    assert as_it_is.left == pytest.approx(math.dist(exercises.HANDLE, exercises.TARGET), abs=1)
    assert (as_it_is.ground, as_it_is.updates, as_it_is.tracked_left) == (0, 3, 0.5)
    green = exercises.outcome_of(Image.new("RGB", source.size, (0, 255, 0)), 0, 0.0)
    assert (green.left, green.red) == (math.inf, 0) and green.ground > 10

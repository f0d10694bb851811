"""The ten exercises: each changes the drag and has an answer; one sheet is made of them."""

import contextlib
import math
import shlex
from pathlib import Path

import exercises
import pytest
from PIL import Image

import dragsa
from dragsa import cli, pictures

ROOT = Path(__file__).parents[2]
FEW = "--size 64 --updates 2"


def test_each_exercise_changes_the_picture_and_the_sheet_has_all() -> None:
    sd = dragsa.load(ROOT / "weights" / "small")
    panels = exercises.answers(sd, FEW)
    assert len(panels) == 12 and len(exercises.EXERCISES) == 10
    base = panels[1][1]
    same = {n for n, (_, picture) in enumerate(panels[2:], start=1) if picture.tobytes() == base.tobytes()}
    assert same <= {7}  # two updates are too few for tracking to differ
    sheet = exercises.sheet_of(panels)
    assert sheet.height > 2 * 128 and sheet.width > 3 * 128


def test_the_command_to_try_by_hand_makes_the_sheets_pictures(tmp_path: Path) -> None:
    _, command, *questions = exercises.questions().splitlines()
    assert command.startswith("dragsa edit ") and len(questions) == 20
    few = f"{FEW} --steps 4 --drag-step 2 --control-step 2"
    with contextlib.chdir(ROOT):
        assert cli.main([*shlex.split(f"{command} {few} --lam 0")[1:], "--out", str(tmp_path / "by_hand.png")]) == 0
    sd = dragsa.load(ROOT / "weights" / "small")
    sources: exercises.Sources = {}
    as_it_is, changed = (exercises.make(sd, options, sources).picture for options in (few, f"{few} --lam 0"))
    by_hand = Image.open(tmp_path / "by_hand.png")
    assert changed.tobytes() == by_hand.tobytes() != as_it_is.tobytes()


def test_a_check_can_fail() -> None:
    near = exercises.Outcome(Image.new("RGB", (8, 8)), 2.0, 1000, 1.0, 10, 1.0)
    far = exercises.Outcome(Image.new("RGB", (8, 8)), 30.0, 500, 5.0, 30, 20.0)
    for exercise in exercises.EXERCISES:
        assert exercise.check(near, far) is not exercise.check(far, near), exercise.question
        assert not exercise.check(near, near)


def test_what_is_measured_of_a_picture() -> None:
    source = pictures.open_picture(ROOT / exercises.DISC)
    as_it_is = exercises.outcome_of(source, 3, 0.5)
    assert as_it_is.left == pytest.approx(math.dist(exercises.HANDLE, exercises.TARGET), abs=1)
    assert (as_it_is.ground, as_it_is.updates, as_it_is.tracked_left) == (0, 3, 0.5)
    green = exercises.outcome_of(Image.new("RGB", source.size, (0, 255, 0)), 0, 0.0)
    assert (green.left, green.red) == (math.inf, 0) and green.ground > 10

"""Subjects of the reproduction: what is asked of them, and what is measured of their results."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from dragsa.evaluation import art_cases, quality, scenes, subjects
from dragsa.pictures import images


def test_faces_are_to_be_recoloured_and_turned_right() -> None:
    found = subjects.turning_faces(3, 64, seed=42)
    assert [s.name for s in found] == ["face-00", "face-01", "face-02"]
    assert [s.identity for s in subjects.turning_faces(2, 64, seed=42)] == [s.identity for s in found[:2]]
    for subject in found:
        case = subject.case
        assert case is not None and case.before.shape == "face" and subject.target_prompt == scenes.caption(case.before)
        assert case.after.yaw - case.before.yaw >= subjects.LEAST_TURN - 1e-9
        assert replace(case.after, yaw=case.before.yaw) == case.before
        nose = subject.drags[0]
        assert nose[1][0] > nose[0][0] + 2
        own = next(c for c in scenes.SKINS if c in subject.prompt.split()[1])
        as_it_was = images.to_picture(scenes.draw(replace(case.before, colour=own), 64))
        assert subject.picture is not None and subject.picture.tobytes() == as_it_was.tobytes()
        assert own not in (case.before.colour, case.before.ground) and case.before.colour != case.before.ground


def test_a_generated_face_is_found_where_it_is() -> None:
    subject = subjects.generated_faces(1, seed=42)[0]
    assert subject.shown is not None and "looking left" in subject.prompt and subject.picture is None
    drawn = replace(subject.shown, x=0.45, y=0.55, size=0.6, yaw=math.radians(-25))
    asked = subjects.found_face(subject, images.to_picture(scenes.draw(drawn, 128)))
    assert asked is not None and asked.case is not None
    at, goal = (scenes.keypoints(scene, 128) for scene in (drawn, replace(drawn, yaw=drawn.yaw + subjects.TURN)))
    for name, (handle, target) in zip(("nose", "left eye", "right eye", "mouth"), asked.drags, strict=True):
        assert math.dist(handle, at[name]) < 1.5 and math.dist(target, goal[name]) < 2
    assert asked.case.before.colour != drawn.colour
    empty = images.to_picture(scenes.draw_ground(drawn, 128))
    assert subjects.found_face(subject, empty) is None


def test_objects_change_their_shape_by_the_prompt() -> None:
    for subject in subjects.restyled("drawn", 4, 64, seed=42):
        one, other = subject.prompt.split(), (subject.target_prompt or "").split()
        assert [n for n, pair in enumerate(zip(one, other, strict=True)) if len(set(pair)) > 1] == [2]
        assert other[2] in ("star", "disc") and subject.case is None


def test_things_of_artwork_become_others_by_the_prompt_in_their_style() -> None:
    found = subjects.restyled("artwork", 4, 64, seed=42)
    assert [subject.name for subject in found] == ["thing-00", "thing-01", "thing-02", "thing-03"]
    for subject in found:
        (one, *rest), (other, *same) = (
            words.split(" in ", 1) for words in (subject.prompt, subject.target_prompt or "")
        )
        assert one != other and rest == same and subject.case is None and len(subject.drags) == 5
        assert art_cases.novelty(other.removeprefix("a ").replace(" ", "-"), rest[0].split()[0]) == "seen"


def test_scenes_of_artwork_come_with_nothing_asked() -> None:
    asked, plain = subjects.benchmark("artwork", 7, 64, seed=42), subjects.any_scenes("artwork", 7, 64, seed=42)
    assert [one.name for one in asked] == [one.name for one in plain]
    assert len({one.name.partition("-")[0] for one in asked}) == 6
    assert all(
        one.drags and not other.drags and one.picture == other.picture for one, other in zip(asked, plain, strict=True)
    )


def test_figures_of_source_and_truth() -> None:
    subject = subjects.benchmark("drawn", 1, 128, seed=42)[0]
    assert subject.case is not None and subject.picture is not None
    model: Any = None  # none is asked where the truth is known
    idle = subjects.measure(model, subject, subject.picture, subject.picture, 128)
    done = subjects.measure(model, subject, subject.picture, subject.case.truth, 128)
    assert idle["share"] == pytest.approx(1, abs=0.1) and done["share"] < 0.1
    assert idle["changed"] == 0 < done["changed"] and idle["background"] == done["background"] == 0
    # Where the source was generated there is no exact ground: what counts is what was changed outside of the mask.
    lit = [replace(scene, slope=(0.08, 0.08)) for scene in (subject.case.before, subject.case.after)]
    own = replace(subject, shown=subject.case.before, case=replace(subject.case, before=lit[0], after=lit[1]))
    assert subjects.measure(model, own, subject.picture, subject.picture, 128)["background"] == 0
    shifted = Image.eval(subject.picture, lambda level: min(255, level + 5))
    assert subjects.measure(model, own, subject.picture, shifted, 128)["background"] == pytest.approx(5, abs=0.5)
    halved = quality.difference(Image.new("RGB", (4, 2)), Image.new("RGB", (4, 2), (30, 0, 0)))
    assert halved == pytest.approx(10)

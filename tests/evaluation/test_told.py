"""What an edit says of its own result: right of the truth, wrong of another place, and nothing where none can tell."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from PIL import Image

from dragsa.evaluation import art_cases, cases, told
from dragsa.evaluation.edits import Edit

FACE = next(case for case in cases.cases("figures", 1) if case.kind == "turn")
ARTWORK = {case.kind: case for case in art_cases.list_cases("figures", 1)}
ART, TWO = ARTWORK["move"], ARTWORK["two"]


def figures(case: Edit, result: Image.Image, scene: Any, found: bool = True) -> dict[str, float | None]:
    return told.figures(result, case, "five", {"scene": asdict(scene), "found": found})


@pytest.mark.parametrize("case", [ART, FACE], ids=["artwork", "a face"])
def test_of_the_truth_the_edit_says_the_right_places(case: Edit) -> None:
    of_truth = figures(case, case.truth, case.after)
    assert of_truth["told_right"] == 1 and of_truth["told_sure"]


def test_a_place_far_from_the_measured_one_is_wrong() -> None:
    thing = ART.after.thing
    for pixels, right in ((1.5, 1.0), (2.5, 0.0)):
        aside = replace(ART.after, thing=replace(thing, x=thing.x + pixels / ART.size))
        assert figures(ART, ART.truth, aside)["told_right"] == right


def test_of_what_cannot_be_measured_nothing_is_said() -> None:
    nothing = {"told_sure": None, "told_right": None}
    assert figures(ART, ART.truth, ART.after, found=False) == nothing
    names = {name for name in TWO.handle_names("five") if TWO.is_measurable(name, TWO.after)}
    assert len(names) == 5 and not any(name.startswith("neighbour") for name in names)


def test_of_a_disc_the_middle_counts_and_of_a_turned_face_its_features() -> None:
    moves = {case.before.shape: case for case in cases.cases() if case.kind == "move"}
    disc, face = moves["disc"], moves["face"]
    assert [name for name in disc.handle_names("five") if disc.is_measurable(name, disc.after)] == ["centre"]
    assert all(face.is_measurable(name, face.after) for name in face.handle_names("five"))
    turned = replace(face.after, yaw=face.before.yaw + 0.1)
    assert not any(face.is_measurable(name, turned) for name in face.handle_names("five"))
    assert face.is_measurable("nose", turned)


def test_nothing_sure_is_nothing_wrong() -> None:
    even = Image.new("RGB", ART.source.size)
    assert figures(ART, even, ART.after) == {"told_sure": 0.0, "told_right": 1.0}

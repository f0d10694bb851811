"""The evaluator must find what is there, say so where nothing is, and never look at the truth to find it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dragsa.evaluation import cases, edits, figures, fit, quality, scenes
from dragsa.pictures import images

ONE_OF_EACH = cases.cases("figures", limit=1)
BY_KIND = {case.kind: case for case in ONE_OF_EACH}


def test_the_truth_is_not_looked_at() -> None:
    case = BY_KIND["move"]
    misled = replace(case, after=replace(case.after, x=0.5, y=0.5))
    assert figures.measure(case.truth, case)["scene"] == figures.measure(case.truth, misled)["scene"]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.kind)
def test_the_truth_is_all_right_and_the_source_is_not_moved(case: cases.Case) -> None:
    truth, source = figures.measure(case.truth, case), figures.measure(case.source, case)
    assert truth["found"] and truth["share"] < 0.03 and truth["overlap"] > 0.999
    assert truth["shape"] > 0.95 and truth["object_colour"] < 1
    assert truth["truth_ssim"] == pytest.approx(1) and truth["truth_db"] == quality.BEST_DB
    assert source["share"] == pytest.approx(1, abs=0.02) and source["all_left"] > 3
    assert source["background_error"] == truth["background_error"] == 0
    assert source["truth_db"] < 25 and source["truth_ssim"] < 0.97
    if case.kind in ("move", "two", "protect"):
        assert source["overlap"] < 0.6


def test_an_object_that_is_gone_counts_as_not_moved() -> None:
    case = BY_KIND["move"]
    empty = images.to_picture(scenes.draw_ground(case.before))
    found = figures.measure(empty, case)
    assert not found["found"] and found["share"] == 1 and found["object_colour"] is None
    assert found["overlap"] < 0.05 and found["shape"] == 0


def test_a_face_without_a_nose_counts_as_not_turned() -> None:
    case = BY_KIND["turn"]
    picture, (x, y) = scenes.draw(case.after), case.points(case.after)["nose"]
    skin = torch.tensor(scenes.PALETTE[case.before.colour])[:, None, None] * 2 - 1
    radius = scenes.NOSE_WIDTH * case.after.size / 2 * 128 + 1
    found = figures.measure(images.to_picture(torch.lerp(picture, skin, fit.disc(128, x, y, radius))), case)
    assert found["found"] and found["nose_found"] is False and found["share"] == 1


def test_a_head_that_is_pushed_aside_has_not_turned() -> None:
    case = BY_KIND["turn"]
    start, goal = case.points(case.before)["nose"], case.points(case.after)["nose"]
    aside = (goal[0] - start[0]) / 128, (goal[1] - start[1]) / 128
    pushed = replace(case.before, x=case.before.x + aside[0], y=case.before.y + aside[1])
    found = figures.measure(images.to_picture(scenes.draw(pushed)), case)
    assert found["share"] < 0.05  # the nose is there
    assert found["yaw_left"] == pytest.approx(1, abs=0.05)
    assert found["centre_moved"] == pytest.approx(math.dist(start, goal), abs=0.5) and found["overlap"] < 0.8
    turned = figures.measure(case.truth, case)
    assert turned["yaw_left"] < 0.03 and turned["centre_moved"] < 0.3


def test_half_of_two_objects_is_half() -> None:
    case = BY_KIND["two"]
    halfway = images.to_picture(scenes.draw(replace(case.before, x=case.after.x, y=case.after.y)))
    found = figures.measure(halfway, case)
    shares = {point["name"]: point["share"] for point in found["points"]}
    assert shares["centre"] < 0.05 and shares["neighbour centre"] == pytest.approx(1, abs=0.05)
    assert found["share"] == pytest.approx(0.5, abs=0.05)


def test_what_becomes_of_a_protected_neighbour_is_told() -> None:
    case = BY_KIND["protect"]
    beside = case.after.neighbour
    assert beside is not None
    assert figures.measure(case.truth, case)["neighbour_error"] == 0
    elsewhere = replace(case.after, neighbour=replace(beside, x=beside.x + 3 / 128, y=beside.y + 4 / 128))
    found = figures.measure(images.to_picture(scenes.draw(elsewhere)), case)
    assert found["neighbour_moved"] == pytest.approx(5, abs=0.3) and found["neighbour_error"] > 3
    assert found["share"] < 0.05


def test_the_backgrounds_error_leaves_both_places_out() -> None:
    case = BY_KIND["move"]
    inside = edits.dilated(torch.maximum(*(scenes.object_mask(s) for s in (case.before, case.after))), 2 / 128) > 0
    truth = images.to_tensor(case.truth)[0]
    spoilt = images.to_picture(torch.where(inside, -truth, truth))
    assert figures.measure(spoilt, case)["background_error"] == 0
    lighter = images.to_picture(torch.where(inside, truth, (truth * 127.5 + 5) / 127.5))
    assert figures.measure(lighter, case)["background_error"] == pytest.approx(5, abs=0.2)


def test_the_error_outside_of_the_mask_is_what_the_mask_forbids() -> None:
    case = BY_KIND["move"]
    truth = images.to_tensor(case.truth)[0]
    inside = images.to_picture(torch.where(case.mask > 0, -truth, truth))
    assert figures.measure(inside, case)["outside_error"] == 0
    outside = images.to_picture(torch.where(case.mask > 0, truth, (truth * 127.5 + 5) / 127.5))
    assert figures.measure(outside, case)["outside_error"] == pytest.approx(5, abs=0.2)


def test_an_objects_colour_is_judged_where_it_is() -> None:
    case = BY_KIND["move"]
    colour = next(name for name in scenes.PALETTE if name not in (case.before.colour, case.before.ground))
    share = 0.2
    true, other = (torch.tensor(scenes.PALETTE[name]) for name in (case.before.colour, colour))
    tinted = torch.lerp(scenes.draw(case.before), 2 * other[:, None, None] - 1, share * scenes.object_mask(case.before))
    expected = 255 * share * (true - other).abs().mean().item()
    found = figures.measure(images.to_picture(tinted), case)
    assert found["object_colour"] == pytest.approx(expected, rel=0.1)
    assert found["object_tint"] == pytest.approx(expected, rel=0.1)


def test_an_object_with_a_hole_keeps_its_tint() -> None:
    case = BY_KIND["move"]
    x, y = case.points(case.before)["centre"]
    hole = fit.disc(128, x, y, 0.2 * case.before.size * 128)
    holed = torch.lerp(scenes.draw(case.before), scenes.draw_ground(case.before), hole)
    found = figures.measure(images.to_picture(holed), case)
    assert found["object_colour"] > 10 and found["object_tint"] < 1


def test_a_result_of_another_size_is_refused() -> None:
    case = BY_KIND["move"]
    with pytest.raises(ValueError, match="move-00: a result of"):
        figures.measure(case.truth.resize((64, 64)), case)


def test_its_own_error_is_counted_by_kind() -> None:
    errors = figures.check([BY_KIND["move"], BY_KIND["two"]])
    assert {what: {kind: len(row) for kind, row in by.items()} for what, by in errors.items()} == {
        "source": {"move": 1, "two": 2},
        "truth": {"move": 1, "two": 2},
    }
    assert max(error for by in errors.values() for row in by.values() for error in row) < 0.3
    assert "| truth | all | 3 | 0.0" in figures.check_table(errors)

"""The figures of artwork say whose style a result shows, which thing, and what became of the hole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dragsa.evaluation import art_cases, art_figures, art_fit, art_scenes, artwork, quality
from dragsa.evaluation.artwork import STYLES
from dragsa.pictures import images

BY_KIND = {case.kind: case for case in art_cases.list_cases("figures", limit=1)}


@pytest.mark.parametrize("kind", ["move", "rotate", "part"])
def test_the_truth_is_all_right(kind: str) -> None:
    found = art_figures.measure(BY_KIND[kind].truth, BY_KIND[kind])
    assert found["found"] and found["share"] < 0.1 and found["overlap"] > 0.999
    assert found["truth_db"] == quality.BEST_DB and found["object_colour"] < 4
    assert found["hole_error"] in (None, 0) and found["background_error"] == 0
    assert found["style_kept"] == found["identity_kept"] == 1
    assert found["style_margin"] > 3 and found["identity_margin"] > 3
    if kind == "rotate":
        assert found["angle_left"] < 0.1


@pytest.mark.parametrize("kind", ["resize", "protect"])
def test_the_source_is_not_moved(kind: str) -> None:
    found = art_figures.measure(BY_KIND[kind].source, BY_KIND[kind])
    assert found["share"] == pytest.approx(1, abs=0.1) and found["truth_db"] < 35
    assert found["style_kept"] == found["identity_kept"] == 1 and found["background_error"] == 0
    if kind == "protect":
        assert found["hole_error"] > 20 and found["overlap"] < 0.7 and found["neighbour_moved"] < 0.5
    else:
        assert found["size_left"] > 0.9


def test_another_style_and_another_thing_are_told() -> None:
    case = BY_KIND["move"]
    thing = case.after.thing
    style = next(style for style in STYLES if style != thing.style)
    restyled = case.drawn(replace(case.after, thing=replace(thing, style=style)))
    found = art_figures.measure(images.to_picture(restyled), case)
    assert found["style_kept"] == 0 and found["style_margin"] < 0
    names = artwork.shipped().names
    other = names[(names.index(thing.name) + 2) % len(names)]
    exchanged = case.drawn(replace(case.after, thing=replace(thing, name=other)))
    (margin,) = art_figures.nearness(exchanged, case.after, [replace(thing, name=other)])
    assert margin < -3


def test_the_hole_is_where_the_thing_was_and_is_no_more() -> None:
    case = BY_KIND["move"]
    truth = images.to_tensor(case.truth)[0]
    before, after = (case.covered(scene.thing) for scene in (case.before, case.after))
    hole = (before > art_figures.SOLID) & (after <= art_figures.COVERED) & (case.mask > 0)
    lighter = images.to_picture(torch.where(hole, (truth * 127.5 + 5) / 127.5, truth))
    assert art_figures.measure(lighter, case)["hole_error"] == pytest.approx(5, abs=0.2)


def test_a_thing_that_is_gone_counts_as_not_moved() -> None:
    case = BY_KIND["move"]
    found = art_figures.measure(images.to_picture(art_scenes.draw_ground(case.before.ground)), case)
    assert not found["found"] and found["share"] == 1 and found["overlap"] < 0.05
    assert found["style_kept"] == found["identity_kept"] == 0
    assert found["style_margin"] is found["identity_margin"] is found["object_colour"] is None


def test_of_two_things_the_one_that_is_found_is_judged() -> None:
    case = next(case for case in art_cases.list_cases("settings", limit=1) if case.kind == "two")
    found = art_figures.measure(images.to_picture(case.drawn(replace(case.after, neighbour=None))), case)
    assert not found["found"] and found["style_kept"] == found["identity_kept"] == 0.5
    assert found["style_margin"] > 0 and found["identity_margin"] > 0 and found["object_colour"] is not None


def test_a_thing_is_as_near_as_itself_where_it_is_faded_and_blurred() -> None:
    case = BY_KIND["move"]
    faded = torch.lerp(images.to_tensor(case.truth)[0], art_scenes.draw_ground(case.before.ground), 0.25)
    spoilt = torch.nn.functional.avg_pool2d(faded[None], 5, stride=1, padding=2, count_include_pad=False)[0]
    found = art_fit.fit(spoilt, case.before)
    assert found.found and art_figures.nearness(spoilt, found.scene, [found.scene.thing]) == [0]


def test_a_result_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="move-00: a result of"):
        art_figures.measure(BY_KIND["move"].truth.resize((64, 64)), BY_KIND["move"])

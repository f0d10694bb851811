"""The figures of artwork say whose style a result shows, which thing, and what became of the hole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dragsa.evaluation import art_cases, art_figures, art_scenes, artwork, quality
from dragsa.evaluation.artwork import STYLES
from dragsa.pictures import images

BY_KIND = {case.kind: case for case in art_cases.list_cases("figures", limit=1)}


@pytest.mark.parametrize("case", BY_KIND.values(), ids=lambda case: case.kind)
def test_the_truth_is_all_right_and_the_source_is_not_moved(case: art_cases.ArtCase) -> None:
    truth, source = art_figures.measure(case.truth, case), art_figures.measure(case.source, case)
    assert truth["found"] and truth["share"] < 0.1 and truth["overlap"] > 0.999
    assert truth["truth_db"] == quality.BEST_DB and truth["object_colour"] < 4
    assert truth["hole_error"] in (None, 0) and truth["background_error"] == source["background_error"] == 0
    assert source["share"] == pytest.approx(1, abs=0.1) and source["truth_db"] < 35
    for figures in (truth, source):
        assert figures["style_kept"] == figures["identity_kept"] == 1
        assert figures["style_margin"] > 3 and figures["identity_margin"] > 3
    if case.kind in ("move", "two", "protect"):
        assert source["hole_error"] > 20 and source["overlap"] < 0.7
    if case.kind == "rotate":
        assert truth["angle_left"] < 0.1 < 0.9 < source["angle_left"]
    if case.kind == "resize":
        assert truth["size_left"] < 0.1 < 0.9 < source["size_left"]


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
    assert art_figures.nearness(exchanged, case.after, [replace(thing, name=other)]) < -3


def test_the_hole_is_where_the_thing_was_and_is_no_more() -> None:
    case = BY_KIND["move"]
    truth = images.to_tensor(case.truth)[0]
    before, after = (case.covered(scene.thing) for scene in (case.before, case.after))
    hole = (before > art_figures.SOLID) & (after <= art_figures.COVERED) & (case.mask > 0)
    spoilt = images.to_picture(torch.where(hole, truth, -truth))
    assert art_figures.measure(spoilt, case)["hole_error"] == 0
    lighter = images.to_picture(torch.where(hole, (truth * 127.5 + 5) / 127.5, truth))
    assert art_figures.measure(lighter, case)["hole_error"] == pytest.approx(5, abs=0.2)


def test_a_thing_that_is_gone_counts_as_not_moved() -> None:
    case = BY_KIND["move"]
    found = art_figures.measure(images.to_picture(art_scenes.draw_ground(case.before.ground)), case)
    assert not found["found"] and found["share"] == 1 and found["overlap"] < 0.05


def test_a_result_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="move-00: a result of"):
        art_figures.measure(BY_KIND["move"].truth.resize((64, 64)), BY_KIND["move"])

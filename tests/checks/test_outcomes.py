"""Where the handles' surroundings are in a result, and what is said of a drag that fell short."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from example_trace import example
from PIL import Image
from torch import Tensor

from dragsa.checks import outcomes
from dragsa.evaluation import cases


def test_places_of_drawn_scenes_are_the_truths() -> None:
    """Of the true results of moves the place is found to a pixel, or said not to be sure."""
    sure = 0
    for case in [case for case in cases.cases("figures", 6, cases.SIZE) if case.kind == "move"]:
        drags = case.drags("five")
        for picture, end in ((case.truth, 1), (case.source, 0)):
            found = outcomes.found_in(case.source, picture, drags)
            off = [math.dist(place, pair[end]) for place, pair in zip(found, drags, strict=True) if place is not None]
            sure += len(off)
            assert all(distance < 1 for distance in off)
    assert sure >= 20


def test_an_even_surface_and_a_vanished_patch_are_not_sure() -> None:
    even = Image.new("RGB", (64, 48), "teal")
    assert outcomes.found_in(even, even, [((20, 20), (40, 20))]) == (None,)
    spot = even.copy()
    spot.paste("white", (18, 18, 23, 23))
    assert outcomes.found_in(spot, even, [((20, 20), (40, 20))]) == (None,)
    assert outcomes.found_in(spot, spot, [((20, 20), (40, 20))]) == (pytest.approx((20, 20)),)


def test_large_pictures_are_found_in_their_own_pixels() -> None:
    before, after = (Image.new("RGB", (640, 480), "teal") for _ in range(2))
    before.paste("white", (180, 180, 230, 230))
    after.paste("white", (380, 220, 430, 270))
    (place,) = outcomes.found_in(before, after, [((205, 205), (405, 205))])
    assert place is not None and math.dist(place, (405, 245)) < 4


@pytest.mark.parametrize("stop", outcomes.ADVICE)
def test_a_drag_that_did_not_arrive_says_why_and_how_far(stop: str) -> None:
    said = outcomes.shortfall(example(found=(None,), stop=stop))
    assert said is not None and stop in said and outcomes.ADVICE[stop] in said
    assert "handle 1 is " in said and " px from its target" in said
    columns, rows = (one := example(found=(None,), stop=stop)).grid_size
    assert outcomes.shortfall(one, torch.ones(rows, columns)) == said
    assert "try a mask that is white at the handles" in str(outcomes.shortfall(one, torch.zeros(rows, columns)))


def test_a_drag_that_arrived_says_nothing_unless_the_picture_tells_otherwise() -> None:
    one = example(found=(None,), stop="reached")
    assert outcomes.shortfall(one) is None and outcomes.shortfall(example(found=(None,), stop=None)) is None
    assert outcomes.shortfall(example(found=(None,), stop="stopped")) is None
    targets = tuple(target for _, target in one.drags)
    assert outcomes.shortfall(replace(one, found=targets)) is None
    far = ((targets[0][0] + 40, targets[0][1]), *targets[1:])
    said = outcomes.shortfall(replace(one, found=far))
    assert said is not None and "in the result what was at handle 1 is 40.0 px from its target" in said


def test_handles_are_found_again_where_the_features_are() -> None:
    """A network that gives back its latents as features, of a source and of a target that has all of it moved."""

    def unet(latents: Tensor, t: Tensor, context: Tensor, taps: tuple[str, ...], until: str) -> Any:
        return SimpleNamespace(taps={taps[0]: latents})

    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, 96, 16, 20, generator=generator)
    handles, t, context = torch.tensor([[6.0, 5.0], [11.0, 9.0]]), torch.tensor(1), torch.zeros(2, 1, 1)
    pair = torch.cat([source, source.roll((-2, 5), dims=(2, 3))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = outcomes.find_again(unet, pair, t, context, handles, "block14+block15", (20, 16))  # type: ignore[arg-type]
    assert found.tolist() == [[11, 3], [16, 7]] and handles.tolist() == [[6, 5], [11, 9]]
    # Of several cells that are alike the nearest; of none like it, its own and a warning.
    pair[1] = torch.randn(96, 16, 20, generator=generator)
    odd = 0.01 + 0.0001 * torch.arange(7)  # further from it the nearer to the handle, by next to nothing
    pair[1, :, 3, 2:9] = source[0, :, 5, 6, None] + odd
    with pytest.warns(UserWarning, match="handle 2: the changed prompt left nothing like the source") as caught:
        found = outcomes.find_again(unet, pair, t, context, handles, "block14", (20, 16))  # type: ignore[arg-type]
    assert found.tolist() == [[6, 3], [11, 9]] and len(caught) == 1
    # Where it is nearly as like as anywhere it stays; where another cell is far more like it, it goes there.
    pair[1] = source[0] + 0.2 * torch.randn(96, 16, 20, generator=generator)
    for share, place in ((0.8, [6, 5]), (0.5, [2, 3])):
        pair[1, :, 3, 2] = torch.lerp(source[0, :, 5, 6], pair[1, :, 5, 6], share)
        found = outcomes.find_again(unet, pair, t, context, handles, "block14", (20, 16))  # type: ignore[arg-type]
        assert found.tolist() == [place, [11, 9]]

"""Pictures of tensors: each shows what it was given, at the place where it stands."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dragsa.config import EditConfig
from dragsa.pictures import looking


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def test_like_features_have_like_colours_and_others_other_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, 12, generator=generator)  # four features, a quarter of the map each
    features = kinds.T.reshape(1, 12, 2, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    picture = levels(looking.feature_picture(features))
    quarters = [picture[y : y + 2, x : x + 2].reshape(4, 3) for y in (0, 2) for x in (0, 2)]
    assert all((quarter == quarter[0]).all() for quarter in quarters)
    assert len({tuple(quarter[0]) for quarter in quarters}) == 4
    assert looking.feature_picture(features, (40, 40)).size == (40, 40)
    # The colours do not hang on the signs that a decomposition happens to give, and another map can have the same.
    directions = looking.principal_components(features)
    assert (directions.abs().max(dim=0).values == directions.max(dim=0).values).all()
    torch.testing.assert_close(directions.T @ directions, torch.eye(3, dtype=torch.float64))
    turned = levels(looking.feature_picture(features.flip(3), components=directions))
    assert (turned == picture[:, ::-1]).all()
    with pytest.raises(ValueError, match=r"features must be \(1, C, h, w\)"):
        looking.feature_picture(features[0])


def test_a_map_of_few_directions_is_drawn() -> None:
    features = torch.arange(6.0).view(1, 1, 2, 3)
    picture = levels(looking.feature_picture(features))
    assert (np.diff(picture[..., 0].ravel()) > 0).all()
    assert levels(looking.feature_picture(torch.ones(1, 2, 3, 3))).shape == (3, 3, 3)


def test_heat_goes_from_black_to_light() -> None:
    picture = levels(looking.heat_picture(torch.arange(12.0).view(3, 4)))
    brightness = picture.sum(axis=2).ravel()
    assert (np.diff(brightness) > 0).all() and brightness[0] == 0 and brightness[-1] > 700
    shared = levels(looking.heat_picture(torch.full((2, 2), 3.0), low=0.0, high=6.0))
    assert (shared == (225, 60, 60)).all()
    for wrong in (torch.ones(1, 2, 2), torch.full((2, 2), torch.nan)):
        with pytest.raises(ValueError, match="a map must be"):
            looking.heat_picture(wrong)


def test_a_map_lies_over_the_picture_edge_on_edge() -> None:
    hot = torch.zeros(2, 3)
    hot[1, 2] = 1.0
    picture = levels(looking.over_picture(Image.new("RGB", (30, 20), (0, 90, 0)), hot)).sum(axis=2)
    assert picture[10:, 20:].min() > 300 > 100 > picture[:10].max() and picture[10:, :20].max() < 100


def test_points_are_where_they_are() -> None:
    marked = looking.with_points(Image.new("RGB", (40, 30), "black"), {"one": [(30.0, 20.0)]}, scale=8)
    assert marked.size == (320, 240)
    drawn = np.argwhere(levels(marked)[80:].sum(axis=2) > 0)  # below the name
    centre = (drawn.min(axis=0) + drawn.max(axis=0)) / 2 + (80, 0)
    assert np.allclose(centre, (20.5 * 8 - 0.5, 30.5 * 8 - 0.5), atol=1)


def test_curves_are_as_high_as_their_values() -> None:
    picture = levels(looking.curve_picture({"loss": [8.0, math.nan, 4.0, 2.0, math.inf]}, (400, 200)))
    ink = np.argwhere((picture == (192, 24, 24)).all(axis=2))
    ink = ink[ink[:, 0] > 22]  # below the name
    first, last = ink[ink[:, 1] == ink[:, 1].min()], ink[ink[:, 1] == ink[:, 1].max()]
    top, bottom = 24, 200 - 24
    assert abs(first[:, 0].mean() - top) < 3 and abs(last[:, 0].mean() - (bottom - (bottom - top) * 2 / 8)) < 3
    with pytest.raises(ValueError, match="without a value"):
        looking.curve_picture({"loss": [math.nan], "other": []})


@pytest.mark.parametrize("prompt", [False, True])
def test_the_time_line_is_to_scale(prompt: bool) -> None:
    """Level k of T is at (T - k) / T of the way; the drag is red, control is blue, and begins where both are there."""
    config = EditConfig.paper(steps=20, drag_step=10, control_step=4)
    picture = levels(looking.timeline_picture(config, prompt))
    ends = np.flatnonzero((picture == (64, 64, 64)).all(axis=2).sum(axis=0))  # of the inversion's arrow, and its name
    assert ends.max() in (889, 890)
    at = {level: 890 - 790 * level // 20 for level in (20, 16, 10, 0)}
    red, blue, light = (
        np.argwhere((picture == colour).all(axis=2)) for colour in ((192, 24, 24), (24, 80, 192), (216, 230, 250))
    )
    dot = [row for row in red if 207 <= row[0] <= 210 and 90 < row[1] < 870]  # above the edit's line, behind its name
    assert {at[10] - 8 < x < at[10] + 8 for _, x in dot} == {True} and len(dot) > 20
    assert light[:, 1].min() == pytest.approx(at[16] if prompt else at[10], abs=2) and light[:, 1].max() == 890
    assert blue[blue[:, 0] == 148, 1][1:].min() >= 8
    line = red[red[:, 0] == 214, 1]
    assert line[line > 90].min() == pytest.approx(at[20] if prompt else at[10] - 7, abs=2)
    never = levels(looking.timeline_picture(EditConfig.paper(steps=20, control_step=None), prompt))
    assert not (never == (216, 230, 250)).all(axis=2).any()

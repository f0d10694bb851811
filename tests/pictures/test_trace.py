import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dragsa.config import EditConfig
from dragsa.pictures import trace


def example(**changes: object) -> trace.Trace:
    """A drag of 30 px to the right in a picture of 400×200, two updates; the grid has a cell for 2×4 pixels."""
    given = trace.Trace(
        config=EditConfig.paper(),
        seed=42,
        prompt="a disc",
        target_prompt=None,
        generated=False,
        picture_size=(400, 200),
        working_size=(400, 100),
        grid_size=(200, 50),
        weights="nowhere",
        drags=(((100.0, 100.0), (130.0, 100.0)),),
        losses=(0.5, 0.25),
        handles=(((100.0, 100.0),), ((110.0, 120.0),)),
        tracked=((127.0, 104.0),),
        stop="budget",
        seconds={"drag": 1.5},
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def test_distances_in_pixels_and_cells() -> None:
    given = example()
    assert given.distances_px == ((30.0,), (np.hypot(20, 20),))
    assert given.distances == ((15.0,), (np.hypot(10, 5),))


def test_json_holds_every_number_and_is_strict() -> None:
    value = trace.to_json(example(losses=(0.5, float("nan")), seconds={"drag": float("inf")}))
    text = json.dumps(value, allow_nan=False)
    assert json.loads(text) == value
    assert value["config"]["drag"]["tap"] == "block14" and value["config"]["steps"] == 50
    assert value["drags"] == [
        {
            "handle": [100, 100],
            "target": [130, 100],
            "distance_px": 30,
            "tracked": [127, 104],
            "tracked_distance_px": 5,
            "tracked_distance_cells": np.hypot(1.5, 1),
        }
    ]
    assert value["updates"][0] == {
        "loss": 0.5,
        "handles": [[100, 100]],
        "distances_px": [30],
        "distances_cells": [15],
    }
    assert value["updates"][1]["loss"] is None and value["seconds"] == {"drag": None}
    assert value["versions"]["torch"].startswith("2.")


def test_json_of_an_edit_without_drags() -> None:
    value = trace.to_json(example(drags=(), losses=(), handles=(), tracked=(), stop=None, generated=True))
    assert value["drags"] == value["updates"] == [] and value["stop"] is None and value["source"] == "generated"


def test_path_is_drawn_where_it_went() -> None:
    ground = Image.new("RGB", (400, 200), (0, 128, 0))
    pixels = np.asarray(trace.draw_path(ground, example())).astype(int)
    assert pixels.shape == (200, 400, 3)
    red, green, blue = pixels[100, 100]
    assert red > 200 and green < 80 and blue < 80  # the start
    red, green, blue = pixels[112, 106]
    assert red > 200 and green < 120 and blue > 160  # on the way to (110, 120)
    ring = pixels[100, 122:139]
    assert (ring[:, 2] > 200).any() and tuple(pixels[100, 130]) == (0, 128, 0)  # round the target, not over it
    far = pixels.copy()
    far[85:135, 85:145] = (0, 128, 0)
    assert (far == (0, 128, 0)).all()


def test_path_scales_with_the_picture() -> None:
    ground = Image.new("RGB", (400, 200), (0, 128, 0))
    pixels = np.asarray(trace.draw_path(ground, example(), scale=3)).astype(int)
    assert pixels.shape == (600, 1200, 3)
    assert pixels[301, 301, 0] > 200 and pixels[301, 301, 1] < 80
    with pytest.raises(ValueError, match="the picture is"):
        trace.draw_path(Image.new("RGB", (10, 10)), example())


def test_no_drag_draws_nothing() -> None:
    ground = Image.new("RGB", (400, 200), (0, 128, 0))
    drawn = trace.draw_path(ground, example(drags=(), losses=(), handles=(), tracked=()))
    assert drawn is not ground and np.array_equal(np.asarray(drawn), np.asarray(ground))


def test_sheet_is_readable_and_complete() -> None:
    panels = [("one", Image.new("RGB", (128, 96), "red")), ("two " * 30, Image.new("L", (64, 96), 80))]
    whole = np.asarray(trace.sheet(panels)).astype(int)
    red = (whole == (255, 0, 0)).all(2)
    grey = (whole == 80).all(2)
    assert red.sum() == 384 * 512 and grey.sum() == 384 * 256
    top = red.any(1).argmax()
    assert (whole[:top, : 512 + 20].min(2) < 100).any()  # a caption over the first picture
    right = whole[:top, red.any(0).nonzero()[0].max() + 20 :]
    assert (right.min(2) < 100).any() and (right[:, -5:] == 255).all()  # the second is wrapped, not cut by the edge
    with pytest.raises(ValueError, match="no pictures"):
        trace.sheet([])


def test_sheet_of_large_pictures_keeps_their_pixels() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (500, 300, 3), dtype=np.uint8))
    whole = np.asarray(trace.sheet([("", picture)]))
    assert any(
        np.array_equal(whole[y : y + 500, x : x + 300], np.asarray(picture))
        for y in range(whole.shape[0] - 499)
        for x in range(whole.shape[1] - 299)
    )

import json

import numpy as np
from example_trace import example

from dragsa.pictures import trace


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

"""What an edit says of its own result, held against where things are measured to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from dragsa.checks import outcomes
from dragsa.evaluation.edits import Edit

NEAR = 2.0  # pixels between the two, at most


def figures(result: Image.Image, case: Edit, variant: str, measured: Mapping[str, Any]) -> dict[str, float | None]:
    """Return how far the places that an edit gives for its handles (`outcomes.found_in`) can be trusted.

    measured: what `lists.measure` gives, whose `scene` says where things are. `told_sure`: the share of handles of
    which the edit says a place at all. `told_right`: 1 if each of these places is within `NEAR` of the measured one,
    also where there is none, else 0. Only handles count whose place in the result can be measured; None without one.
    """
    after = case.read_scene(measured["scene"])
    names, places = case.handle_names(variant), case.points(after)
    found = outcomes.found_in(case.source, result, case.drags(variant))
    said = [(place, places[name]) for name, place in zip(names, found, strict=True) if case.is_measurable(name, after)]
    if not measured["found"] or not said:
        return {"told_sure": None, "told_right": None}
    off = [math.dist(place, true) for place, true in said if place is not None]
    return {"told_sure": len(off) / len(said), "told_right": float(all(one <= NEAR for one in off))}

"""Figures of an edit's result: how near it is to the exact truth, whoever made the edit.

Where things are in a result is found by fitting the scene (`fit`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dragsa.evaluation import fit, quality, scenes, tables
from dragsa.evaluation.cases import Case
from dragsa.evaluation.edits import NEIGHBOUR, Edit, dilated
from dragsa.evaluation.fit import Fit
from dragsa.loading import StableDiffusion
from dragsa.pictures import Point, to_tensor


def measure(result: Image.Image, case: Case) -> dict[str, Any]:
    """Return every figure of one result that needs no model, for JSON; lengths in pixels, colours in 255ths.

    `points`: for each measured point how far it had to go (`asked`), how far it still is (`left`) and the share of the
    two; a point of something that cannot be found counts as not moved. `all_left`: the mean over all points of what
    moves. `background_*`: against the truth where neither it nor the source has an object, two pixels away from them.
    `outside_error`: the same where the mask lets nothing change. `object_colour`: of the objects where they are found,
    against their own colours there. `object_tint`: the same of the medians over the object's pixels, which a misshapen
    object leaves alone. `shape`: overlap of the found object with the truth's, when both stand at one
    place. `overlap`: the same where each stands. `neighbour_*`: what became of a protected neighbour. `centre_moved`:
    where the object should stay, how far it went. `yaw_left`: of a turn, the share of the angle; a head that is pushed
    aside takes its nose to the target without turning.
    """
    picture, truth = pair_of(result, case)
    found = fit.fit(picture, case.before)
    at = case.points(found.scene)
    there = {
        name: (found.neighbour_found if name.startswith(NEIGHBOUR) else found.found)
        and (name != "nose" or found.nose_found)
        for name in at
    }
    sides = (False, True) if case.kind == "two" else (False,)
    judged = [_object_figures(picture, truth, case, found, beside) for beside in sides]
    return {
        "found": found.found and (case.kind != "two" or found.neighbour_found),
        "nose_found": found.nose_found if case.kind == "turn" else None,
        **of_any(picture, truth, case, {name: point for name, point in at.items() if there[name]}),
        **{key: mean(one[key] for one in judged) for key in judged[0]},
        **_kind_figures(picture, truth, case, found),
        "scene": asdict(found.scene),
    }


def pair_of(result: Image.Image, case: Edit) -> tuple[Tensor, Tensor]:
    """Return a result and the truth, (3, H, W) each. Raises ValueError for a result of another size than the case's."""
    if result.size != (case.size, case.size):
        raise ValueError(f"{case.name}: a result of {result.size}, the case is of {(case.size, case.size)}")
    picture, truth = (to_tensor(p)[0] for p in (result, case.truth))
    return picture, truth


def of_any(picture: Tensor, truth: Tensor, case: Edit, at: Mapping[str, Point]) -> dict[str, Any]:
    """Return the figures that every list of cases has: where the points are, `at` those found, and errors of pixels."""
    before, asked = (case.points(scene) for scene in (case.before, case.after))
    left = {name: math.dist(at.get(name, before[name]), asked[name]) for name in before}
    ways = {name: math.dist(before[name], asked[name]) for name in before}
    points: list[dict[str, Any]] = [
        {"name": name, "asked": ways[name], "left": left[name], "share": left[name] / ways[name]}
        for name in case.measured
    ]
    covered = torch.stack([case.covered(one) for pair in case.moving for one in pair]).amax(dim=0)
    away = dilated(covered, 2 / 128) == 0
    return {
        "points": points,
        "left": mean(point["left"] for point in points),
        "share": mean(point["share"] for point in points),
        "all_left": mean(left[name] for name, way in ways.items() if way > 0.5),
        "background_db": quality.decibels(picture[:, away, None], truth[:, away, None]),
        "background_error": error(picture, truth, away),
        "outside_error": error(picture, truth, case.mask == 0),
        "truth_db": quality.decibels(picture, truth),
        "truth_ssim": quality.ssim(picture, truth),
    }


def _kind_figures(picture: Tensor, truth: Tensor, case: Case, found: Fit) -> dict[str, float | None]:
    """Return what is measured of edits of the case's kind alone: a neighbour that stays, a centre, a turn."""
    before, asked, at = (case.points(scene) for scene in (case.before, case.after, found.scene))
    figures: dict[str, float | None] = {}
    if case.kind == "protect" and case.before.neighbour is not None:
        inside = dilated(scenes.object_mask(case.before.neighbour, case.size), 1 / 128) > 0
        figures["neighbour_error"] = error(picture, truth, inside)
        centre = NEIGHBOUR + "centre"
        figures["neighbour_moved"] = math.dist(at[centre], before[centre]) if found.neighbour_found else None
    if case.kind in ("turn", "resize"):
        figures["centre_moved"] = math.dist(at["centre"], before["centre"]) if found.found else None
    if case.kind == "turn":
        turned = found.scene.yaw if found.nose_found else case.before.yaw
        figures["yaw_left"] = abs(turned - case.after.yaw) / abs(case.before.yaw - case.after.yaw)
        nose = fit.locate_nose(picture, case.before)
        figures["nose_left"] = None if math.isnan(nose.x) else math.dist(nose[:2], asked["nose"])
    return figures


def _object_figures(picture: Tensor, truth: Tensor, case: Case, found: Fit, beside: bool) -> dict[str, float | None]:
    """Return colour, shape and overlap of one of the objects."""
    size = case.size
    true, at = (s.neighbour if beside else s for s in (case.after, found.scene))
    if true is None or at is None:
        raise ValueError(f"{case.name} has no neighbour")
    colours, ground = fit.palette(case.before), scenes.draw_ground(replace(case.before, neighbour=None), size)

    def mine(pixels: Tensor) -> Tensor:
        return fit.own_colours(true, fit.memberships(pixels[None], ground, colours, sharpness=2)[0], colours)  # (H, W)

    seen = mine(picture)
    figures: dict[str, float | None] = {"object_colour": None, "object_tint": None, "shape": 0.0}
    figures["overlap"] = quality.iou(seen, mine(truth))
    if found.neighbour_found if beside else found.found:
        core = scenes.object_mask(at, size) > 0.99
        alone, moved = replace(at, neighbour=None), replace(true, x=at.x, y=at.y, neighbour=None)
        drawn = scenes.draw_over([alone, moved], ground)  # (2, 3, H, W)
        now, own = picture[:, core], drawn[0][:, core]  # (3, pixels)
        figures["object_colour"] = 127.5 * (now - own).abs().mean().item()
        figures["object_tint"] = 127.5 * (now.median(dim=1).values - own.median(dim=1).values).abs().mean().item()
        figures["shape"] = quality.iou(seen, mine(drawn[1]))
    return figures


def error(picture: Tensor, truth: Tensor, where: Tensor) -> float:
    """Return the mean difference of pictures (3, H, W) in 255ths, where a mask (H, W) says."""
    return 127.5 * (picture - truth)[:, where].abs().mean().item()


def mean(numbers: Iterable[float | None]) -> float | None:
    there = [number for number in numbers if number is not None and math.isfinite(number)]
    return sum(there) / len(there) if there else None


@torch.no_grad()
def check(listed: Sequence[Case], sd: StableDiffusion | None = None) -> dict[str, dict[str, list[float]]]:
    """Return how far the measured points are found from where they are: drawing -> kind -> pixels of each point.

    "source" and "truth" are the exact drawings, "… through the VAE" the same encoded and decoded by the model.
    """
    errors: dict[str, dict[str, list[float]]] = {}
    for case in listed:
        for name, scene, picture in (("source", case.before, case.source), ("truth", case.after, case.truth)):
            pictures, true = {name: to_tensor(picture)}, case.points(scene)  # (1, 3, H, W)
            if sd is not None:
                pictures[f"{name} through the VAE"] = sd.decode(sd.encode(pictures[name])).clamp(-1, 1)
            for what, drawn in pictures.items():
                found = fit.fit(drawn[0], case.before)
                at = case.points(found.scene)
                there = found.found and (case.kind != "turn" or found.nose_found)
                pixels_off = [math.dist(at[n], true[n]) if there else float(case.size) for n in case.measured]
                errors.setdefault(what, {}).setdefault(case.kind, []).extend(pixels_off)
    return errors


def check_table(errors: dict[str, dict[str, list[float]]]) -> str:
    """Return the evaluator's own error in pixels as a Markdown table."""
    rows = []
    for what, by_kind in errors.items():
        for kind, row in {**by_kind, "all": [e for each in by_kind.values() for e in each]}.items():
            high = sorted(row)[math.ceil(0.95 * len(row)) - 1]
            error = {"mean px": sum(row) / len(row), "95 % px": high, "most px": max(row)}
            rows.append({"picture": what, "kind": kind, "points": len(row), **error})
    return tables.markdown(rows)

"""Figures of an edit's result on a scene of artwork: how near it is to the exact truth, and whose style it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dragsa.evaluation import art_fit, art_scenes, artwork, figures, quality, tables
from dragsa.evaluation.art_cases import ArtCase
from dragsa.evaluation.art_fit import ArtFit
from dragsa.evaluation.art_scenes import ArtScene, Thing
from dragsa.evaluation.artwork import STYLES
from dragsa.evaluation.edits import NEIGHBOUR, dilated
from dragsa.loading import StableDiffusion
from dragsa.pictures import to_tensor

OTHERS = 4  # things that a result is compared with
LEAST_HOLE = 16  # pixels; a smaller hole is not reported
COVERED = 0.02  # the alpha of what a thing covers
SOLID = 0.9
NOT_FOUND: dict[str, float | None] = {  # what `_thing_figures` would say of a thing that was not found
    "object_colour": None,
    "style_kept": 0.0,
    "style_margin": None,
    "identity_kept": 0.0,
    "identity_margin": None,
}


def measure(result: Image.Image, case: ArtCase) -> dict[str, Any]:
    """Return every figure of one result that needs no model, for JSON; lengths in pixels, colours in 255ths.

    What `figures.of_any` returns, and: `overlap`, of what is not the ground in result and truth. `hole_error`: inside
    of the mask, where things were and are no more. `object_colour`: of the things where they are found, against their
    own colours there. `style_kept`: 1 if of the three styles' drawings of the thing, near the place that was found,
    the source's own is nearest to the result, else 0; `style_margin`: dB to it, less dB to the nearer of the others.
    `identity_kept` and `identity_margin`: the same against `OTHERS` other things in the same style. A thing that is not
    found has kept neither style nor identity, 0, and has no margins and no colour, None. `neighbour_*`: what
    became of a protected neighbour. `centre_moved`: where the thing should stay, how far it went. `angle_left`: of a
    rotation, the share of the angle. `size_left`: of a resize, the share of the change.
    """
    picture, truth = figures.pair_of(result, case)
    found = art_fit.fit(picture, case.before, case.after.thing.pull)
    at = {
        name: point
        for name, point in case.points(found.scene).items()
        if (found.neighbour_found if name.startswith(NEIGHBOUR) else found.found)
    }
    scenes = [(found.scene, found.found)]
    if case.kind == "two" and found.scene.neighbour is not None:
        beside = replace(found.scene, thing=found.scene.neighbour, neighbour=found.scene.thing)
        scenes.append((beside, found.neighbour_found))
    judged = [_thing_figures(picture, scene) if there else NOT_FOUND for scene, there in scenes]
    return {
        "novelty": case.novelty,
        "found": found.found and (case.kind != "two" or found.neighbour_found),
        "nose_found": None,
        **figures.of_any(picture, truth, case, at),
        **_ground_figures(picture, truth, case),
        **{key: figures.mean(one[key] for one in judged) for key in judged[0]},
        **_kind_figures(picture, truth, case, found),
        "scene": asdict(found.scene),
    }


def _ground_figures(picture: Tensor, truth: Tensor, case: ArtCase) -> dict[str, float | None]:
    """Return the overlap of what is not ground, and the error of the hole."""
    before, after = (torch.stack([case.covered(pair[n]) for pair in case.moving]).amax(dim=0) for n in (0, 1))
    ground = art_scenes.draw_ground(case.before.ground, case.size)
    contrast = (truth - ground).norm(dim=0)[after > SOLID].median()

    def not_ground(pixels: Tensor) -> Tensor:
        """As `fit.segment`: nothing below a fifth of the thing's contrast, all of it from a half on."""
        return (((pixels - ground).norm(dim=0) / contrast - 0.2) / 0.3).clamp(0, 1) * ours

    ours = torch.ones(case.size, case.size)
    if case.kind == "protect" and case.before.neighbour is not None:
        ours = 1 - dilated(case.covered(case.before.neighbour) > COVERED, 2 / 128)
    hole = (before > SOLID) & (after <= COVERED) & (case.mask > 0)
    return {
        "overlap": quality.iou(not_ground(picture), not_ground(truth)),
        "hole_error": figures.error(picture, truth, hole) if hole.sum() >= LEAST_HOLE else None,
    }


def _thing_figures(picture: Tensor, scene: ArtScene) -> dict[str, float | None]:
    """Return colour, style and identity of a scene's thing, which was found there."""
    thing = scene.thing
    own = _drawing(thing, scene, picture.shape[-1])
    core = art_scenes.draw_thing(thing, artwork.shipped(), picture.shape[-1])[3] > 0.99
    colour = figures.error(picture, own[0], core) if core.any() else None
    styles = [replace(thing, style=style) for style in STYLES if style != thing.style]
    names = artwork.shipped().names
    number = names.index(thing.name)
    others = [replace(thing, name=names[(number + n) % len(names)]) for n in range(1, OTHERS + 1)]
    figures_of = {"object_colour": colour}
    for word, margin in zip(("style", "identity"), nearness(picture, scene, styles, others), strict=True):
        figures_of |= {f"{word}_kept": float(margin > 0), f"{word}_margin": margin}
    return figures_of


def nearness(picture: Tensor, scene: ArtScene, *groups: Sequence[Thing]) -> list[float]:
    """Return dB of a picture (3, H, W) to a scene's own thing, less dB to the nearest drawing of each group of rivals.

    The thing is where it was found. Drawings fill their squares differently, so each rival, and the own thing like
    them, is brought to its best place, size and rotation near there. The own and a group are compared over the same
    pixels, those that any of them covers.
    """

    def best(thing: Thing) -> tuple[Tensor, Tensor]:
        return _drawing(art_fit.refined(picture, replace(scene, thing=thing)).thing, scene, picture.shape[-1])

    own, margins = best(scene.thing), list[float]()
    for rivals in groups:
        drawings = [own, *map(best, rivals)]
        covered = torch.stack([alpha for _, alpha in drawings]).amax(dim=0) > COVERED
        mine, *theirs = (quality.decibels(picture[:, covered, None], drawn[:, covered, None]) for drawn, _ in drawings)
        margins.append(mine - max(theirs))
    return margins


def _drawing(thing: Thing, scene: ArtScene, size: int) -> tuple[Tensor, Tensor]:
    """Return a thing over the scene's ground, (3, H, W) in [-1, 1], and its alpha (H, W)."""
    drawn = art_scenes.draw_thing(thing, artwork.shipped(), size)
    ground = art_scenes.draw_ground(scene.ground, size)
    return 2 * drawn[:3] - drawn[3] + (1 - drawn[3]) * ground, drawn[3]


def _kind_figures(picture: Tensor, truth: Tensor, case: ArtCase, found: ArtFit) -> dict[str, float | None]:
    """Return what is measured of edits of the case's kind alone: a neighbour or centre that stays, angle, size."""
    before, at = (case.points(scene) for scene in (case.before, found.scene))
    was, goal, now = (scene.thing for scene in (case.before, case.after, found.scene if found.found else case.before))
    figures_of: dict[str, float | None] = {}
    if case.kind == "protect" and case.before.neighbour is not None:
        inside = dilated(case.covered(case.before.neighbour) > COVERED, 1 / 128) > 0
        figures_of["neighbour_error"] = figures.error(picture, truth, inside)
        centre = NEIGHBOUR + "centre"
        figures_of["neighbour_moved"] = math.dist(at[centre], before[centre]) if found.neighbour_found else None
    if case.kind in ("rotate", "resize", "part"):
        middles = [art_scenes.to_picture(thing, 0, 0, case.size) for thing in (was, found.scene.thing)]
        figures_of["centre_moved"] = math.dist(*middles) if found.found else None
    if case.kind == "rotate":
        figures_of["angle_left"] = abs(now.rotation - goal.rotation) / abs(was.rotation - goal.rotation)
    if case.kind == "resize":
        figures_of["size_left"] = abs(now.size - goal.size) / abs(was.size - goal.size)
    return figures_of


@torch.no_grad()
def check(listed: Sequence[ArtCase], sd: StableDiffusion | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return how far things are found from where they are: drawing -> errors of each case.

    "source" and "truth" are the exact drawings, "… through the VAE" the same encoded and decoded by the model.
    """
    errors: dict[str, list[dict[str, Any]]] = {}
    for case in listed:
        for name, scene, picture in (("source", case.before, case.source), ("truth", case.after, case.truth)):
            pictures = {name: to_tensor(picture)}  # (1, 3, H, W)
            if sd is not None:
                pictures[f"{name} through the VAE"] = sd.decode(sd.encode(pictures[name])).clamp(-1, 1)
            for what, drawn in pictures.items():
                found = art_fit.fit(drawn[0], case.before, case.after.thing.pull)
                errors.setdefault(what, []).append({"case": case.name, "kind": case.kind, **_apart(case, scene, found)})
    return errors


def _apart(case: ArtCase, scene: ArtScene, found: ArtFit) -> dict[str, Any]:
    """Return the largest errors of the moving things: pixels of place, % of size, degrees, and pixels of points."""
    true, now = ([one.thing, one.neighbour] for one in (scene, found.scene))
    pairs = [(a, b) for a, b in zip(true, now, strict=True) if a is not None and b is not None][: len(case.moving)]
    points, at = case.points(scene), case.points(found.scene)
    return {
        "found": found.found and (case.kind != "two" or found.neighbour_found),
        "place": max(case.size * math.dist((a.x, a.y), (b.x, b.y)) for a, b in pairs),
        "size": max(100 * abs(b.size / a.size - 1) for a, b in pairs),
        "angle": max(math.degrees(abs(a.rotation - b.rotation)) for a, b in pairs),
        "points": max(math.dist(points[name], at[name]) for name in case.measured),
    }


def check_table(errors: dict[str, list[dict[str, Any]]]) -> str:
    """Return the evaluator's own errors as a Markdown table: means, and the 95 % quantile in brackets."""
    rows = []
    for what, listed in errors.items():
        for kind in (*dict.fromkeys(row["kind"] for row in listed), "all"):
            of_kind = [row for row in listed if kind in ("all", row["kind"])]
            line: dict[str, Any] = {"picture": what, "kind": kind, "cases": len(of_kind)}
            for heading, key in (
                ("place, px", "place"),
                ("size, %", "size"),
                ("angle, °", "angle"),
                ("points, px", "points"),
            ):
                numbers = sorted(row[key] for row in of_kind)
                high = numbers[math.ceil(0.95 * len(numbers)) - 1]
                line[heading] = f"{sum(numbers) / len(numbers):.2f} ({high:.2f})"
            line["not found"] = sum(not row["found"] for row in of_kind)
            rows.append(line)
    return tables.markdown(rows)

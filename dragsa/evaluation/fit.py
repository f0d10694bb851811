"""Finding a drawn scene in any picture: where its objects are, how large, and how they are turned.

`fit` draws objects at other places, sizes and angles until the drawing agrees with the picture. It starts from the
edit's source and from what the picture shows, never from the truth, and compares which colour of the scene each pixel
is nearest to, not how near, so that a result whose colours have drifted is found as well. `locate` goes by the object's
colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dragsa.evaluation import least_squares, quality, scenes
from dragsa.evaluation.least_squares import Numbers
from dragsa.evaluation.scenes import Scene

GRID = 64  # pixels of the pictures that are compared in the fit
STARTS = 3
STEPS = {"x": 0.004, "y": 0.004, "size": 0.004, "rotation": 0.03, "yaw": 0.03}  # of the finite differences
FURTHEST = {"x": 0.08, "y": 0.08, "size": 0.08, "rotation": 0.3, "yaw": 0.3}  # that one iteration may go
SMALLER, LARGER = 0.4, 2.2  # of the source's size, and nothing beyond is looked for
FURTHEST_YAW = math.radians(60)
SHOWN = 0.5  # of an object's area must show its colours; a nose's likewise


class Fit(NamedTuple):
    """`scene`: the source's, with objects as they were found. The rest says whether they were there to be found."""

    scene: Scene
    found: bool
    neighbour_found: bool  # False where the scene has none
    nose_found: bool  # False where the object is no face


Names = Sequence[tuple[bool, str]]  # of the numbers that are fitted: whether it is the neighbour's, and its name


def fit(picture: Tensor, before: Scene) -> Fit:
    """Return the scene of a picture (3, H, H) in [-1, 1] that shows `before`, but elsewhere and otherwise turned.

    Least squares over the memberships of the pixels (see `memberships`); all scenes of an iteration are drawn as one
    batch.
    """
    names = fitted(before)
    ground = scenes.draw_ground(replace(before, neighbour=None), GRID)  # (3, G, G)
    colours = palette(before)
    small = F.interpolate(picture[None], size=(GRID, GRID), mode="area")
    seen = memberships(small, ground, colours)  # (1, K, G, G)

    def residuals(rows: Tensor) -> Tensor:
        drawn = scenes.draw_over([placed(before, names, row) for row in rows.tolist()], ground)
        return (memberships(drawn, ground, colours) - seen).flatten(1)  # (B, N)

    rows = starts(before, names, seen[0], colours)
    rows = rows[residuals(rows).square().sum(dim=1).argsort()[:STARTS]]
    least, most = limits(before, names)
    steps, furthest = (torch.tensor([one[name] for _, name in names]) for one in (STEPS, FURTHEST))
    rows, cost = least_squares.descend(residuals, rows, Numbers(steps, furthest, least, most))
    scene = upright(placed(before, names, rows[cost.argmin()].tolist()), before)
    return Fit(scene, *shown(scene, seen[0], colours))


def fitted(scene: Scene) -> Names:
    """Return place and size of each object; the rotation of those that have one, and a face's yaw."""
    names = []
    for beside, one in ((False, scene), (True, scene.neighbour)):
        if one is not None:
            turning = {"disc": (), "face": ("rotation", "yaw")}.get(one.shape, ("rotation",))
            names += [(beside, name) for name in ("x", "y", "size", *turning)]
    return names


def placed(scene: Scene, names: Names, row: Sequence[float]) -> Scene:
    """Return the scene with other values of the numbers that are fitted."""
    own: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    for (beside, name), value in zip(names, row, strict=True):
        own[beside][name] = value
    neighbour = scene.neighbour if scene.neighbour is None else replace(scene.neighbour, **own[True])
    return replace(scene, **own[False], neighbour=neighbour)


def values(scene: Scene, names: Names) -> list[float]:
    return [getattr(scene.neighbour if beside else scene, name) for beside, name in names]


def limits(before: Scene, names: Names) -> Tensor:
    """Return the least and the greatest values that are looked at: (2, P)."""
    spans = []
    for (_, name), value in zip(names, values(before, names), strict=True):
        of_name = {
            "size": (SMALLER * value, LARGER * value),
            "rotation": (value - math.pi / 2, value + math.pi / 2),
            "yaw": (-FURTHEST_YAW, FURTHEST_YAW),
        }
        spans.append(of_name.get(name, (0.0, 1.0)))
    return torch.tensor(spans).T


def starts(before: Scene, names: Names, seen: Tensor, colours: Tensor) -> Tensor:
    """Return starts of the fit, (B, P): everything as in the source, or at its colours' densest place in the picture;
    the object's size, rotation and yaw as before, or some steps away."""
    found = replace(before, **densest(before, seen, colours))
    if before.neighbour is not None:
        found = replace(found, neighbour=replace(before.neighbour, **densest(before.neighbour, seen, colours)))
    places = [before, found]
    if before.neighbour is not None:
        places += [replace(before, neighbour=found.neighbour), replace(found, neighbour=before.neighbour)]
    half = scenes.half_sector(before.shape)
    shares = (0, -0.6, 0.6) if half else (0,)
    turned: list[dict[str, Any]] = [{"rotation": before.rotation + share * half} for share in shares]
    if before.shape == "face":
        turned += [{"yaw": math.radians(angle)} for angle in (-30, 0, 30)]
    sizes = [before.size * scale for scale in (1, 0.7, 1.35)]
    rows = [replace(place, **angles, size=size) for place in places for angles in turned for size in sizes]
    return torch.tensor([values(row, names) for row in rows])


def densest(scene: Scene, seen: Tensor, colours: Tensor) -> dict[str, Any]:
    """Return the place with most of an object's colours, in fractions of the width; nothing if they are nowhere."""
    place = densest_disc(own_colours(scene, seen, colours), 0.5 * scene.size * GRID)
    return {} if math.isnan(place.x) else {"x": (place.x + 0.5) / GRID, "y": (place.y + 0.5) / GRID}


def upright(scene: Scene, before: Scene) -> Scene:
    """Return the same drawing by the rotation nearest to the source's: a square turned by 90° is the same square."""
    changes: dict[str, Any] = {}
    if scene.neighbour is not None and before.neighbour is not None:
        changes["neighbour"] = upright(scene.neighbour, before.neighbour)
    if scene.shape in scenes.CORNERS:
        turned = math.remainder(scene.rotation - before.rotation, 2 * scenes.half_sector(scene.shape))
        changes["rotation"] = before.rotation + turned
    return replace(scene, **changes)


def shown(scene: Scene, seen: Tensor, colours: Tensor) -> tuple[bool, bool, bool]:
    """Return for object, neighbour and nose if most of each has its colours at its place in the scene."""

    def share(one: Scene, part: Tensor) -> float:
        inside = part > 0.5
        return own_colours(one, seen, colours)[inside].mean().item() if inside.any() else 0.0

    found = share(scene, scenes.object_mask(scene, GRID)) >= SHOWN
    beside = scene.neighbour
    neighbour = beside is not None and share(beside, scenes.object_mask(beside, GRID)) >= SHOWN
    nose = False
    if found and scene.shape == "face":
        place = scenes.keypoints(scene, GRID)["nose"]
        red = (colours == torch.tensor(scenes.NOSE)[:, None, None] * 2 - 1).all(dim=(1, 2, 3))
        near = disc(GRID, *place, 0.7 * scenes.NOSE_WIDTH * scene.size / 2 * GRID) > 0
        nose = bool(near.any()) and seen[red].sum(dim=0)[near].mean().item() >= SHOWN
    return found, neighbour, nose


def palette(scene: Scene) -> Tensor:
    """Return the colours of the scene's object and neighbour, each once: (K, 3, 1, 1) in [-1, 1]."""
    colours = [*_colours_of(scene), *(() if scene.neighbour is None else _colours_of(scene.neighbour))]
    return torch.tensor(list(dict.fromkeys(colours)))[..., None, None] * 2 - 1


def _colours_of(scene: Scene) -> list[tuple[float, float, float]]:
    return [scenes.PALETTE[scene.colour], *((scenes.NOSE, scenes.DARK) if scene.shape == "face" else ())]


def memberships(pictures: Tensor, ground: Tensor, colours: Tensor, sharpness: int = 1) -> Tensor:
    """Return each pixel's share, of (B, 3, H, W), in each colour (K, 3, 1, 1) against the others and the ground.

    (B, K, H, W) in [0, 1]: shares in 1 / distance² to the power of `sharpness`, so that a colour which has drifted
    still is its nearest one, and a mixture half and half is half of either. Sharper for masks, where a trace of an
    object's colour in much ground would add up; smoother for the fit, which follows slopes.
    """
    all_colours = torch.cat([ground[None], colours.expand(-1, -1, *ground.shape[1:])])  # (1 + K, 3, H, W)
    square = (pictures[:, None] - all_colours).square().sum(dim=2)  # (B, 1 + K, H, W)
    share = (square + 1e-3).pow(-sharpness)
    return share[:, 1:] / share.sum(dim=1, keepdim=True)


def own_colours(scene: Scene, seen: Tensor, colours: Tensor) -> Tensor:
    """Return the memberships (K, H, W) in one object's colours together: (H, W) in [0, 1]."""
    own = torch.tensor(_colours_of(scene))[:, None, :] * 2 - 1  # (k, 1, 3)
    mine = (own == colours[:, :, 0, 0]).all(dim=2).any(dim=0)  # (K,)
    return seen[mine].sum(dim=0)


# ------------------------------------------------------------------------------------------- by the object's colour


class Place(NamedTuple):
    """The place of something that was found, in pixels; NaN if it was not. `area` is in pixels."""

    x: float
    y: float
    area: float


class ColourError(NamedTuple):
    """Mean absolute colour errors, in 255ths of the range from black to white."""

    object: float
    ground: float


def segment(picture: Tensor, scene: Scene) -> Tensor:
    """Return the object in a picture (3, H, W) of the scene's ground: soft mask (H, W) in [0, 1].

    How far each pixel's colour is from the ground's there, over how far the object's colour is: nothing below a fifth,
    all of it from a half on. It does not use the scene's place, size, rotation and yaw.
    """
    ground = scenes.draw_ground(scene, picture.shape[-1])
    contrast = (torch.tensor(scenes.PALETTE[scene.colour])[:, None, None] * 2 - 1 - ground).norm(dim=0)  # (H, W)
    return (((picture - ground).norm(dim=0) / contrast - 0.2) / 0.3).clamp(0, 1)


def locate(picture: Tensor, scene: Scene) -> Place:
    """Return the object's centre in a picture (3, H, W): centre of mass of the largest patch of `segment`."""
    size = picture.shape[-1]
    return densest_disc(segment(picture, scene), radius=0.5 * scene.size * size)


def locate_nose(picture: Tensor, scene: Scene) -> Place:
    """Return a face's nose in a picture (3, H, W): centre of mass of what is redder than the skin in the found face."""
    if scene.shape != "face":
        raise ValueError(f"a {scene.shape} has no nose; give a scene with a face")
    size = picture.shape[-1]
    face = locate(picture, scene)
    if math.isnan(face.x):
        return face
    skin, nose = torch.tensor(scenes.PALETTE[scene.colour]) * 2 - 1, torch.tensor(scenes.NOSE) * 2 - 1
    dark = torch.tensor(scenes.DARK) * 2 - 1
    distances = torch.stack([(picture - c[:, None, None]).norm(dim=0) for c in (skin, nose, dark)])  # (3, H, W)
    redness = (1.5 - 2 * distances[1] / (torch.minimum(distances[0], distances[2]) + distances[1])).clamp(0, 1)
    redness = redness * disc(size, face.x, face.y, 0.46 * scene.size * size)
    return densest_disc(redness, radius=0.5 * scenes.NOSE_WIDTH * scene.size * size)


def colour_error(picture: Tensor, truth: Scene, *others: Scene) -> ColourError:
    """Return the colour errors of object and ground of a picture (3, H, W) against the truth.

    The object is compared where it is found, so that its colour is judged apart from its place. The ground is compared
    where neither the truth nor any of the other scenes (say, an edit's source) has its object, two pixels away from it.
    """
    size = picture.shape[-1]
    place = locate(picture, truth)
    error = math.nan
    if not math.isnan(place.x):
        there = replace(truth, x=(place.x + 0.5) / size, y=(place.y + 0.5) / size)
        core = scenes.object_mask(there, size) > 0.99
        error = 127.5 * (picture - scenes.draw(there, size)).abs().mean(dim=0)[core].mean().item()
    objects = torch.stack([scenes.object_mask(scene, size) for scene in (truth, *others)]).amax(dim=0)
    away = F.max_pool2d(objects[None], 5, stride=1, padding=2)[0] == 0
    ground = 127.5 * (picture - scenes.draw_ground(truth, size)).abs().mean(dim=0)[away].mean().item()
    return ColourError(error, ground)


def overlap(picture: Tensor, truth: Scene) -> float:
    """Return the intersection over union of the object in a picture (3, H, W) and of the truth's mask, both soft."""
    return quality.iou(segment(picture, truth), scenes.object_mask(truth, picture.shape[-1]))


def disc(size: int, x: float, y: float, radius: float) -> Tensor:
    """Return a mask (size, size): 1 within so many pixels of a place, else 0."""
    side = torch.arange(size, dtype=torch.float32)
    return (torch.hypot(side[None, :] - x, side[:, None] - y) <= radius).float()


def densest_disc(weight: Tensor, radius: float) -> Place:
    """Return the centre of mass of weights (H, W) in a disc where they are densest; the disc follows its centre."""
    size, half = weight.shape[-1], round(0.9 * radius)  # a square about as large as the disc
    rows = F.avg_pool2d(weight[None, None], (2 * half + 1, 1), stride=1, padding=(half, 0))
    means = F.avg_pool2d(rows, (1, 2 * half + 1), stride=1, padding=(0, half))[0, 0]
    y, x = (float(i) for i in torch.unravel_index(means.argmax(), means.shape))
    side = torch.arange(size, dtype=torch.float32)
    area = 0.0
    for _ in range(8):
        near = weight * disc(size, x, y, 1.25 * radius + 1)
        area = near.sum().item()
        if area < 0.1 * math.pi * radius**2:
            return Place(math.nan, math.nan, area)
        x, y = ((near * side[None, :]).sum() / area).item(), ((near * side[:, None]).sum() / area).item()
    return Place(x, y, area)

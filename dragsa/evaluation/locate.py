"""Finding a drawn scene's object in any picture by its colours, and comparing it with the truth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dragsa.evaluation import quality, scenes
from dragsa.evaluation.scenes import Scene


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
    return densest(segment(picture, scene), radius=0.5 * scene.size * size)


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
    return densest(redness, radius=0.5 * scenes.NOSE_WIDTH * scene.size * size)


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


def densest(weight: Tensor, radius: float) -> Place:
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

"""Named places of a drawing, to which handles are put: its centre, its quarters, its ends, and what stands out."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from dragsa.evaluation import art_scenes, artwork
from dragsa.evaluation.art_scenes import Pull
from dragsa.evaluation.edits import QUARTERS

ENDS = ("end", "other end")  # the furthest point from the centre, and the one across from it
INSIDE = 0.6  # where the four quarters lie between centre and outline
OUTER = 0.85  # the same for ends and for what stands out
OPAQUE = 0.9  # the alpha of what a handle may stand on
INNER = 2 / 128  # of a sprite's side: a handle keeps so far from what is not opaque, where it can
ROUNDS = 100  # of the iteration that inverts a pull
RAYS = 32  # on which is looked for what stands out

Place = tuple[float, float]  # of a sprite, in fractions of its side from its middle


@cache
def marks(name: str, style: str, reach: float = INSIDE) -> dict[str, Place]:
    """Return named places of a drawing, all of them opaque.

    "centre": the opaque place nearest to the centre of mass. "top", "right", "bottom", "left": at most at `reach` of
    the way from there to the outline. The `ENDS`: near the outline, where that is furthest from the centre, and across.
    """
    solid = Solid(name, style)
    found = {"centre": solid.centre}
    for quarter, word in enumerate(QUARTERS):
        found[word] = solid.towards(quarter * math.pi / 2, reach)
    furthest = max((2 * math.pi * n / RAYS for n in range(RAYS)), key=lambda angle: solid.extent(angle))
    ends = (solid.towards(angle, OUTER) for angle in (furthest, furthest + math.pi))
    return {**found, **dict(zip(ENDS, ends, strict=True))}


def outstanding(name: str, style: str) -> list[Place]:
    """Return places near a drawing's outline where that stands out: ears, tails, leaves, handles."""
    solid = Solid(name, style)
    angles = [2 * math.pi * n / RAYS for n in range(RAYS)]
    extents = [solid.extent(angle) for angle in angles]
    peaks = [n for n in range(RAYS) if extents[n] >= max(extents[(n + apart) % RAYS] for apart in (-2, -1, 1, 2))]
    mean = sum(extents) / RAYS
    return [solid.towards(angles[n], OUTER) for n in peaks if extents[n] >= mean]


class Solid:
    """The opaque part of a drawing, in rays from its centre. Angles are clockwise from the top."""

    def __init__(self, name: str, style: str) -> None:
        alpha = artwork.shipped().picture(name, style)[3]
        opaque = alpha > OPAQUE  # (SIDE, SIDE)
        side = alpha.shape[-1]
        room = round(INNER * side)
        inner = -F.max_pool2d(-opaque[None].float(), 2 * room + 1, stride=1, padding=room)[0] > 0.5
        inner = inner if inner.any() else opaque
        places = (torch.stack(torch.meshgrid(*2 * [torch.arange(side)], indexing="xy"), -1) + 0.5) / side - 0.5
        solid = places[inner]  # (n, 2)
        u, v = solid[(solid - places[opaque].mean(dim=0)).norm(dim=1).argmin()].tolist()
        self.opaque, self.inner, self.centre = opaque.numpy(), inner.numpy(), (u, v)

    def _ray(self, mask: np.ndarray, angle: float) -> np.ndarray:
        """Return how far from the centre the ray is in a mask, in fractions of the side, ascending."""
        side = mask.shape[-1]
        lengths = np.arange(side) / side
        columns = ((self.centre[0] + math.sin(angle) * lengths + 0.5) * side).astype(int)
        rows = ((self.centre[1] - math.cos(angle) * lengths + 0.5) * side).astype(int)
        there = (columns >= 0) & (columns < side) & (rows >= 0) & (rows < side)
        return lengths[there][mask[rows[there], columns[there]]]

    def extent(self, angle: float) -> float:
        """Return the distance from the centre to the outline."""
        return float(self._ray(self.opaque, angle)[-1])

    def towards(self, angle: float, reach: float) -> Place:
        """Return the furthest place on a ray, up to so far on the way to the outline, that a handle may stand on."""
        lengths = self._ray(self.inner, angle)
        length = float(lengths[lengths <= reach * self.extent(angle)][-1])
        return self.centre[0] + math.sin(angle) * length, self.centre[1] - math.cos(angle) * length


def carried(pull: Pull, place: Place) -> Place:
    """Return where a pull brings a place of a sprite: the inverse of what `art_scenes.to_sprite` does, by iteration."""
    start, way = torch.tensor(place, dtype=torch.float64), torch.tensor([pull.dx, pull.dy], dtype=torch.float64)
    goal = torch.tensor([pull.x, pull.y], dtype=torch.float64) + way
    there = start
    for _ in range(ROUNDS):
        there = start + way * art_scenes.pull_weight((there - goal).norm() / pull.reach)
    u, v = there.tolist()
    return u, v

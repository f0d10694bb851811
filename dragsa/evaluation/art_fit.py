"""Finding the things of an artwork scene in any picture: where they are, how large, how turned, and how far pulled.

`fit` places the things' own drawings over the scene's ground until that agrees with the picture. It starts from the
edit's source and from what the picture shows, never from the truth. Differences are bounded, so that a ghost left
behind or a spoilt patch weighs no more than it covers; loosely at first, since what is bounded has no slope to follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dragsa.evaluation import art_scenes, artwork, least_squares
from dragsa.evaluation.art_scenes import ArtScene, Pull, Thing
from dragsa.evaluation.least_squares import Numbers

GRID = 64  # pixels of the pictures that are compared in the fit
COARSE = 32  # and of those in which starts are looked for
STARTS = 3  # that are followed, of those looked at
PLACES, TURNS = 3, 2  # where starts are looked for: so many places, each in so many rotations
APART = 5  # coarse pixels between such places
STEPS = {"x": 0.004, "y": 0.004, "size": 0.004, "rotation": 0.02, "share": 0.04}  # of the finite differences
FURTHEST = {"x": 0.08, "y": 0.08, "size": 0.08, "rotation": 0.3, "share": 0.4}  # that one iteration may go
SMALLER, LARGER = 0.4, 2.2  # of the source's size, and nothing beyond is looked for
MOST_TURNED = math.pi / 2  # from the source's rotation
NEAR = 0.25  # of a thing's size: `refined` looks no further from where it stands
MOST_PULLED = 1.3  # of the way that was asked
LOOSE, BOUND = 1.5, 0.4  # of a pixel's difference, colours in [-1, 1]: on the way, and at the end
SHOWN = 0.5  # a thing is there if its drawing leaves less than so much of what the bare ground leaves unexplained
OPAQUE = 0.9
SIZES_TRIED = (0.5, 0.63, 0.8, 1.0, 1.25, 1.6, 2.0)
TURNS_TRIED = tuple(math.radians(angle) for angle in (-50, -25, 0, 25, 50))


class ArtFit(NamedTuple):
    """`scene`: the source's, with things as they were found. The rest says whether they were there to be found."""

    scene: ArtScene
    found: bool
    neighbour_found: bool  # False where the scene has none
    share: float | None  # of the asked pull's way; None where no part is pulled


Names = Sequence[tuple[bool, str]]  # of the numbers that are fitted: whether it is the neighbour's, and its name


def fit(picture: Tensor, before: ArtScene, pull: Pull | None = None) -> ArtFit:
    """Return the scene of a picture (3, H, H) in [-1, 1] that shows `before`, but elsewhere and otherwise turned.

    `pull`: what was asked of a part of the thing; how far it went is found with the rest.
    """
    names = fitted(before, pull)
    row = _descended(picture, before, names, starts(before, names, picture, pull), pull)
    scene = placed(before, names, row, pull)
    seen, ground = _small(picture), art_scenes.draw_ground(before.ground, GRID)
    there = [shown(thing, seen, ground) for thing in scene.things]
    return ArtFit(scene, there[-1], len(there) > 1 and there[0], None if pull is None else row[-1])


def refined(picture: Tensor, scene: ArtScene) -> ArtScene:
    """Return the scene with its thing moved, resized and turned to where the picture agrees with it best nearby."""
    names, near = fitted(replace(scene, neighbour=None), None), NEAR * scene.thing.size
    things = [scene.thing, *best_places(scene.thing, scene, picture, near)]
    rows = torch.tensor([values(replace(scene, thing=thing), names) for thing in things])
    return placed(scene, names, _descended(picture, scene, names, rows, None, near), None)


def _small(picture: Tensor) -> Tensor:
    return F.interpolate(picture[None], size=(GRID, GRID), mode="area")[0]


def _descended(
    picture: Tensor, before: ArtScene, names: Names, rows: Tensor, pull: Pull | None, near: float = 1.0
) -> list[float]:
    """Return the row of numbers by which the scene agrees best with the picture, from the best of the starts on."""
    seen, ground = _small(picture), art_scenes.draw_ground(before.ground, GRID)  # (3, G, G) each

    def residuals(rows: Tensor, bound: float) -> Tensor:
        drawn = drawn_over([placed(before, names, row, pull) for row in rows.tolist()], ground)
        apart = drawn - seen  # (B, 3, G, G)
        return (apart / (1 + apart.square().sum(dim=1, keepdim=True) / bound**2).sqrt()).flatten(1)

    least, most = limits(before, names, near)
    steps, furthest = (torch.tensor([one[name] for _, name in names]) for one in (STEPS, FURTHEST))
    numbers = Numbers(steps, furthest, least, most)
    for bound, count in ((LOOSE, STARTS), (BOUND, 1)):
        bounded = partial(residuals, bound=bound)
        rows = rows[bounded(rows).square().sum(dim=1).argsort()[:count]]
        rows, _ = least_squares.descend(bounded, rows, numbers)
    best: list[float] = rows[0].tolist()
    return best


def fitted(scene: ArtScene, pull: Pull | None) -> Names:
    """Return place, size and rotation of each thing, and the share of the pull."""
    names = [(beside, name) for beside in (False, True)[: len(scene.things)] for name in ("x", "y", "size", "rotation")]
    return names if pull is None else [*names, (False, "share")]


def placed(scene: ArtScene, names: Names, row: Sequence[float], pull: Pull | None) -> ArtScene:
    """Return the scene with other values of the numbers that are fitted."""
    own: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    for (beside, name), value in zip(names, row, strict=True):
        own[beside][name] = value
    share = own[False].pop("share", 0.0)
    gone = scene.thing.pull if pull is None else replace(pull, dx=share * pull.dx, dy=share * pull.dy)
    neighbour = None if scene.neighbour is None else replace(scene.neighbour, **own[True])
    return ArtScene(replace(scene.thing, **own[False], pull=gone), scene.ground, neighbour)


def values(scene: ArtScene, names: Names, share: float = 0.0) -> list[float]:
    things = {False: scene.thing, True: scene.neighbour}
    return [share if name == "share" else getattr(things[beside], name) for beside, name in names]


def limits(before: ArtScene, names: Names, near: float = 1.0) -> Tensor:
    """Return the least and the greatest values that are looked at: (2, P). `near`: of places, so far from before."""
    spans = []
    for (_, name), value in zip(names, values(before, names), strict=True):
        of_name = {
            "size": (SMALLER * value, LARGER * value),
            "rotation": (value - MOST_TURNED, value + MOST_TURNED),
            "share": (0.0, MOST_PULLED),
        }
        spans.append(of_name.get(name, (max(0.0, value - near), min(1.0, value + near))))
    return torch.tensor(spans).T


def drawn_over(scenes: Sequence[ArtScene], ground: Tensor) -> Tensor:
    """Return the scenes' things over one given ground (3, G, G): (B, 3, G, G) in [-1, 1].

    The scenes differ in numbers alone. A sprite is drawn from its mean over as many of its pixels as the picture's own
    are apart, so that one look at it per pixel is enough.
    """
    size = ground.shape[-1]
    side = (torch.arange(size) + 0.5) / size
    drawn = ground.expand(len(scenes), -1, -1, -1)
    for things in zip(*(scene.things for scene in scenes), strict=True):
        coordinates = [torch.stack(art_scenes.to_sprite(one, side[None, :], side[:, None]), dim=-1) for one in things]
        sprite = artwork.shipped().picture(things[0].name, things[0].style)
        small = F.avg_pool2d(sprite, max(1, artwork.SIDE * 2 // GRID))  # (4, s, s)
        looked = F.grid_sample(small.expand(len(things), -1, -1, -1), 2 * torch.stack(coordinates), align_corners=False)
        colours, alpha = looked[:, :3], looked[:, 3:]
        drawn = 2 * colours - alpha + (1 - alpha) * drawn  # premultiplied colours in [0, 1], to [-1, 1]
    return drawn


def starts(before: ArtScene, names: Names, picture: Tensor, pull: Pull | None) -> Tensor:
    """Return starts of the fit, (B, P): everything as in the source, or where the picture shows a thing best."""
    alone = replace(before, neighbour=None)
    things = [before.thing, *best_places(before.thing, alone, picture)]
    beside = [None] if before.neighbour is None else [before.neighbour, *best_places(before.neighbour, alone, picture)]
    places = [ArtScene(thing, before.ground, other) for thing in things for other in beside]
    shares = (0.0,) if pull is None else (0.0, 0.5, 1.0)
    return torch.tensor([values(place, names, share) for place in places for share in shares])


def best_places(thing: Thing, scene: ArtScene, picture: Tensor, near: float = 1.0) -> list[Thing]:
    """Return the thing at the places where it explains most of the picture, in its best size, in several rotations.

    `near`: so far along x and y from where it stands, in fractions of the width.
    With c - g = o - a g for a thing o of alpha a over the ground g, and d the picture less the ground, it takes
    Σ 2 d·(o - a g) - |o - a g|² from the squared error, which is a few correlations.
    """
    ground = (art_scenes.draw_ground(scene.ground, COARSE) + 1) / 2
    apart = (F.interpolate(picture[None], size=(COARSE, COARSE), mode="area")[0] + 1) / 2 - ground  # d
    maps = torch.cat([apart, (ground * apart).sum(0, True), ground, ground.square().sum(0, True)])  # (8, C, C)
    tried = [
        replace(thing, x=0.5, y=0.5, size=share * thing.size, rotation=thing.rotation + turn)
        for share in SIZES_TRIED
        for turn in TURNS_TRIED
    ]
    drawn = torch.stack([art_scenes.draw_thing(one, artwork.shipped(), COARSE) for one in tried])  # (T, 4, C, C)
    colours, alpha = drawn[:, :3], drawn[:, 3:]
    kernels = torch.cat([-2 * colours, 2 * alpha, -2 * alpha * colours, alpha.square()], dim=1)  # (T, 8, C, C)
    error = F.conv2d(maps[None], kernels, padding=COARSE // 2)[0]  # (T, C + 1, C + 1): i is the place i / C
    error = error + colours.square().sum(dim=(1, 2, 3))[:, None, None]
    side = torch.arange(COARSE + 1) / COARSE
    beyond = ((side - thing.x).abs() > near)[None, :] | ((side - thing.y).abs() > near)[:, None]
    error[:, beyond] = math.inf
    found: list[Thing] = []
    for _ in range(PLACES):
        if error.isinf().all():
            break
        row, column = divmod(int(error.amin(dim=0).argmin()), COARSE + 1)
        here = error[:, row, column].view(len(SIZES_TRIED), -1).amin(dim=0).argsort()[:TURNS]  # the best rotations
        for turn in here.tolist():
            size = int(error[:, row, column].view(len(SIZES_TRIED), -1)[:, turn].argmin())
            best = tried[size * len(TURNS_TRIED) + turn]
            found.append(replace(best, x=column / COARSE, y=row / COARSE))
        rows, columns = (slice(max(0, i - APART), i + APART + 1) for i in (row, column))
        error[:, rows, columns] = math.inf
    return found


def shown(thing: Thing, seen: Tensor, ground: Tensor) -> bool:
    """Return True if a picture (3, G, G) shows the thing at its place."""
    drawn = art_scenes.draw_thing(thing, artwork.shipped(), seen.shape[-1])
    inside = drawn[3] > OPAQUE
    own, bare = (apart[:, inside].square().sum() for apart in (2 * drawn[:3] - 1 - seen, ground - seen))
    return bool(inside.any()) and bool(own < SHOWN * bare)

"""Scenes of artwork with known parameters: one or two sprites over a textured ground.

The second kind of scenes, beside the drawn ones of `scenes`, with the same conventions: a scene is a value, drawing it
with one number changed is the exact truth of an edit, lengths are fractions of the picture's width, angles are radians
and turn clockwise, and pixel = fraction * size - 0.5.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dragsa.evaluation import artwork
from dragsa.evaluation.artwork import STYLES, Sprites
from dragsa.evaluation.scenes import GREY, GREYING, PALETTE, place_words

PATTERNS = ("plain", "stripes", "checks", "clouds")
STRUCTURED = ("stripes", "checks")  # must go on where an object was
SIZES = (0.36, 0.62)  # of a sprite's square
SIZES_BESIDE = (0.32, 0.46)  # and of both, where there are two
BESIDE = 0.3  # of all scenes have two
PULLED = 0.2  # of all things have a part pulled
GAP = 0.01  # at least, between two things
TURNED = math.radians(30)
CLOUDS = 6  # cosines
SHARPNESS = 4.0  # of a stripe's edge: the pattern is tanh(sharpness · sine)
WORDS = ("a", "and", "in", *STYLES, "style", "on", "ground", *PALETTE)  # of captions, beside the things' names
FINER = 2  # a picture is drawn so much larger and averaged


@dataclass(frozen=True)
class Pull:
    """A part of a sprite pulled to another place: what is at (x, y) comes to (x + dx, y + dy).

    In fractions of the sprite's side from its middle, before it is mirrored and turned. What is nearer than `reach` to
    the new place follows smoothly, nothing beyond moves. The map is one to one where `reach` is more than 2.2 of the
    way.
    """

    x: float
    y: float
    dx: float
    dy: float
    reach: float


@dataclass(frozen=True)
class Thing:
    """A sprite at a place. `size`: the side of its square."""

    name: str
    style: str
    x: float
    y: float
    size: float
    rotation: float = 0.0
    mirrored: bool = False
    pull: Pull | None = None


@dataclass(frozen=True)
class Ground:
    """A greyed colour with a pattern in brightness."""

    colour: str
    pattern: str = "plain"
    strength: float = 0.0  # of the pattern, in brightness
    cycles: float = 3.0  # of the pattern over the picture's width
    angle: float = 0.0
    phase: float = 0.0
    slope: tuple[float, float] = (0.0, 0.0)  # the gain in brightness from middle to edge, along x and y
    seed: int = 0  # of clouds

    def __post_init__(self) -> None:
        if self.colour not in PALETTE or self.pattern not in PATTERNS:
            raise ValueError(f"no ground {self.colour!r}, {self.pattern!r}; there are {PATTERNS} in {(*PALETTE,)}")


@dataclass(frozen=True)
class ArtScene:
    """A thing on a ground, and perhaps another thing beside it."""

    thing: Thing
    ground: Ground
    neighbour: Thing | None = None

    @property
    def things(self) -> tuple[Thing, ...]:
        """The neighbour, which is drawn first, and the thing."""
        return (self.thing,) if self.neighbour is None else (self.neighbour, self.thing)


def random_scene(
    rng: random.Random, names: Sequence[str], beside: bool | None = None, training: bool = True
) -> ArtScene:
    """Return a scene with every number random, its things inside the picture and clear of each other.

    `beside`: whether there are two things, which are of one style; None leaves it to chance. `training`: only drawings
    that may be shown in training.
    """
    beside = rng.random() < BESIDE if beside is None else beside
    while True:
        style, (name, other) = rng.choice(STYLES), rng.sample(names, 2)
        if not training or (artwork.is_trained(name, style) and artwork.is_trained(other, style)):
            break
    ground = random_ground(rng)
    while True:
        thing = _placed(rng, name, style, beside)
        neighbour = _placed(rng, other, style, True) if beside else None
        scene = ArtScene(thing, ground, neighbour)
        if is_clear(scene):
            return scene


def random_ground(rng: random.Random, patterns: Sequence[str] = PATTERNS) -> Ground:
    """Return a ground with every number random."""
    return Ground(
        colour=rng.choice(tuple(PALETTE)),
        pattern=rng.choice(patterns),
        strength=rng.uniform(0.05, 0.14),
        cycles=rng.uniform(2.0, 5.0),
        angle=rng.uniform(0, math.pi),
        phase=rng.uniform(0, 2 * math.pi),
        slope=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
        seed=rng.randrange(2**31),
    )


def _placed(rng: random.Random, name: str, style: str, beside: bool) -> Thing:
    size = rng.uniform(*(SIZES_BESIDE if beside else SIZES))
    least, most = size / 2, 1 - size / 2
    pull = None
    if rng.random() < PULLED:
        way, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.2)
        place = rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4)
        pull = Pull(*place, length * math.cos(way), length * math.sin(way), max(0.2, 2.5 * length))
    x, y = rng.uniform(least, most), rng.uniform(least, most)
    return Thing(name, style, x, y, size, rng.uniform(-TURNED, TURNED), rng.random() < 0.5, pull)


def is_clear(scene: ArtScene) -> bool:
    """Return True if the things' squares, unturned, lie inside the picture and the inner circles do not touch."""
    inside = all(t.size / 2 <= c <= 1 - t.size / 2 for t in scene.things for c in (t.x, t.y))
    if scene.neighbour is None:
        return inside
    one, other = scene.things
    return inside and math.dist((one.x, one.y), (other.x, other.y)) >= (one.size + other.size) / 2 + GAP


def caption(scene: ArtScene, style: bool = True, ground: bool = True, place: bool = False) -> str:
    """Return the scene in words: "a bear in fluent style on a cyan ground", or without its style or ground.

    With `place` also where a thing is that stands alone: "a bear at the top left in fluent style on a cyan ground".
    """
    words = " and ".join(f"a {thing.name.replace('-', ' ')}" for thing in reversed(scene.things))
    if place and scene.neighbour is None:
        words += f" at the {place_words(scene.thing.x, scene.thing.y)}"
    words += f" in {scene.thing.style} style" if style else ""
    return words + (f" on a {scene.ground.colour} ground" if ground else "")


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(
    scene: ArtScene, sprites: Sprites, size: int = 128, corner: tuple[int, int] = (0, 0), window: int | None = None
) -> Tensor:
    """Return the scene as a picture: float (3, size, size) in [-1, 1].

    With `window`, only the square of so many pixels whose top left pixel (x, y) is `corner`.
    """
    x, y = _coordinates(size, corner, window)
    picture = _ground(scene.ground, x, y)
    for thing in scene.things:
        drawn = _sprite(thing, sprites, x, y)
        picture = drawn[:3] + (1 - drawn[3]) * picture
    return _averaged(picture) * 2 - 1


def draw_ground(ground: Ground, size: int = 128) -> Tensor:
    """Return a ground alone: (3, size, size) in [-1, 1]."""
    return _averaged(_ground(ground, *_coordinates(size))) * 2 - 1


def draw_thing(thing: Thing, sprites: Sprites, size: int = 128) -> Tensor:
    """Return a thing alone: (4, size, size) in [0, 1], its colours times its alpha, and its alpha."""
    return _averaged(_sprite(thing, sprites, *_coordinates(size)))


def _averaged(picture: Tensor) -> Tensor:
    return F.avg_pool2d(picture[None], FINER)[0]


def _coordinates(size: int, corner: tuple[int, int] = (0, 0), window: int | None = None) -> tuple[Tensor, Tensor]:
    """Return x (1, w) and y (h, 1) of the finer raster's pixel centres, in fractions of the width."""
    side = (torch.arange(FINER * (window or size)) + 0.5) / FINER
    return (side[None, :] + corner[0]) / size, (side[:, None] + corner[1]) / size


def _ground(ground: Ground, x: Tensor, y: Tensor) -> Tensor:
    """Return a ground (3, h, w) in [0, 1]."""
    light = ground.slope[0] * (2 * x - 1) + ground.slope[1] * (2 * y - 1)
    cos, sin = math.cos(ground.angle), math.sin(ground.angle)
    turns = 2 * math.pi * ground.cycles
    along, across = turns * (cos * x + sin * y) + ground.phase, turns * (cos * y - sin * x)
    if ground.pattern == "clouds":
        rng = random.Random(ground.seed)
        for _ in range(CLOUDS):
            angle, cycles, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.2), rng.uniform(0, 2 * math.pi)
            wave = torch.cos(cycles * (math.cos(angle) * along + math.sin(angle) * across) + phase)
            light = light + ground.strength / math.sqrt(CLOUDS / 2) * wave
    elif ground.pattern != "plain":
        pattern = torch.tanh(SHARPNESS * torch.sin(along))
        if ground.pattern == "checks":
            pattern = pattern * torch.tanh(SHARPNESS * torch.sin(across))
        light = light + ground.strength * pattern
    colour = torch.lerp(torch.tensor(PALETTE[ground.colour]), torch.tensor(GREY), GREYING)
    return (colour[:, None, None] + light).clamp(0, 1)


def _sprite(thing: Thing, sprites: Sprites, x: Tensor, y: Tensor) -> Tensor:
    """Return a thing's sprite on the raster, (4, h, w), by bilinear sampling."""
    u, v = to_sprite(thing, x, y)
    grid = torch.stack(torch.broadcast_tensors(2 * u, 2 * v), dim=-1)[None]
    picture = sprites.picture(thing.name, thing.style)[None]
    return F.grid_sample(picture, grid, padding_mode="zeros", align_corners=False)[0]


def to_sprite(thing: Thing, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return where places of the picture are on a thing's sprite, in fractions of its side from its middle."""
    dx, dy = (x - thing.x) / thing.size, (y - thing.y) / thing.size
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    if thing.mirrored:
        u = -u
    if (pull := thing.pull) is not None:
        weight = pull_weight(torch.hypot(u - pull.x - pull.dx, v - pull.y - pull.dy) / pull.reach)
        u, v = u - pull.dx * weight, v - pull.dy * weight
    return u, v


def pull_weight(distance: Tensor) -> Tensor:
    """Return how much of a pull's way is gone at a distance from the new place, in reaches: Wendland's function.

    It is smooth, 1 at the new place and 0 from the reach on.
    """
    r = distance.clamp(max=1)
    return (1 - r) ** 4 * (4 * r + 1)


def to_picture(thing: Thing, u: float, v: float, size: int = 128) -> tuple[float, float]:
    """Return where a place of a thing's sprite is in the picture, (x, y) in pixels; its pull is left out."""
    u = -u if thing.mirrored else u
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    x, y = thing.x + thing.size * (cos * u - sin * v), thing.y + thing.size * (sin * u + cos * v)
    return x * size - 0.5, y * size - 0.5

"""Drawn scenes with known parameters: an object over a smooth ground, and how to measure it in any picture.

Three scenes of ten have a neighbour beside the object, another shape of another colour, which an edit should leave
alone.

A scene is a value. Drawing it with one parameter changed (`dataclasses.replace(scene, x=0.6)`) is the exact truth of an
edit. Lengths and positions are fractions of the picture's width, x to the right and y down, (0.5, 0.5) the middle; so a
scene can be drawn at any size. Positions in pixels have pixel centres at integers: pixel = fraction * size - 0.5.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

SHAPES = ("disc", "square", "triangle", "star", "face")
PALETTE: dict[str, tuple[float, float, float]] = {  # sRGB, 0 … 1
    "red": (0.86, 0.12, 0.14),
    "yellow": (0.97, 0.88, 0.16),
    "green": (0.16, 0.66, 0.22),
    "cyan": (0.26, 0.84, 0.88),
    "blue": (0.12, 0.26, 0.88),
    "purple": (0.52, 0.14, 0.62),
    "pink": (0.98, 0.56, 0.76),
    "white": (0.97, 0.97, 0.97),
}
SKINS = ("yellow", "green", "cyan", "white")  # a face's nose is red and its eyes are dark: they must stand out
NOSE, DARK = PALETTE["red"], (0.10, 0.08, 0.12)
WORDS = (
    *("a", "at", "on", "the", "ground", "looking", "left", "right", "ahead", "top", "bottom", "middle"),
    *SHAPES,
    *PALETTE,
    "and",
)

# Seeds of the scenes that a model is trained on, and of those it never sees.
TRAINING_SEEDS = range(0, 1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 1_100_000)

MARGIN = 0.03  # of the width, between the object and the picture's edge
SIZES = (0.26, 0.48)  # diameter of the circumscribed circle
FACE_SIZES = (0.44, 0.66)  # large, so that a nose is more than one cell of the latent
FACES = 0.3  # of all scenes
NEIGHBOURS = 0.3  # of all scenes, and then both are smaller
SIZES_BESIDE = (0.24, 0.36)
FACE_SIZES_BESIDE = (0.38, 0.48)
NEIGHBOUR_SIZES = (0.2, 0.3)
GAP = 0.02  # at least, between the circumscribed circles of object and neighbour
GREYING, GREY = 0.3, 0.45  # a ground's colour is its palette colour mixed with so much of that grey
WAVES = 4  # cosines that make a ground's texture

# Corners, and the radius of the points midway between them over the radius of the corners.
CORNERS = {"square": (4, math.cos(math.pi / 4)), "triangle": (3, 0.5), "star": (5, 0.5)}


@dataclass(frozen=True)
class Scene:
    """An object on a ground. Lengths are fractions of the picture's width, angles are radians, clockwise.

    `neighbour`: another object beside it, of which only what is its own counts (shape, colour, place, size, rotation).
    """

    shape: str
    colour: str
    x: float
    y: float
    size: float  # diameter of the circumscribed circle
    rotation: float = 0.0
    yaw: float = 0.0  # faces only: positive looks to the picture's right
    ground: str = "blue"
    slope: tuple[float, float] = (0.0, 0.0)  # the ground's gain in brightness from middle to edge, along x and y
    texture: int = 0  # seed of the ground's texture
    neighbour: Scene | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"no shape {self.shape!r}; there are {', '.join(SHAPES)}")
        for name in (self.colour, self.ground):
            if name not in PALETTE:
                raise ValueError(f"no colour {name!r}; there are {', '.join(PALETTE)}")


def random_scene(seed: int, shapes: Sequence[str] | None = None, neighbour: bool | None = None) -> Scene:
    """Return the scene of a seed: every parameter random, the objects inside the picture and clear of each other.

    `shapes`: what the object may be, by default all, faces most often. `neighbour`: whether there is one; None leaves
    it to chance.
    """
    rng = random.Random(seed)
    if shapes is None:
        shapes = ("face",) if rng.random() < FACES else SHAPES[:-1]
    shape = rng.choice(shapes)
    face = shape == "face"
    beside = rng.random() < NEIGHBOURS if neighbour is None else neighbour
    colour = rng.choice(SKINS if face else tuple(PALETTE))
    ground = rng.choice([name for name in PALETTE if name != colour and not (face and name == "red")])
    sizes = (FACE_SIZES_BESIDE if face else SIZES_BESIDE) if beside else (FACE_SIZES if face else SIZES)
    scene = Scene(
        shape=shape,
        colour=colour,
        **_placed(rng, shape, rng.uniform(*sizes)),
        yaw=math.radians(rng.uniform(-40, 40)) if face else 0.0,
        ground=ground,
        slope=(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)),
        texture=rng.randrange(2**31),
    )
    while beside:
        other = rng.choice(SHAPES[:-1])
        name = rng.choice([name for name in PALETTE if name not in (colour, ground)])
        placed = Scene(other, name, **_placed(rng, other, rng.uniform(*NEIGHBOUR_SIZES)), ground=ground)
        scene = replace(scene, neighbour=placed, **_placed(rng, shape, scene.size))
        beside = not is_clear(scene)
    return scene


def _placed(rng: random.Random, shape: str, size: float) -> dict[str, Any]:
    """Return a random place inside the picture for a shape of that size, and a rotation."""
    least, most = size / 2 + MARGIN, 1 - size / 2 - MARGIN
    turned = 0.2 if shape == "face" else half_sector(shape)
    place = {"x": rng.uniform(least, most), "y": rng.uniform(least, most)}
    return {**place, "size": size, "rotation": rng.uniform(-turned, turned)}


def half_sector(shape: str) -> float:
    """Return half the angle between two corners of a shape, beyond which a turn brings nothing new; 0 without any."""
    return math.pi / CORNERS[shape][0] if shape in CORNERS else 0.0


def is_clear(scene: Scene) -> bool:
    """Return True if object and neighbour lie wholly inside the picture and do not touch."""
    both, beside = [scene], scene.neighbour
    if beside is not None:
        both.append(beside)
        if math.dist((scene.x, scene.y), (beside.x, beside.y)) < (scene.size + beside.size) / 2 + GAP:
            return False
    return all(s.size / 2 + MARGIN <= place <= 1 - s.size / 2 - MARGIN for s in both for place in (s.x, s.y))


def translation(seed: int, least: float = 0.1, most: float = 0.3) -> tuple[Scene, Scene]:
    """Return a seed's scene without neighbour, and the same with its object moved by `least` … `most` of the width."""
    scene, rng = random_scene(seed, neighbour=False), random.Random(seed + 1)
    while not is_clear(after := moved(scene, rng, least, most)):
        pass
    return scene, after


def moved(thing: Any, rng: random.Random, least: float, most: float) -> Any:
    """Return an object, a scene for its own, moved by `least` … `most` of the width in any direction."""
    distance, angle = rng.uniform(least, most), rng.uniform(0, 2 * math.pi)
    return replace(thing, x=thing.x + distance * math.cos(angle), y=thing.y + distance * math.sin(angle))


def caption(scene: Scene, place: bool = False, looking: bool = False) -> str:
    """Return the scene in words; with `looking` also the way a face looks, with `place` an object's place."""
    words = f"a {scene.colour} {scene.shape}"
    if looking and scene.shape == "face":
        side = "ahead" if abs(scene.yaw) < math.radians(12) else "right" if scene.yaw > 0 else "left"
        words += f" looking {side}"
    if scene.neighbour is not None:
        words += f" and a {scene.neighbour.colour} {scene.neighbour.shape}"
    elif place:
        words += f" at the {place_words(scene.x, scene.y)}"
    return f"{words} on a {scene.ground} ground"


def place_words(x: float, y: float) -> str:
    """Return a place in the picture in words: "top left", "bottom", "middle"."""
    down = "top" if y < 0.42 else "bottom" if y > 0.58 else ""
    across = "left" if x < 0.42 else "right" if x > 0.58 else ""
    return " ".join(filter(None, (down, across))) or "middle"


# ---------------------------------------------------------------------------------------------------------- drawing


def draw(scene: Scene, size: int = 128) -> Tensor:
    """Return the scene as a picture: float (3, size, size) in [-1, 1], anti-aliased."""
    return draw_batch([scene], size)[0]


def draw_batch(scenes: Sequence[Scene], size: int = 128, corners: Tensor | None = None, window: int = 0) -> Tensor:
    """Return scenes as pictures: (B, 3, size, size) in [-1, 1].

    With `corners`, (B, 2) pixels (x, y), only the square of `window` pixels whose top left pixel that is, out of each
    picture of `size` pixels: (B, 3, window, window).
    """
    x, y = _coordinates(len(scenes), size, corners, window)
    grounds = _with_neighbours(scenes, _grounds(scenes, x, y), x, y, size)
    return _with_objects(scenes, grounds, x, y, size) * 2 - 1


def draw_over(scenes: Sequence[Scene], ground: Tensor) -> Tensor:
    """Return the scenes' objects and neighbours over one given ground (3, H, H): (B, 3, H, H) in [-1, 1]."""
    size = ground.shape[-1]
    x, y = _coordinates(len(scenes), size)
    pictures = ((ground + 1) / 2).repeat(len(scenes), 1, 1, 1)
    return _with_objects(scenes, _with_neighbours(scenes, pictures, x, y, size), x, y, size) * 2 - 1


def draw_ground(scene: Scene, size: int = 128) -> Tensor:
    """Return the scene without its object, but with its neighbour: (3, size, size) in [-1, 1]."""
    x, y = _coordinates(1, size)
    return _with_neighbours([scene], _grounds([scene], x, y), x, y, size)[0] * 2 - 1


def object_mask(scene: Scene, size: int = 128) -> Tensor:
    """Return the share of each pixel that the object covers: (size, size) in [0, 1]."""
    return _coverage([scene], *_coordinates(1, size), size)[0]


def _coordinates(count: int, size: int, corners: Tensor | None = None, window: int = 0) -> tuple[Tensor, Tensor]:
    """x and y of the pixels' centres in fractions of the width: (B, h, w) each."""
    side = torch.arange(size if corners is None else window, dtype=torch.float32) + 0.5
    offset = torch.zeros(count, 2) if corners is None else corners.float()
    x = (side[None, None, :] + offset[:, 0, None, None]) / size  # (B, 1, w)
    y = (side[None, :, None] + offset[:, 1, None, None]) / size  # (B, h, 1)
    shape = (count, len(side), len(side))
    return x.expand(shape), y.expand(shape)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]  # (B, 1, 1)


def _colours(names: Sequence[str]) -> Tensor:
    return torch.tensor([PALETTE[name] for name in names])[:, :, None, None]  # (B, 3, 1, 1)


def _grounds(scenes: Sequence[Scene], x: Tensor, y: Tensor) -> Tensor:
    """Return a greyed colour, plus a slope and a few long cosine waves in brightness: (B, 3, h, w) in [0, 1]."""
    light = _column([s.slope[0] for s in scenes]) * (2 * x - 1) + _column([s.slope[1] for s in scenes]) * (2 * y - 1)
    rngs = [random.Random(scene.texture) for scene in scenes]
    for _ in range(WAVES):
        waves = [(rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 2.0), rng.uniform(0, 2 * math.pi)) for rng in rngs]
        across = _column([2 * math.pi * cycles * math.cos(angle) for angle, cycles, _ in waves])  # (B, 1, 1)
        down = _column([2 * math.pi * cycles * math.sin(angle) for angle, cycles, _ in waves])
        light = light + 0.02 * torch.cos(across * x + down * y + _column([phase for *_, phase in waves]))
    colours = torch.lerp(_colours([s.ground for s in scenes]), torch.tensor(GREY), GREYING)
    return (colours + light[:, None]).clamp(0, 1)


def _with_neighbours(scenes: Sequence[Scene], pictures: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Draw the neighbours over pictures (B, 3, h, w) in [0, 1], which are changed in place."""
    beside = [i for i, s in enumerate(scenes) if s.neighbour is not None]
    if beside:
        neighbours = [s.neighbour for s in scenes if s.neighbour is not None]
        pictures[beside] = _with_objects(neighbours, pictures[beside], x[beside], y[beside], size)
    return pictures


def _with_objects(scenes: Sequence[Scene], pictures: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Draw the objects over pictures (B, 3, h, w) in [0, 1]."""
    pictures = torch.lerp(pictures, _colours([s.colour for s in scenes]), _coverage(scenes, x, y, size)[:, None])
    faces = [i for i, s in enumerate(scenes) if s.shape == "face"]
    if faces:
        pictures[faces] = _features([scenes[i] for i in faces], x[faces], y[faces], size, pictures[faces])
    return pictures


def _coverage(scenes: Sequence[Scene], x: Tensor, y: Tensor, size: int) -> Tensor:
    """Return the coverage of the pixels by the objects, from the signed distance to the outline: (B, h, w)."""
    x, y = x - _column([s.x for s in scenes]), y - _column([s.y for s in scenes])
    radius = _column([s.size / 2 for s in scenes])
    distance = torch.hypot(x, y) - radius
    cornered = [i for i, s in enumerate(scenes) if s.shape in CORNERS]
    if cornered:
        some = [scenes[i] for i in cornered]
        distance[cornered] = _cornered_distance(some, x[cornered], y[cornered], radius[cornered])
    return (0.5 - distance * size).clamp(0, 1)


def _cornered_distance(scenes: Sequence[Scene], x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance to the edge line of the sector, for regular polygons and stars.

    The plane is folded into half a corner's sector, where the outline is one segment from the corner (R, 0) to the
    point halfway to the next corner, at angle π/n and radius r.
    """
    count = _column([CORNERS[s.shape][0] for s in scenes])
    inner = _column([CORNERS[s.shape][1] for s in scenes]) * radius
    half = math.pi / count
    angle = torch.atan2(x, -y) - _column([s.rotation for s in scenes])  # clockwise from the top
    angle = (torch.remainder(angle + half, 2 * half) - half).abs()  # 0 at a corner, π/n between two
    length = torch.hypot(x, y)
    along, across = radius - inner * torch.cos(half), inner * torch.sin(half)
    norm = torch.hypot(along, across)
    return ((length * torch.cos(angle) - radius) * across + length * torch.sin(angle) * along) / norm


# A face's parts on its ball: azimuth and elevation in degrees, radius of the ball over the face's, width and height of
# the part over the face's radius. The nose stands out, so it moves furthest as the face turns.
NOSE_WIDTH = 0.27
_PARTS = {
    "left eye": (-30, 24, 0.85, 0.15, 0.19),
    "right eye": (30, 24, 0.85, 0.15, 0.19),
    "mouth": (0, -36, 0.85, 0.36, 0.10),
    "nose": (0, 0, 0.75, NOSE_WIDTH, NOSE_WIDTH),
}


def _face_point(scene: Scene, azimuth: float, elevation: float, ball: float) -> tuple[float, float]:
    """Return the place of a point of a face's ball in fractions of the width; angles in degrees."""
    up = math.radians(elevation)
    across = ball * scene.size / 2 * math.cos(up) * math.sin(scene.yaw + math.radians(azimuth))
    down = -ball * scene.size / 2 * math.sin(up)
    cos, sin = math.cos(scene.rotation), math.sin(scene.rotation)
    return scene.x + across * cos - down * sin, scene.y + across * sin + down * cos


def _features(scenes: Sequence[Scene], x: Tensor, y: Tensor, size: int, pictures: Tensor) -> Tensor:
    """Draw eyes, mouth and nose over pictures (B, 3, h, w) in [0, 1]."""
    cos, sin = _column([math.cos(s.rotation) for s in scenes]), _column([math.sin(s.rotation) for s in scenes])
    radius = _column([s.size / 2 for s in scenes])
    for name, (azimuth, elevation, ball, width, height) in _PARTS.items():
        points = torch.tensor([_face_point(s, azimuth, elevation, ball) for s in scenes])
        dx, dy = x - points[:, 0, None, None], y - points[:, 1, None, None]
        turned = 1.0 if name == "nose" else _column([math.cos(s.yaw + math.radians(azimuth)) for s in scenes])
        across, down = (dx * cos + dy * sin) / (width * radius * turned), (dy * cos - dx * sin) / (height * radius)
        # Distance to an ellipse to first order: its implicit function over the length of that function's gradient.
        level = torch.hypot(across, down)
        slope = torch.hypot(across / (width * radius * turned), down / (height * radius)) / level.clamp(min=1e-6)
        distance = (level - 1) / slope.clamp(min=1e-6)
        coverage = (0.5 - distance * size).clamp(0, 1)[:, None]
        colour = torch.tensor(NOSE if name == "nose" else DARK)[:, None, None]
        pictures = torch.lerp(pictures, colour.expand_as(pictures), coverage)
    return pictures


# -------------------------------------------------------------------------------------------------------- positions


def keypoints(scene: Scene, size: int = 128, reach: float = 0.6) -> dict[str, tuple[float, float]]:
    """Return named points of the object, (x, y) in pixels of a picture of that size.

    "centre"; "top", "right", "bottom", "left" at `reach` of the way from the centre to the outline (1: on it), turning
    with the object; for a face also "nose", "left eye", "right eye", "mouth".
    """
    points = {"centre": (scene.x, scene.y)}
    for quarter, name in enumerate(("top", "right", "bottom", "left")):
        angle = quarter * math.pi / 2
        length, turned = reach * _outline(scene, angle), angle + scene.rotation
        points[name] = scene.x + length * math.sin(turned), scene.y - length * math.cos(turned)
    if scene.shape == "face":
        points |= {name: _face_point(scene, *part[:3]) for name, part in _PARTS.items()}
    return {name: (x * size - 0.5, y * size - 0.5) for name, (x, y) in points.items()}


def _outline(scene: Scene, angle: float) -> float:
    """Return the distance from the centre to the outline at an angle from the object's own top, clockwise."""
    radius = scene.size / 2
    if scene.shape not in CORNERS:
        return radius
    inner, half = CORNERS[scene.shape][1], half_sector(scene.shape)
    angle = abs((angle + half) % (2 * half) - half)
    along, across = 1 - inner * math.cos(half), inner * math.sin(half)
    return radius * across / (across * math.cos(angle) + along * math.sin(angle))

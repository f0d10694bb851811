"""The benchmark's second list: edits of scenes of artwork whose exact results are known, because they are drawn too.

Twenty of each of six kinds:

- move: the thing goes 10 to 30 % of the picture's width; nothing else is in the picture;
- resize: points near the outline go out or in, the side of the thing's square changing by 16 % of the width or more;
  half of them grow and half shrink;
- rotate: the thing turns in its plane by 20 to 60 degrees, its ends going 10 % of the width or more;
- two: thing and neighbour go 10 to 25 % each, in directions of their own;
- protect: the thing goes 10 to 30 % beside a neighbour that the mask protects;
- part: an outstanding part of the thing, an ear or a tail, is pulled 6 to 10 % of the width, and what is around it
  follows smoothly.

A third of them show drawings that training may show, a third such whose thing it shows in other styles only, and a
third things that it never shows: `novelty`. Half of each kind stand on a ground with stripes or checks, which must go
on where the thing was.

Each can be asked for by few handles ("one" for each thing) or by many ("five"). A rotation by "one" has two, at
opposite ends: by a single one nobody could tell it from a move. There are two lists of the same kinds and no common
seed: "figures", whose figures are reported, and "settings", on which settings are chosen. Both show the drawings that
ship with the benchmark (`artwork.shipped`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from dragsa.evaluation import art_scenes, artwork, cases, edits, scenes
from dragsa.evaluation.art_points import ENDS, INSIDE, OPAQUE, carried, marks, outstanding
from dragsa.evaluation.art_scenes import STRUCTURED, ArtScene, Ground, Pull, Thing
from dragsa.evaluation.artwork import STYLES
from dragsa.evaluation.edits import FIVE, NEIGHBOUR, QUARTERS, SIZE, Edit, dilated
from dragsa.pictures import Point

KINDS = ("move", "resize", "rotate", "two", "protect", "part")
NOVELTIES = ("seen", "style", "name")  # seen in training; the thing seen in other styles; the thing never seen
EACH = 20  # of every kind
FIRST = {"figures": 4_000, "settings": 10_000}  # of the held-out seeds; each kind has its own stretch from there
STRETCH = 1_000

PART = "part"
OWN = {"rotate": {"one": ENDS, "five": (*ENDS, *FIVE)}, "part": {"one": (PART,), "five": (PART, *FIVE)}}
HANDLES = {**cases.HANDLES, **OWN}
MEASURED = {**cases.MEASURED, "rotate": ENDS, "part": (PART,)}
REACH = {"resize": 0.85}  # where the four quarters lie between centre and outline; elsewhere INSIDE
SIZES_OF_RESIZE = (0.3, 0.72)
ROOM = 0.1  # of the thing's size: the mask's
LARGE = (0.48, 0.62)  # things that turn, or whose parts are pulled
CONTRAST = 0.5  # between thing and ground, the median distance of their colours in [-1, 1]³
EDGE = 0.05  # of the width: handles and targets keep so far from the picture's edge
TRIES = 1_000


@dataclass(frozen=True)
class ArtCase(Edit):
    """An edit of a scene of artwork."""

    before: ArtScene
    after: ArtScene

    CHANGING: ClassVar[tuple[str, ...]] = ("x", "y", "size", "rotation")

    @property
    def novelty(self) -> str:
        """Whether training may show the drawing, or its thing in other styles only, or never: of `NOVELTIES`."""
        return novelty(self.before.thing.name, self.before.thing.style)

    def caption(self, scene: ArtScene, full: bool = False) -> str:
        """Return a scene in words; with `full` also where its thing is."""
        return art_scenes.caption(scene, place=full)

    def drawn(self, scene: ArtScene) -> Tensor:
        return art_scenes.draw(scene, artwork.shipped(), self.size)

    def covered(self, thing: Thing) -> Tensor:
        return art_scenes.draw_thing(thing, artwork.shipped(), self.size)[3]

    @property
    def moving(self) -> list[tuple[Thing, Thing]]:
        pairs = [(self.before.thing, self.after.thing)]
        if self.kind == "two" and self.before.neighbour is not None and self.after.neighbour is not None:
            pairs.append((self.before.neighbour, self.after.neighbour))
        return pairs

    def corridor(self, before: Thing, after: Thing) -> Tensor:
        """Return the mask of a thing's way, with room round it; of a pulled part all that the pull reaches."""
        if after.pull is None:
            ways = edits.between(before, after, self.CHANGING)
            covered = torch.stack([self.covered(way) for way in ways]).amax(dim=0)
            return dilated(covered, ROOM * max(before.size, after.size))
        x, y = art_scenes.to_picture(after, after.pull.x + after.pull.dx, after.pull.y + after.pull.dy, self.size)
        side = torch.arange(self.size, dtype=torch.float32)
        reach = after.pull.reach * after.size * self.size
        return (torch.hypot(side[None, :] - x, side[:, None] - y) <= reach + 1).float()

    def points(self, scene: ArtScene) -> dict[str, Point]:
        """Return named points of a scene's thing and neighbour, in pixels."""
        points = {}
        for thing in scene.things:
            places = marks(thing.name, thing.style, REACH.get(self.kind, INSIDE))
            if self.after.thing.pull is not None:
                places = {**places, PART: (self.after.thing.pull.x, self.after.thing.pull.y)}
            prefix = "" if thing is scene.thing else NEIGHBOUR
            for name, place in places.items():
                pulled = place if thing.pull is None else carried(thing.pull, place)
                points[prefix + name] = art_scenes.to_picture(thing, *pulled, self.size)
        return points

    def handle_names(self, variant: str) -> tuple[str, ...]:
        """Return the names of the dragged points. A resize by one: the quarter whose outline is furthest out."""
        if self.kind == "resize" and variant == "one":
            points = self.points(self.before)
            return (max(QUARTERS, key=lambda name: math.dist(points["centre"], points[name])),)
        return HANDLES[self.kind][variant]

    @property
    def measured(self) -> tuple[str, ...]:
        return MEASURED[self.kind]

    def to_json(self) -> dict[str, Any]:
        return {"list": "artwork", "novelty": self.novelty, **super().to_json()}

    @staticmethod
    def read_scene(value: Mapping[str, Any]) -> ArtScene:
        def thing(value: Mapping[str, Any]) -> Thing:
            return Thing(**{**value, "pull": value["pull"] and Pull(**value["pull"])})

        ground = Ground(**{**value["ground"], "slope": tuple(value["ground"]["slope"])})
        return ArtScene(thing(value["thing"]), ground, value["neighbour"] and thing(value["neighbour"]))


def novelty(name: str, style: str) -> str:
    """Return which of `NOVELTIES` a drawing is."""
    if artwork.is_trained(name, style):
        return "seen"
    return "name" if artwork.held_out(name) == "all" else "style"


# ------------------------------------------------------------------------------------------------------ the two lists


def list_cases(which: str = "figures", limit: int | None = None, size: int = SIZE) -> list[ArtCase]:
    """Return the list of "figures" or of "settings", all kinds by turns; `limit`: only so many of each kind."""
    if which not in FIRST:
        raise ValueError(f"no list of cases {which!r}; there are {', '.join(FIRST)}")
    each = EACH if limit is None else min(limit, EACH)
    return [_case(which, kind, number, size) for number in range(each) for kind in KINDS]


def _case(which: str, kind: str, number: int, size: int) -> ArtCase:
    column = KINDS.index(kind)
    seed = scenes.HELD_OUT_SEEDS[FIRST[which] + column * STRETCH + number]
    rng = random.Random(seed)
    wanted = NOVELTIES[(number + column) % len(NOVELTIES)]
    structured = number // 2 % 2 == 0
    for _ in range(TRIES):
        before = _scene(rng, kind, wanted, structured)
        after = _EDITS[kind](rng, before, number)
        if after is None:
            continue
        case = ArtCase(kind, number, seed, before, after, size)
        if _drags_are_inside(case) and _stands_out(before):
            return case
    raise ValueError(f"no case {kind}-{number:02d}: no scene of the shipped artwork has room for it")


def _scene(rng: random.Random, kind: str, wanted: str, structured: bool) -> ArtScene:
    """Return a random scene for an edit of a kind, not yet known to have room."""
    style, beside = rng.choice(STYLES), kind in ("two", "protect")
    patterns = [name for name in art_scenes.PATTERNS if (name in STRUCTURED) == structured]
    ground = art_scenes.random_ground(rng, patterns)
    sizes = {"resize": SIZES_OF_RESIZE, "rotate": LARGE, "part": LARGE}.get(kind, art_scenes.SIZES)
    things = [
        _placed(rng, name, style, art_scenes.SIZES_BESIDE if beside else sizes)
        for name in rng.sample(names_of(style, wanted), 2 if beside else 1)
    ]
    return ArtScene(things[0], ground, things[1] if beside else None)


@cache
def names_of(style: str, wanted: str) -> list[str]:
    """Return the names of shipped things whose drawing in a style is of a novelty."""
    return [name for name in artwork.shipped().names if novelty(name, style) == wanted]


def _placed(rng: random.Random, name: str, style: str, sizes: tuple[float, float]) -> Thing:
    size = rng.uniform(*sizes)
    x, y = (rng.uniform(size / 2, 1 - size / 2) for _ in range(2))
    turned = art_scenes.TURNED
    return Thing(name, style, x, y, size, rng.uniform(-turned, turned), rng.random() < 0.5)


def _drags_are_inside(case: ArtCase) -> bool:
    """Return True if no handle and no target is nearer than `EDGE` to the edge, which a thing that turns may leave."""
    places = [place + 0.5 for drag in case.drags("five") for point in drag for place in point]  # "one" is among them
    return EDGE * case.size <= min(places) and max(places) <= (1 - EDGE) * case.size


def _stands_out(scene: ArtScene) -> bool:
    """Return True if every thing can be told from the ground by its colours."""
    ground = art_scenes.draw_ground(scene.ground, SIZE // 2)
    for thing in scene.things:
        drawn = art_scenes.draw_thing(thing, artwork.shipped(), SIZE // 2)
        inside = drawn[3] > OPAQUE
        if (2 * drawn[:3] - 1 - ground).norm(dim=0)[inside].median() < CONTRAST:
            return False
    return True


def _way_is_clear(before: ArtScene, after: ArtScene) -> bool:
    if not (art_scenes.is_clear(before) and art_scenes.is_clear(after)):  # most of what is tried
        return False
    things = edits.between(before.thing, after.thing, ArtCase.CHANGING)
    beside: Sequence[Thing | None] = [before.neighbour] * len(things)
    if before.neighbour is not None and after.neighbour is not None:
        beside = edits.between(before.neighbour, after.neighbour, ArtCase.CHANGING)
    return all(
        art_scenes.is_clear(ArtScene(thing, before.ground, other)) for thing, other in zip(things, beside, strict=True)
    )


def _move(rng: random.Random, before: ArtScene, number: int) -> ArtScene | None:
    after = replace(before, thing=scenes.moved(before.thing, rng, 0.1, 0.3))
    return after if _way_is_clear(before, after) else None


def _two(rng: random.Random, before: ArtScene, number: int) -> ArtScene | None:
    assert before.neighbour is not None
    thing, other = (scenes.moved(one, rng, 0.1, 0.25) for one in (before.thing, before.neighbour))
    after = replace(before, thing=thing, neighbour=other)
    return after if _way_is_clear(before, after) else None


def _resize(rng: random.Random, before: ArtScene, number: int) -> ArtScene | None:
    size = rng.uniform(*SIZES_OF_RESIZE)
    growth = size - before.thing.size if number % 2 == 0 else before.thing.size - size
    after = replace(before, thing=replace(before.thing, size=size))
    return after if growth >= 0.16 and _way_is_clear(before, after) else None


def _rotate(rng: random.Random, before: ArtScene, number: int) -> ArtScene | None:
    angle = math.radians(rng.choice((-1, 1)) * rng.uniform(20, 60))
    thing = replace(before.thing, rotation=before.thing.rotation + angle)
    ends = (marks(thing.name, thing.style)[name] for name in ENDS)
    ways = [math.dist(*(art_scenes.to_picture(one, *end, 1) for one in (before.thing, thing))) for end in ends]
    after = replace(before, thing=thing)
    return after if min(ways) >= 0.05 and max(ways) >= 0.1 and _way_is_clear(before, after) else None


def _part(rng: random.Random, before: ArtScene, number: int) -> ArtScene | None:
    thing = before.thing
    u, v = rng.choice(outstanding(thing.name, thing.style))
    centre = marks(thing.name, thing.style)["centre"]
    outward = math.atan2(v - centre[1], u - centre[0])
    way = outward + math.radians(rng.choice((-1, 1)) * rng.uniform(0, 100))
    length = rng.uniform(0.06, 0.1) / thing.size
    pull = Pull(u, v, length * math.cos(way), length * math.sin(way), max(0.2, 2.5 * length))
    after = replace(before, thing=replace(thing, pull=pull))
    return after if art_scenes.is_clear(after) else None


_EDITS: Mapping[str, Callable[[random.Random, ArtScene, int], ArtScene | None]] = {
    "move": _move,
    "resize": _resize,
    "rotate": _rotate,
    "two": _two,
    "protect": _move,
    "part": _part,
}

"""The benchmark's cases: edits of drawn scenes whose exact results are known, because they are drawn too.

Twenty of each of five kinds:

- move: the object goes 10 to 30 % of the picture's width; nothing else is in the picture;
- resize: points of the outline go out or in, the object's radius changing by 8 % of the width or more;
- turn: a large face's nose goes 10 % of the width or more, which turns the head;
- two: object and neighbour go 10 to 25 % each, in directions of their own;
- protect: the object goes 10 to 30 % beside a neighbour that the mask protects.

Each can be asked for by few handles ("one" for each object) or by many ("five"). There are two lists of the same kinds
and no common seed: "figures", whose figures are reported, and "settings", on which settings are chosen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor

from dragsa.evaluation import edits, scenes
from dragsa.evaluation.edits import FIVE, NEIGHBOUR, QUARTERS, SIZE, Edit
from dragsa.evaluation.scenes import Scene
from dragsa.pictures import Point

KINDS = ("move", "resize", "turn", "two", "protect")
EACH = 20  # of every kind
FIRST = {"figures": 20_000, "settings": 60_000}  # of the held-out seeds; each kind has its own stretch from there
STRETCH = 5_000

HANDLES = {
    "move": {"one": ("centre",), "five": FIVE},
    "resize": {"one": (), "five": FIVE},  # one: see `Case.handle_names`
    "turn": {"one": ("nose",), "five": ("nose", "left eye", "right eye", "mouth")},
    "two": {"one": ("centre", NEIGHBOUR + "centre"), "five": (*FIVE, *(NEIGHBOUR + name for name in FIVE))},
    "protect": {"one": ("centre",), "five": FIVE},
}
MEASURED = {  # the points whose remaining distance is reported
    "move": ("centre",),
    "resize": QUARTERS,
    "turn": ("nose",),
    "two": ("centre", NEIGHBOUR + "centre"),
    "protect": ("centre",),
}
WHOLE = ("move", "two", "protect")  # kinds of which one handle stands for a whole object
REACH = {"resize": 0.85}  # where the four points lie between centre and outline
INSIDE = 0.6  # the same for the other kinds
LARGE_FACE = 0.54
TURNED = math.radians(4)  # a face's yaw, from which on its outline tells no places


@dataclass(frozen=True)
class Case(Edit):
    """An edit of a drawn scene."""

    before: Scene
    after: Scene

    def caption(self, scene: Scene, full: bool = False) -> str:
        """Return a scene in words; with `full` also where its object is and where a face looks."""
        return scenes.caption(scene, place=full, looking=full)

    def drawn(self, scene: Scene) -> Tensor:
        return scenes.draw(scene, self.size)

    def covered(self, thing: Scene) -> Tensor:
        return scenes.object_mask(thing, self.size)

    @property
    def moving(self) -> list[tuple[Scene, Scene]]:
        pairs = [(self.before, self.after)]
        if self.kind == "two" and self.before.neighbour is not None and self.after.neighbour is not None:
            pairs.append((self.before.neighbour, self.after.neighbour))
        return pairs

    def points(self, scene: Scene) -> dict[str, Point]:
        """Return named points of a scene's object and neighbour, in pixels."""
        reach = REACH.get(self.kind, INSIDE)
        points = scenes.keypoints(scene, self.size, reach)
        if scene.neighbour is not None:
            beside = scenes.keypoints(scene.neighbour, self.size, reach)
            points |= {NEIGHBOUR + name: point for name, point in beside.items()}
        return points

    def handle_names(self, variant: str) -> tuple[str, ...]:
        """Return the names of the dragged points. A resize by one: the quarter whose outline is furthest out."""
        if self.kind == "resize" and variant == "one":
            points = self.points(self.before)
            furthest = max(math.dist(points["centre"], points[name]) for name in QUARTERS)
            quarters = [n for n in QUARTERS if math.dist(points["centre"], points[n]) > 0.999 * furthest]
            return (quarters[self.number % len(quarters)],)
        return HANDLES[self.kind][variant]

    @property
    def measured(self) -> tuple[str, ...]:
        return MEASURED[self.kind]

    def is_measurable(self, name: str, after: Scene) -> bool:
        """As `Edit` says; of a disc the middle alone, and of a face that has turned its features alone."""
        if self.before.shape == "disc" and name != "centre":
            return False
        turned = self.before.shape == "face" and abs(after.yaw - self.before.yaw) > TURNED
        return super().is_measurable(name, after) and (name in HANDLES["turn"]["five"] or not turned)

    @staticmethod
    def read_scene(value: Mapping[str, Any]) -> Scene:
        neighbour = None if value["neighbour"] is None else Case.read_scene(value["neighbour"])
        return Scene(**{**value, "slope": tuple(value["slope"]), "neighbour": neighbour})


def between(before: Scene, after: Scene) -> list[Scene]:
    """Return scenes on the straight way, both ends among them; places and sizes change, of the neighbour too."""
    ways = edits.between(before, after, Case.CHANGING)
    if before.neighbour is None or after.neighbour is None:
        return ways
    beside = edits.between(before.neighbour, after.neighbour, Case.CHANGING)
    return [replace(way, neighbour=other) for way, other in zip(ways, beside, strict=True)]


# ------------------------------------------------------------------------------------------------------ the two lists


def cases(which: str = "figures", limit: int | None = None, size: int = SIZE) -> list[Case]:
    """Return the list of "figures" or of "settings", all kinds by turns; `limit`: only so many of each kind."""
    if which not in FIRST:
        raise ValueError(f"no list of cases {which!r}; there are {', '.join(FIRST)}")
    each = EACH if limit is None else min(limit, EACH)
    columns = []
    for n, kind in enumerate(KINDS):
        first = FIRST[which] + n * STRETCH
        edits = ((seed, _edit(kind, seed)) for seed in scenes.HELD_OUT_SEEDS[first : first + STRETCH])
        with_room = islice(((seed, *pair) for seed, pair in edits if pair is not None), each)
        columns.append([Case(kind, number, *edit, size) for number, edit in enumerate(with_room)])
    return [case for row in zip(*columns, strict=True) for case in row]


def _edit(kind: str, seed: int, tries: int = 300) -> tuple[Scene, Scene] | None:
    """Return a seed's scene before and after the edit, or None if no try gives one that fits into the picture."""
    rng = random.Random(seed + 1)
    before = scenes.random_scene(seed, ("face",) if kind == "turn" else None, neighbour=kind in ("two", "protect"))
    if kind == "turn" and before.size < LARGE_FACE:
        return None
    for _ in range(tries):
        if kind in ("move", "protect"):
            pair = before, scenes.moved(before, rng, 0.1, 0.3)
        elif kind == "two" and before.neighbour is not None:
            first, second = (scenes.moved(one, rng, 0.1, 0.25) for one in (before, before.neighbour))
            pair = before, replace(first, neighbour=second)
        elif kind == "resize":
            least, most = scenes.FACE_SIZES if before.shape == "face" else scenes.SIZES
            pair = before, replace(before, size=rng.uniform(least, most))
            if abs(pair[1].size - before.size) / 2 < 0.08:
                continue
        else:
            yaws = math.radians(rng.uniform(-40, 40)), math.radians(rng.uniform(-40, 40))
            pair = replace(before, yaw=yaws[0]), replace(before, yaw=yaws[1])
            noses = [scenes.keypoints(face, 1)["nose"] for face in pair]
            if math.dist(*noses) < 0.1:
                continue
        if all(scenes.is_clear(way) for way in between(*pair)):
            return pair
    return None

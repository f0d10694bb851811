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

import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dragsa import pictures
from dragsa.editing import Drag
from dragsa.evaluation import scenes
from dragsa.evaluation.scenes import Scene
from dragsa.pictures import Point

KINDS = ("move", "resize", "turn", "two", "protect")
EACH = 20  # of every kind
SIZE = 128  # pixels
FIRST = {"figures": 20_000, "settings": 60_000}  # of the held-out seeds; each kind has its own stretch from there
STRETCH = 5_000

QUARTERS = ("top", "right", "bottom", "left")
FIVE = ("centre", *QUARTERS)
NEIGHBOUR = "neighbour "  # before the names of a neighbour's points
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
ROOM = 1.3  # of the size of what moves: the mask's
ROOM_BESIDE = 4 / 128  # of the width: the mask keeps so far from a protected neighbour
LARGE_FACE = 0.54
WAYPOINTS = 17


@dataclass(frozen=True)
class Case:
    """One edit and its exact truth. `after` is `before` with what the edit should change, and nothing else."""

    kind: str
    number: int  # of its kind, from 0
    seed: int
    before: Scene
    after: Scene
    size: int = SIZE

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:02d}"

    @property
    def prompt(self) -> str:
        return scenes.caption(self.before)

    @cached_property
    def source(self) -> Image.Image:
        return pictures.to_picture(scenes.draw(self.before, self.size))

    @cached_property
    def truth(self) -> Image.Image:
        return pictures.to_picture(scenes.draw(self.after, self.size))

    @property
    def moving(self) -> list[tuple[Scene, Scene]]:
        """The objects that an edit moves or changes, each before and after."""
        pairs = [(self.before, self.after)]
        if self.kind == "two" and self.before.neighbour is not None and self.after.neighbour is not None:
            pairs.append((self.before.neighbour, self.after.neighbour))
        return pairs

    @cached_property
    def mask(self) -> Tensor:
        """The mask (H, W), 1 where the edit may change the picture: all that the objects sweep, with room."""
        swept = torch.stack([corridor(*pair, self.size) for pair in self.moving]).amax(dim=0)
        if self.kind == "protect" and self.before.neighbour is not None:
            swept = swept * (1 - dilated(scenes.object_mask(self.before.neighbour, self.size), ROOM_BESIDE))
        return swept

    @property
    def pictures(self) -> dict[str, Image.Image]:
        mask = Image.fromarray((255 * self.mask).to(torch.uint8).numpy())
        return {"source": self.source, "truth": self.truth, "mask": mask}

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

    def drags(self, variant: str) -> tuple[Drag, ...]:
        """Return handles and targets in pixels. `variant`: "one" handle for each object, or "five"."""
        start, goal = self.points(self.before), self.points(self.after)
        return tuple((start[name], goal[name]) for name in self.handle_names(variant))

    @property
    def measured(self) -> tuple[str, ...]:
        return MEASURED[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Return all that a program needs to make the edit, and an evaluator to judge it."""
        drags = {
            variant: [
                {"name": name, "handle": handle, "target": target}
                for name, (handle, target) in zip(self.handle_names(variant), self.drags(variant), strict=True)
            ]
            for variant in ("one", "five")
        }
        scalars = {name: getattr(self, name) for name in ("name", "kind", "number", "seed", "size", "prompt")}
        points = {"before": self.points(self.before), "after": self.points(self.after)}
        scenes = {"before": asdict(self.before), "after": asdict(self.after)}
        return {**scalars, "drags": drags, "measured": list(self.measured), "points": points, **scenes}


def corridor(before: Scene, after: Scene, size: int = SIZE) -> Tensor:
    """Return the mask of an object on a straight way from `before` to `after`, with room round it: (H, W), 0 or 1."""
    ways = [scenes.object_mask(replace(way, size=ROOM * way.size), size) for way in between(before, after)]
    return (torch.stack(ways).amax(dim=0) > 0.5).float()


def dilated(mask: Tensor, reach: float) -> Tensor:
    """Return a mask (H, W) with all that is nearer than `reach` of the width to it: 0 or 1."""
    room = round(reach * mask.shape[-1])
    return F.max_pool2d((mask > 0)[None].float(), 2 * room + 1, stride=1, padding=room)[0]


def between(before: Scene, after: Scene) -> list[Scene]:
    """Return scenes on the straight way, both ends among them; places and sizes change, of the neighbour too."""
    return [_mix(before, after, n / (WAYPOINTS - 1)) for n in range(WAYPOINTS)]


def _mix(before: Scene, after: Scene, share: float) -> Scene:
    mixed: dict[str, Any] = {
        name: getattr(before, name) * (1 - share) + getattr(after, name) * share for name in ("x", "y", "size")
    }
    neighbour = before.neighbour
    if neighbour is not None and after.neighbour is not None:
        neighbour = _mix(neighbour, after.neighbour, share)
    return replace(before, **mixed, neighbour=neighbour)


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


# ---------------------------------------------------------------------------------------------------------- as files


def load(folder: Path) -> Case:
    """Return the case of a folder that `runs.save` wrote. Raises OSError or ValueError for a folder that holds none."""
    try:
        value = json.loads((folder / "case.json").read_text())
        before, after = (_scene(value[name]) for name in ("before", "after"))
        return Case(value["kind"], value["number"], value["seed"], before, after, value["size"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'case.json'}: not a case of this benchmark ({error})") from None


def _scene(value: Mapping[str, Any]) -> Scene:
    neighbour = None if value["neighbour"] is None else _scene(value["neighbour"])
    return Scene(**{**value, "slope": tuple(value["slope"]), "neighbour": neighbour})

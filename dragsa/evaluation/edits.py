"""An edit whose exact result is known, because it is drawn: what the benchmark's lists of cases have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dragsa import pictures
from dragsa.editing import Drag
from dragsa.pictures import Point

SIZE = 128  # pixels
QUARTERS = ("top", "right", "bottom", "left")
FIVE = ("centre", *QUARTERS)
VARIANTS = ("one", "five")  # of handles
NEIGHBOUR = "neighbour "  # before the names of a neighbour's points
ROOM = 1.3  # of the size of what moves: the mask's
ROOM_BESIDE = 4 / 128  # of the width: the mask keeps so far from a protected neighbour
WAYPOINTS = 17


@dataclass(frozen=True)
class Edit(ABC):
    """One edit and its exact truth. `after` is `before` with what the edit should change, and nothing else.

    A subclass says what its scenes are: how they are drawn and told in words, and where their points are.
    """

    kind: str
    number: int  # of its kind, from 0
    seed: int
    before: Any
    after: Any
    size: int = SIZE

    CHANGING: ClassVar[tuple[str, ...]] = ("x", "y", "size")  # what of an object changes on its way

    @abstractmethod
    def caption(self, scene: Any, full: bool = False) -> str:
        """Return a scene in words; with `full` all that words can say of it, such as an object's place."""

    @abstractmethod
    def drawn(self, scene: Any) -> Tensor:
        """Return a scene as a picture (3, H, W) in [-1, 1]."""

    @abstractmethod
    def covered(self, thing: Any) -> Tensor:
        """Return how far an object covers each pixel: (H, W) in [0, 1]."""

    @property
    @abstractmethod
    def moving(self) -> list[tuple[Any, Any]]:
        """The objects that an edit moves or changes, each before and after."""

    @abstractmethod
    def points(self, scene: Any) -> dict[str, Point]:
        """Return named points of a scene's object and neighbour, in pixels."""

    @abstractmethod
    def handle_names(self, variant: str) -> tuple[str, ...]:
        """Return the names of the dragged points. `variant`: "one" handle for each object, or "five"."""

    @property
    @abstractmethod
    def measured(self) -> tuple[str, ...]:
        """The names of the points whose remaining distance is reported."""

    def is_measurable(self, name: str, after: Any) -> bool:
        """Tell whether where a point of the scene went can be measured in a result that shows the scene `after`."""
        return not name.startswith(NEIGHBOUR)

    @staticmethod
    @abstractmethod
    def read_scene(value: Mapping[str, Any]) -> Any:
        """Return a scene as `to_json` wrote it. Raises KeyError or TypeError for what is none."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:02d}"

    @property
    def prompt(self) -> str:
        return self.caption(self.before)

    @cached_property
    def source(self) -> Image.Image:
        return pictures.to_picture(self.drawn(self.before))

    @cached_property
    def truth(self) -> Image.Image:
        return pictures.to_picture(self.drawn(self.after))

    @cached_property
    def mask(self) -> Tensor:
        """The mask (H, W), 1 where the edit may change the picture: all that the objects sweep, with room."""
        swept = torch.stack([self.corridor(*pair) for pair in self.moving]).amax(dim=0)
        if self.kind == "protect" and self.before.neighbour is not None:
            swept = swept * (1 - dilated(self.covered(self.before.neighbour), ROOM_BESIDE))
        return swept

    def corridor(self, before: Any, after: Any) -> Tensor:
        """Return the mask of an object on a straight way from `before` to `after`, with room round it: (H, W)."""
        ways = between(before, after, self.CHANGING)
        covered = [self.covered(replace(way, size=ROOM * way.size)) for way in ways]
        return (torch.stack(covered).amax(dim=0) > 0.5).float()

    @property
    def pictures(self) -> dict[str, Image.Image]:
        mask = Image.fromarray((255 * self.mask).to(torch.uint8).numpy())
        return {"source": self.source, "truth": self.truth, "mask": mask}

    def drags(self, variant: str) -> tuple[Drag, ...]:
        """Return handles and targets in pixels. `variant`: "one" handle for each object, or "five"."""
        start, goal = self.points(self.before), self.points(self.after)
        return tuple((start[name], goal[name]) for name in self.handle_names(variant))

    def to_json(self) -> dict[str, Any]:
        """Return all that a program needs to make the edit, and an evaluator to judge it."""
        drags = {
            variant: [
                {"name": name, "handle": handle, "target": target}
                for name, (handle, target) in zip(self.handle_names(variant), self.drags(variant), strict=True)
            ]
            for variant in VARIANTS
        }
        scalars = {name: getattr(self, name) for name in ("name", "kind", "number", "seed", "size", "prompt")}
        points = {"before": self.points(self.before), "after": self.points(self.after)}
        scenes = {"before": asdict(self.before), "after": asdict(self.after)}
        return {**scalars, "drags": drags, "measured": list(self.measured), "points": points, **scenes}


def load(folder: Path, of_list: Callable[[Any], type[Edit]]) -> Edit:
    """Return the case of a folder that `runs.save` wrote. Raises OSError or ValueError for a folder that holds none.

    `of_list`: the case's class by what was written.
    """
    try:
        value = json.loads((folder / "case.json").read_text())
        kind = of_list(value)
        before, after = (kind.read_scene(value[name]) for name in ("before", "after"))
        return kind(value["kind"], value["number"], value["seed"], before, after, value["size"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'case.json'}: not a case of this benchmark ({error})") from None


def dilated(mask: Tensor, reach: float) -> Tensor:
    """Return a mask (H, W) with all that is nearer than `reach` of the width to it: 0 or 1."""
    room = round(reach * mask.shape[-1])
    return F.max_pool2d((mask > 0)[None].float(), 2 * room + 1, stride=1, padding=room)[0]


def between(before: Any, after: Any, names: Sequence[str]) -> list[Any]:
    """Return objects on the straight way, both ends among them, with the named numbers changing."""
    return [mixed(before, after, n / (WAYPOINTS - 1), names) for n in range(WAYPOINTS)]


def mixed(before: Any, after: Any, share: float, names: Sequence[str]) -> Any:
    """Return an object so far on the way from `before` to `after`."""
    numbers = {name: getattr(before, name) * (1 - share) + getattr(after, name) * share for name in names}
    return replace(before, **numbers)

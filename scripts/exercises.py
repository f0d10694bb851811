"""Ten exercises: each changes a line of one drag, and its question is answered by a number and a picture.

    python scripts/exercises.py                             the questions
    python scripts/exercises.py --answers out/answers.png   the answers, on one sheet

The drag is `drag`, below, the paper's as printed with T = 20 in place of 50: the disc goes from (42, 79) to (70, 59).
Try each by hand first: change what stands in its `drag` or `edit`, run it, and say what you expect before you look.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dragsa
from dragsa import cli, pictures

HERE = Path(__file__).parent
DISC, MASK = HERE / "demo" / "disc.png", HERE / "demo" / "mask.png"
HANDLE, TARGET = (42, 79), (70, 59)
FIVE = ((0, 0), (1, -14), (13, 1), (-2, 14), (-14, -2))  # from the disc's middle
LOOP = dragsa.DragConfig(updates=30, radius=3, optimizer="sgd", loss="sum")
BASE = dragsa.EditConfig.paper(
    size=128, steps=20, drag_step=8, control_step=8, drag=LOOP, source_kv="none", paste=False
)


@dataclass(frozen=True)
class Outcome:
    """The result of one drag, measured, lengths in pixels."""

    picture: Image.Image
    left: float  # from the middle of what is red to the target; infinite where nothing is
    red: int  # pixels that are clearly more red than green and blue
    ground: float  # mean difference from the source where the mask lets nothing move, of 255
    updates: int
    tracked_left: float  # from where tracking found the handle to its target


@dataclass(frozen=True)
class Exercise:
    """A question, what to change for it, and a check of the answer: given the drag as it is, and as changed.

    `both`: what is changed of the drag as it is, too.
    """

    question: str
    answer: str
    check: Callable[[Outcome, Outcome], bool]
    drag: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] = field(default_factory=dict)
    both: dict[str, Any] = field(default_factory=dict)
    masked: bool = True
    handles: int = 1


EXERCISES = (
    Exercise(
        "Tap decoder2 in place of block14: how far does the handle come?",
        "It is lost: at 8 by 8 cells a patch has no place of its own.",
        lambda base, new: new.tracked_left > base.tracked_left + 5,
        drag={"tap": "decoder2"},
    ),
    Exercise(
        "Drag early, S = 2: how many updates?",
        "Fewer: in much noise features move easily, and the steps that follow undo a part.",
        lambda base, new: new.updates < base.updates,
        edit={"drag_step": 2},
    ),
    Exercise(
        "Drag late, S = 16: how far does the disc come?",
        "Less far: the layout has been decided.",
        lambda base, new: new.left > base.left + 2,
        edit={"drag_step": 16},
    ),
    Exercise(
        "The printed patch, r_1 = 1: how far does the disc come?",
        "Less far: the middle of an even disc tells little of where it is.",
        lambda base, new: new.left > base.left + 2,
        drag={"radius": 1},
    ),
    Exercise(
        "No mask: how many updates?",
        "Fewer: nothing weighs against the pull any more.",
        lambda base, new: new.updates < base.updates,
        masked=False,
    ),
    Exercise(
        "Control never: whose colours?",
        "Its own: a part is not red any more.",
        lambda base, new: new.red < 0.95 * base.red,
        edit={"control_step": None},
    ),
    Exercise(
        "Track by h^k, as printed: where does the disc come?",
        "Less far: the handle drifts off it, and tears a piece out.",
        lambda base, new: new.left > base.left + 2,
        drag={"reference": "current"},
    ),
    Exercise(
        "Adam and the mean in place of the printed descent: how many updates?",
        "More, all there are: Adam moves a latent by 0.01 an update, whatever the loss.",
        lambda base, new: new.updates > base.updates,
        drag={"optimizer": "adam", "loss": "mean"},
    ),
    Exercise(
        "No update at all, and inversion without its first step: what of the ground?",
        "It comes back less well than with that step.",
        lambda base, new: new.ground > base.ground,
        edit={"variant": "omitted"},
        both={"updates": 0},
    ),
    Exercise(
        "Five handles in place of one: how far does the disc come?",
        "Further: its outline is pulled along.",
        lambda base, new: new.left < base.left,
        handles=5,
    ),
)


Sources = dict[str, dragsa.Source]  # the picture, inverted once by each schedule variant


def make(
    sd: dragsa.StableDiffusion, base: dragsa.EditConfig, sources: Sources, exercise: Exercise | None = None
) -> Outcome:
    """Make the drag as it is, or as an exercise changes it. A source that is missing is added to `sources`."""
    asked = exercise or Exercise("", "", lambda base, new: True)
    config = replace(base, drag=replace(base.drag, **asked.drag), **asked.edit)
    drags = [((HANDLE[0] + x, HANDLE[1] + y), (TARGET[0] + x, TARGET[1] + y)) for x, y in FIVE[: asked.handles]]
    if config.variant not in sources:
        sources[config.variant] = dragsa.prepare(sd, DISC, config=config)
    result = dragsa.edit(sd, sources[config.variant], drags, MASK if asked.masked else None, config=config)
    left = max(result.trace.distances_of(result.trace.tracked)[0])
    return outcome_of(result.image, len(result.trace.losses), left)


def outcome_of(picture: Image.Image, updates: int, tracked_left: float) -> Outcome:
    """Measure a result in its pixels."""
    levels, source = (np.asarray(one, dtype=float) for one in (picture, pictures.open_picture(DISC)))
    rows, columns = np.nonzero(levels[..., 0] - levels[..., 1:].max(axis=2) > 60)
    left = math.dist((columns.mean(), rows.mean()), TARGET) if len(rows) else math.inf
    still = np.asarray(Image.open(MASK).convert("L")) == 0
    ground = float(np.abs(levels - source).mean(axis=2)[still].mean())
    return Outcome(picture, left, len(rows), ground, updates, tracked_left)


def answers(sd: dragsa.StableDiffusion, base: dragsa.EditConfig = BASE) -> list[tuple[str, Image.Image]]:
    """Make every exercise, and print it; return captions and pictures, the source and the drag as it is first."""
    sources: Sources = {}
    first = make(sd, base, sources)
    panels = [("The source", pictures.open_picture(DISC)), (f"The drag as it is: {told(first)}", first.picture)]
    for n, exercise in enumerate(EXERCISES, start=1):
        own = replace(base, drag=replace(base.drag, **exercise.both))
        new, beside = make(sd, own, sources, exercise), make(sd, own, sources) if exercise.both else first
        verdict = "as expected" if exercise.check(beside, new) else "not as expected"
        panels.append((f"{n}. {exercise.question} {exercise.answer} {told(new)}: {verdict}", new.picture))
    for caption, _ in panels:
        print(caption, flush=True)
    return panels


def told(outcome: Outcome) -> str:
    updates, off = f"{outcome.updates} updates", f"handle {outcome.tracked_left:.1f} px off, disc {outcome.left:.1f}"
    return f"({updates}, {off}, {outcome.red} pixels red, ground {outcome.ground:.2f})"


def sheet_of(panels: list[tuple[str, Image.Image]], columns: int = 4) -> Image.Image:
    """Lay captions and pictures out in rows."""
    rows = [pictures.sheet(panels[n : n + columns]) for n in range(0, len(panels), columns)]
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for n, row in enumerate(rows):
        whole.paste(row, (0, sum(one.height for one in rows[:n])))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--answers", type=Path, metavar="OUT", help="make all answers, and write them on one sheet")
    options = parser.parse_args()
    if options.answers is None:
        print("\n".join(f"{n}. {exercise.question}" for n, exercise in enumerate(EXERCISES, start=1)))
        return
    pictures.save_picture(sheet_of(answers(dragsa.load(cli.SMALL))), options.answers)


if __name__ == "__main__":
    main()

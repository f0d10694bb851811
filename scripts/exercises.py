"""Ten exercises: each adds options to one drag, and its question is answered by a number and a picture.

    python scripts/exercises.py                             the drag's command, the questions and their options
    python scripts/exercises.py --answers out/answers.png   the answers, on one sheet

The drag is the paper's as printed, with T = 20 in place of 50 and r_1 = 3: the disc goes from (42, 79) to (70, 59). Try
each by hand first: say what you expect, add the exercise's options to the command, and look.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

import dragsa
from dragsa import cli, pictures

TOP = Path(__file__).parents[1]
DISC, MASK = "scripts/demo/disc.png", "scripts/demo/mask.png"
HANDLE, TARGET = (42, 79), (70, 59)
DRAG = (
    f"{DISC} --preset paper_printed --size 128 --steps 20 --drag-step 8 --control-step 8 --radius 3 --updates 30 "
    f"--no-paste --drag 42,79:70,59 --mask {MASK}"
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
    """A question, the options to be added for it, and a check of the answer: given the drag as it is, and as changed.

    `both`: options that the drag as it is gets for this question, too.
    """

    question: str
    options: str
    answer: str
    check: Callable[[Outcome, Outcome], bool]
    both: str = ""


EXERCISES = (
    Exercise(
        "Tap decoder2 in place of block14, both by Adam: how far does the disc come?",
        "--tap decoder2",
        "Nowhere: one of its 8 by 8 cells spans 16 pixels, too coarse to tell where the disc is.",
        lambda base, new: new.left > base.left + 5,
        both="--optimizer adam --loss mean --lr 0.05",
    ),
    Exercise(
        "Drag early, S = 2: how many updates?",
        "--drag-step 2",
        "Fewer: in much noise features move easily. But the disc comes less far: the steps that follow undo a part.",
        lambda base, new: new.updates < base.updates,
    ),
    Exercise(
        "Drag late, S = 16: how far does the disc come?",
        "--drag-step 16",
        "Less far: the layout has been decided.",
        lambda base, new: new.left > base.left + 2,
    ),
    Exercise(
        "The patch of DragDiffusion's program, r_1 = 1: how far does the disc come?",
        "--radius 1",
        "Less far: the sum is over 9 cells in place of 49, and pulls a fifth as hard; with --lr 0.05 it comes as far.",
        lambda base, new: new.left > base.left + 2,
    ),
    Exercise(
        "No mask term, λ = 0: how many updates?",
        "--lam 0",
        "Fewer: nothing weighs against the pull any more.",
        lambda base, new: new.updates < base.updates,
    ),
    Exercise(
        "Control never: whose colours?",
        "--control-step never",
        "The disc's are not the source's: a part is not red any more.",
        lambda base, new: new.red < 0.95 * base.red,
    ),
    Exercise(
        "Track by h^k, as printed: where does the disc come?",
        "--reference current",
        "Less far: the handle drifts off it, and tears a piece out.",
        lambda base, new: new.left > base.left + 2,
    ),
    Exercise(
        "Adam and the mean in place of the printed descent: how many updates?",
        "--optimizer adam --loss mean",
        "More, all there are: Adam changes no value of the latent by much more than 0.01 an update, the printed "
        "descent's first changes one by 0.5.",
        lambda base, new: new.updates > base.updates,
    ),
    Exercise(
        "No update at all, and inversion without its first step: what of the ground?",
        "--variant omitted",
        "It comes back less well than with that step.",
        lambda base, new: new.ground > base.ground,
        both="--updates 0",
    ),
    Exercise(
        "Five handles in place of one: how far does the disc come?",
        "--drag 43,65:71,45 --drag 55,80:83,60 --drag 40,93:68,73 --drag 28,77:56,57",
        "Further, with --lr 0.002 too, which pulls as hard as one handle: the outline is pulled along.",
        lambda base, new: new.left < base.left,
    ),
)


Sources = dict[str, dragsa.Source]  # the picture, inverted once by each schedule variant


def make(sd: dragsa.StableDiffusion, options: str, sources: Sources) -> Outcome:
    """Make the drag with options added; of two alike the last holds. A source that is missing is added to `sources`."""
    asked = vars(cli.build_parser().parse_args(["edit", *shlex.split(f"{DRAG} {options}")]))
    config = replace(cli.config_of(asked), source_kv="none")  # K/V kept by one edit would change the next, by rounding
    if config.variant not in sources:
        sources[config.variant] = dragsa.prepare(sd, TOP / asked["image"], config=config)
    result = dragsa.edit(sd, sources[config.variant], asked["drag"], TOP / asked["mask"], config=config)
    left = max(result.trace.distances_of(result.trace.tracked)[0])
    return outcome_of(result.image, len(result.trace.losses), left)


def outcome_of(picture: Image.Image, updates: int, tracked_left: float) -> Outcome:
    """Measure a result in its pixels."""
    levels, source = (np.asarray(one, dtype=float) for one in (picture, pictures.open_picture(TOP / DISC)))
    rows, columns = np.nonzero(levels[..., 0] - levels[..., 1:].max(axis=2) > 60)
    left = math.dist((columns.mean(), rows.mean()), TARGET) if len(rows) else math.inf
    still = np.asarray(Image.open(TOP / MASK).convert("L")) == 0
    ground = float(np.abs(levels - source).mean(axis=2)[still].mean())
    return Outcome(picture, left, len(rows), ground, updates, tracked_left)


def answers(sd: dragsa.StableDiffusion, more: str = "") -> list[tuple[str, Image.Image]]:
    """Make every exercise, and print it; return captions and pictures, the source and the drag as it is first.

    more: options that every drag gets, before the exercise's own.
    """
    sources: Sources = {}
    first = make(sd, more, sources)
    panels = [("The source", pictures.open_picture(TOP / DISC)), (f"The drag as it is: {told(first)}", first.picture)]
    for n, exercise in enumerate(EXERCISES, start=1):
        beside = make(sd, f"{more} {exercise.both}", sources) if exercise.both else first
        new = make(sd, f"{more} {exercise.both} {exercise.options}", sources)
        verdict = "as expected" if exercise.check(beside, new) else "not as expected"
        without = f", without {exercise.options} {told(beside)}" if exercise.both else ""
        caption = f"{n}. {exercise.question} {exercise.answer} {told(new)}{without}: {verdict}"
        panels.append((caption, new.picture))
    for caption, _ in panels:
        print(caption, flush=True)
    return panels


def told(outcome: Outcome) -> str:
    updates, off = f"{outcome.updates} updates", f"handle {outcome.tracked_left:.1f} px off, disc {outcome.left:.1f}"
    return f"({updates}, {off}, {outcome.red} pixels red, ground {outcome.ground:.2f})"


def questions() -> str:
    """Return the drag's command, and each question with the options that it adds."""
    lines = ["mkdir -p out", f"dragsa edit {DRAG} --out out/exercise.png --force"]
    for n, exercise in enumerate(EXERCISES, start=1):
        added = f"{exercise.both}, then also {exercise.options}" if exercise.both else exercise.options
        lines += [f"{n}. {exercise.question}", f"   {added}"]
    return "\n".join(lines)


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
        print(questions())
        return
    pictures.save_picture(sheet_of(answers(dragsa.load(cli.SMALL))), options.answers)


if __name__ == "__main__":
    main()

"""What a reproduction works on: drawn scenes, whose truth is known, or one's own pictures; and what is said of results.

One's own come as a job file of `dragsa edit` (JSON, one job or a list of them), of which these options count: `image`,
or `from_noise` and `seed` for a picture that is generated; `prompt`, `target_prompt`, `drag`, `mask`, `object_words`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cases
import evaluate
import numpy as np
import published_metrics
import scenes
import torch
from cases import Case
from PIL import Image
from scenes import Scene
from torch import Tensor

from dragsa import cli
from dragsa.editing import Drag
from dragsa.loading import StableDiffusion
from dragsa.pictures import images

FIRST = {"real": 90_000, "generated": 92_000, "restyled": 94_000, "round trip": 1_000}  # of the held-out seeds
OWN_KEYS = ("image", "from_noise", "seed", "prompt", "target_prompt", "drag", "mask", "object_words")
TURN = math.radians(35)  # of a generated face, to the right
LEAST_TURN = math.radians(20)
MOST_YAW = math.radians(40)


@dataclass(frozen=True)
class Subject:
    """A picture and what is asked of it. Points are in its pixels.

    `picture`: None for one that prompt and seed generate. `case`: of a drawn one, the truth after the whole edit.
    `shown`: of one that is to be generated, the scene to look for in it.
    """

    name: str
    prompt: str
    seed: int
    picture: Image.Image | None = None
    target_prompt: str | None = None
    drags: tuple[Drag, ...] = ()
    mask: Tensor | None = None  # (H, W), 1 where something may move
    object_words: tuple[str, ...] = ()
    case: Case | None = None
    shown: Scene | None = None

    @property
    def identity(self) -> str:
        """Of everything that an edit's result depends on."""
        said = [self.prompt, self.seed, self.target_prompt, self.drags, self.object_words]
        arrays = [None if x is None else np.asarray(x).tobytes() for x in (self.picture, self.mask)]
        return hashlib.sha256(repr((said, arrays)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------ drawn scenes


def recoloured(scene: Scene) -> Scene:
    """A face in another skin than its own and than the ground's colour."""
    return replace(scene, colour=next(c for c in scenes.SKINS if c not in (scene.colour, scene.ground)))


def turning_faces(count: int, size: int, seed: int) -> list[Subject]:
    """Held-out faces that are to get another colour by the prompt, and to be turned to the right by the drag."""
    found: list[Subject] = []
    for number in scenes.HELD_OUT_SEEDS[FIRST["real"] : FIRST["real"] + 2_000]:
        drawn = scenes.random_scene(number, ("face",), neighbour=False)
        if len(found) == count:
            break
        if drawn.size < cases.LARGE_FACE or not -MOST_YAW <= drawn.yaw <= MOST_YAW - LEAST_TURN:
            continue
        picture = images.to_picture(scenes.draw(drawn, size))
        found.append(
            turned(Subject(f"face-{len(found):02d}", scenes.caption(drawn), seed, picture), drawn, size)
        )  # fmt: skip
    return found


def generated_faces(count: int, seed: int) -> list[Subject]:
    """Faces that the model is to draw, each from a seed of its own; what is dragged is found once they are drawn."""
    found = []
    for number in range(count):
        drawn = scenes.random_scene(scenes.HELD_OUT_SEEDS[FIRST["generated"] + number], ("face",), neighbour=False)
        drawn = replace(drawn, x=0.5, y=0.5, yaw=-LEAST_TURN, rotation=0.0, slope=(0.0, 0.0))
        prompt, wanted = (
            scenes.caption(scene, looking=looking) for scene, looking in ((drawn, True), (recoloured(drawn), False))
        )
        found.append(
            Subject(
                f"seed-{seed + number}",
                prompt,
                seed + number,
                target_prompt=wanted,
                object_words=("face",),
                shown=drawn,
            )
        )
    return found


def turned(subject: Subject, face: Scene, size: int) -> Subject:
    """The subject with its face to be recoloured by the prompt, and turned by a drag of nose, eyes and mouth."""
    wanted = recoloured(face)
    after = replace(wanted, yaw=min(MOST_YAW, face.yaw + TURN))
    case = Case("turn", 0, subject.seed, wanted, after, size)
    return replace(
        subject,
        target_prompt=subject.target_prompt or scenes.caption(wanted),
        drags=case.drags("five"),
        mask=case.mask,
        object_words=("face",),
        case=case,
    )


def found_face(subject: Subject, picture: Image.Image) -> Subject | None:
    """A generated subject with what is asked of the face that it shows; None where it shows none."""
    assert subject.shown is not None
    fit = evaluate.fit(images.to_tensor(picture)[0], subject.shown)
    if not fit.found or not fit.nose_found or fit.scene.yaw > MOST_YAW - LEAST_TURN:
        return None
    return turned(subject, fit.scene, picture.width)


def benchmark(count: int, size: int, seed: int) -> list[Subject]:
    """The first held-out cases of the truth benchmark, its kinds by turns."""
    listed = cases.cases("figures", math.ceil(count / len(cases.KINDS)), size)[:count]
    return [_of_case(case, seed) for case in listed]


def restyled(count: int, size: int, seed: int) -> list[Subject]:
    """Held-out objects alone that the prompt turns into another shape, and a drag moves."""
    found: list[Subject] = []
    for number in scenes.HELD_OUT_SEEDS[FIRST["restyled"] : FIRST["restyled"] + 2_000]:
        if len(found) == count:
            break
        before, after = scenes.translation(number)
        if before.shape == "face":
            continue
        shape = "star" if before.shape == "disc" else "disc"
        case = Case("move", len(found), number, before, after, size)
        prompt = scenes.caption(replace(before, shape=shape))
        subject = replace(_of_case(case, seed), name=f"shape-{len(found):02d}", target_prompt=prompt, case=None)
        found.append(subject)
    return found


def any_scenes(count: int, size: int, seed: int) -> list[Subject]:
    """Held-out scenes with nothing asked of them: those that `measure_small.py` takes."""
    first = FIRST["round trip"]
    drawn = [scenes.random_scene(n) for n in scenes.HELD_OUT_SEEDS[first : first + count]]
    pictures = [images.to_picture(scenes.draw(scene, size)) for scene in drawn]
    return [
        Subject(f"scene-{n:02d}", scenes.caption(scene), seed, picture)
        for n, (scene, picture) in enumerate(zip(drawn, pictures, strict=True))
    ]


def _of_case(case: Case, seed: int) -> Subject:
    return Subject(case.name, case.prompt, seed, case.source, None, case.drags("five"), case.mask, case=case)


# ----------------------------------------------------------------------------------------------------- one's own


def own(path: Path, seed: int) -> list[Subject]:
    """The pictures of a job file. Raises ValueError or OSError that names the job and what is wrong with it."""
    found: list[Subject] = []
    for n, options in enumerate(cli.read_jobs(path, cli.build_parser()), start=1):
        try:
            found.append(_of_job(options, n, seed))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}, job {n}: {cli.one_line(error)}") from None
    return found


def _of_job(options: cli.Options, number: int, seed: int) -> Subject:
    other = [key for key in options if key not in (*OWN_KEYS, "command", "version")]
    if other:
        raise ValueError(f"{other[0]} is the reproduction's own; a job says {', '.join(OWN_KEYS)}")
    if ("image" in options) == options.get("from_noise", False):
        raise ValueError("give either image or from_noise")
    picture, mask, name = None, None, f"{number:02d}-noise"
    if "image" in options:
        picture, name = images.open_picture(options["image"]), f"{number:02d}-{Path(options['image']).stem}"
        drags = tuple(options.get("drag", ()))
        images.to_grid(
            [point for pair in drags for point in pair], picture.size, picture.size
        )  # raises for one outside
        if "mask" in options:
            mask = images.open_mask(options["mask"], picture.size, picture.size)
    elif "mask" in options:
        mask = images.open_mask(options["mask"], (size := images.open_picture(options["mask"]).size), size)
    return Subject(
        name,
        options.get("prompt", ""),
        options.get("seed", seed),
        picture,
        options.get("target_prompt"),
        tuple(options.get("drag", ())),
        mask,
        options.get("object_words", ()),
    )


# ------------------------------------------------------------------------------------------------------ the figures


@torch.no_grad()
def figures(
    sd: StableDiffusion, subject: Subject, source: Image.Image, result: Image.Image, working: int
) -> dict[str, Any]:
    """What is measured of a result, as values for JSON; lengths in pixels, colours in 255ths.

    `changed`: from the source, mean over the picture. `left` and `share` of the distance that the drags ask for: of a
    drawn scene where its object is found in the result (evaluate.py), else where DIFT finds the handles, as
    DragDiffusion's evaluation does. `background`: against the truth of a drawn picture, else against the source,
    outside of the mask; None without one.
    """
    found: dict[str, Any] = {"changed": difference(source, result), "left": None, "share": None, "background": None}
    if subject.mask is not None and (subject.mask <= 0.5).any():
        found["background"] = difference(source, result, subject.mask <= 0.5)
    if subject.case is not None:
        measured = evaluate.measure(result, subject.case)
        names = ("left", "share", "found", "yaw_left", "object_colour", "overlap", "truth_db")
        found |= {name: measured[name] for name in names if name in measured}
        if subject.shown is None:
            found["background"] = measured["background_error"]
    elif subject.drags:
        prompt = subject.target_prompt or subject.prompt
        dift = published_metrics.measure(
            sd, source, result, subject.drags, None, prompt, subject.name, subject.seed, working
        )
        found["left"] = mean(dift.whole_px)
        found["share"] = found["left"] / max(1e-6, mean([math.dist(*pair) for pair in subject.drags]))
    return found


def mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def difference(one: Image.Image, other: Image.Image, where: Tensor | None = None) -> float:
    """Mean absolute difference of two pictures of one size, in 255ths; `where` bool (H, W), only there."""
    apart = 127.5 * (images.to_tensor(one) - images.to_tensor(other))[0].abs().mean(dim=0)  # (H, W)
    return (apart if where is None else apart[where]).mean().item()

"""Subjects of the reproduction: drawn scenes, whose truth is known, or one's own pictures; and their results' figures.

One's own come as a job file of `dragsa edit` (JSON, one job or a list of them), of which these options count: `image`,
or `from_noise` and `seed` for a picture that is generated; `prompt`, `target_prompt`, `drag`, `mask`, `object_words`.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dragsa import pictures
from dragsa.editing import Drag
from dragsa.evaluation import art_cases, cases, distances, fit, lists, quality, scenes
from dragsa.evaluation.cases import Case
from dragsa.evaluation.distances import Sample
from dragsa.evaluation.edits import Edit
from dragsa.evaluation.scenes import Scene
from dragsa.loading import StableDiffusion

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
    case: Edit | None = None
    shown: Scene | None = None

    @property
    def identity(self) -> str:
        """A hash of everything that an edit's result depends on."""
        said = [self.prompt, self.seed, self.target_prompt, self.drags, self.object_words]
        arrays = [None if x is None else np.asarray(x).tobytes() for x in (self.picture, self.mask)]
        return hashlib.sha256(repr((said, arrays)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------ drawn scenes


def held_out(kind: str) -> Sequence[int]:
    """Return the seeds of a kind of subjects."""
    return scenes.HELD_OUT_SEEDS[FIRST[kind] : FIRST[kind] + 2_000]


def recoloured(scene: Scene) -> Scene:
    """Return a face in another skin than its own and than the ground's colour."""
    return replace(scene, colour=next(c for c in scenes.SKINS if c not in (scene.colour, scene.ground)))


def turning_faces(count: int, size: int, seed: int) -> list[Subject]:
    """Return held-out faces that are to get another colour by the prompt, and to be turned to the right by the drag."""
    found: list[Subject] = []
    for number in held_out("real"):
        drawn = scenes.random_scene(number, ("face",), neighbour=False)
        if len(found) == count:
            break
        if drawn.size < cases.LARGE_FACE or not -MOST_YAW <= drawn.yaw <= MOST_YAW - LEAST_TURN:
            continue
        picture = pictures.to_picture(scenes.draw(drawn, size))
        subject = Subject(f"face-{len(found):02d}", scenes.caption(drawn), seed, picture)
        found.append(turned(subject, drawn, size))
    return found


def generated_faces(count: int, seed: int) -> list[Subject]:
    """Return faces that the model is to draw, each from its own seed; handles are found once they are drawn."""
    found = []
    for number, drawn_by in enumerate(held_out("generated")[:count]):
        drawn = scenes.random_scene(drawn_by, ("face",), neighbour=False)
        drawn = replace(drawn, x=0.5, y=0.5, yaw=-LEAST_TURN, rotation=0.0, slope=(0.0, 0.0))
        subject = Subject(f"seed-{seed + number}", scenes.caption(drawn, looking=True), seed + number, shown=drawn)
        wanted = scenes.caption(recoloured(drawn))
        found.append(replace(subject, target_prompt=wanted, object_words=("face",)))
    return found


def turned(subject: Subject, face: Scene, size: int) -> Subject:
    """Return the subject with its face to be recoloured by the prompt, and turned by a drag of nose, eyes and mouth."""
    wanted = recoloured(face)
    after = replace(wanted, yaw=min(MOST_YAW, face.yaw + TURN))
    case, prompt = Case("turn", 0, subject.seed, wanted, after, size), subject.target_prompt or scenes.caption(wanted)
    asked = replace(subject, target_prompt=prompt, object_words=("face",), case=case)
    return replace(asked, drags=case.drags("five"), mask=case.mask)


def found_face(subject: Subject, picture: Image.Image) -> Subject | None:
    """Return a generated subject with what is asked of the face that it shows; None where it shows none."""
    assert subject.shown is not None
    found = fit.fit(pictures.to_tensor(picture)[0], subject.shown)
    if not found.found or not found.nose_found or found.scene.yaw > MOST_YAW - LEAST_TURN:
        return None
    return turned(subject, found.scene, picture.width)


def benchmark(of_list: str, count: int, size: int, seed: int) -> list[Subject]:
    """Return the first held-out cases of a list of the truth benchmark, its kinds by turns."""
    kinds = len(art_cases.KINDS if of_list == lists.ARTWORK else cases.KINDS)
    listed = lists.cases_of(of_list, "figures", math.ceil(count / kinds), size)[:count]
    return [_of_case(case, seed) for case in listed]


def restyled(of_list: str, count: int, size: int, seed: int) -> list[Subject]:
    """Return held-out objects alone that the prompt turns into another shape or thing, and a drag moves."""
    if of_list == lists.ARTWORK:
        return renamed(count, size, seed)
    found: list[Subject] = []
    for number in held_out("restyled"):
        if len(found) == count:
            break
        before, after = scenes.translation(number)
        if before.shape == "face":
            continue
        subject = _of_case(Case("move", len(found), number, before, after, size), seed)
        prompt = scenes.caption(replace(before, shape="star" if before.shape == "disc" else "disc"))
        found.append(replace(subject, name=f"shape-{len(found):02d}", target_prompt=prompt, case=None))
    return found


def renamed(count: int, size: int, seed: int) -> list[Subject]:
    """Return things of artwork alone that a drag moves, and the prompt turns into things that training has seen."""
    moves = [case for case in art_cases.list_cases("figures", count, size) if case.kind == "move"]
    found = []
    for number, case in enumerate(moves):
        thing = case.before.thing
        others = [name for name in art_cases.names_of(thing.style, "seen") if name != thing.name]
        other = replace(case.before, thing=replace(thing, name=others[number % len(others)]))
        subject = replace(
            _of_case(case, seed), name=f"thing-{number:02d}", target_prompt=case.caption(other), case=None
        )
        found.append(subject)
    return found


def any_scenes(of_list: str, count: int, size: int, seed: int) -> list[Subject]:
    """Return held-out scenes with nothing asked of them."""
    if of_list == lists.ARTWORK:
        return [replace(one, drags=(), mask=None, case=None) for one in benchmark(of_list, count, size, seed)]
    found: list[Subject] = []
    for number in held_out("round trip")[:count]:
        drawn = scenes.random_scene(number)
        picture = pictures.to_picture(scenes.draw(drawn, size))
        found.append(Subject(f"scene-{len(found):02d}", scenes.caption(drawn), seed, picture))
    return found


def _of_case(case: Edit, seed: int) -> Subject:
    return Subject(case.name, case.prompt, seed, case.source, None, case.drags("five"), case.mask, case=case)


# ----------------------------------------------------------------------------------------------------- one's own


def of_job(options: Mapping[str, Any], number: int, seed: int) -> Subject:
    """Return the subject of a job's options. Raises ValueError or OSError that says what is wrong with it."""
    other = [key for key in options if key not in (*OWN_KEYS, "command", "version")]
    if other:
        raise ValueError(f"{other[0]} is the reproduction's own; a job says {', '.join(OWN_KEYS)}")
    if ("image" in options) == options.get("from_noise", False):
        raise ValueError("give either image or from_noise")
    drags, stem = tuple(options.get("drag", ())), Path(options.get("image", "noise")).stem
    picture = pictures.open_picture(options["image"]) if "image" in options else None
    if picture is not None:  # raises for a point outside
        pictures.to_grid([point for pair in drags for point in pair], picture.size, picture.size)
    mask = None
    if "mask" in options:
        size = (picture or pictures.open_picture(options["mask"])).size
        mask = pictures.open_mask(options["mask"], size, size)
    prompts = {name: options[name] for name in ("target_prompt", "object_words") if name in options}
    own_seed = options.get("seed", seed)
    return Subject(
        f"{number:02d}-{stem}", options.get("prompt", ""), own_seed, picture, drags=drags, mask=mask, **prompts
    )


# ------------------------------------------------------------------------------------------------------ the figures


@torch.no_grad()
def measure(
    sd: StableDiffusion, subject: Subject, source: Image.Image, result: Image.Image, working: int
) -> dict[str, Any]:
    """Return what is measured of a result, for JSON; lengths in pixels, colours in 255ths.

    `changed`: from the source, mean over the picture. `left` and `share` of the distance that the drags ask for: of a
    drawn scene where its object is found in the result (`figures`), else where DIFT finds the handles, as
    DragDiffusion's evaluation does. `background`: against the truth of a drawn picture, else against the source,
    outside of the mask; None without one.
    """
    changed = quality.difference(source, result)
    found: dict[str, Any] = {"changed": changed, "left": None, "share": None, "background": None}
    if subject.mask is not None and (subject.mask <= 0.5).any():
        found["background"] = quality.difference(source, result, subject.mask <= 0.5)
    if subject.case is not None:
        measured = lists.measure(result, subject.case)
        names = ("left", "share", "found", "yaw_left", "object_colour", "overlap", "truth_db", "style_margin")
        found |= {name: measured[name] for name in names if name in measured}
        if subject.shown is None:
            found["background"] = measured["background_error"]
    elif subject.drags:
        asked = Sample(subject.name, source, subject.target_prompt or subject.prompt, subject.drags, None)
        dift = distances.measure(sd, asked, result, subject.seed, working)
        found["left"] = statistics.fmean(dift.whole_px)
        found["share"] = found["left"] / max(1e-6, statistics.fmean(math.dist(*pair) for pair in subject.drags))
    return found

"""Warnings of what an edit loses of the picture that it is given, and of what asks for nothing or does nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, get_args

from PIL import Image

from dragsa import pictures
from dragsa.config import EditConfig, Preset
from dragsa.pictures import Size

MUCH_SMALLER = 2  # the picture's side to the working picture's, from which on a result is visibly blurred
OF_MASKED = ("object_words", "mask_blocks", "mask_threshold")  # settings of masked control
COLOURS = {"red", "orange", "yellow", "green", "blue", "cyan", "turquoise", "purple", "violet", "magenta", "pink"}
COLOURS |= {"brown", "golden", "beige", "crimson", "scarlet", "lime", "navy", "maroon", "olive", "colourful"}


def warn_of_losses(picture: Image.Image, config: EditConfig, prompts: Sequence[str]) -> None:
    """Warn of transparency, of colours asked of a grey picture, and of a working size much below the picture's."""
    opaque = picture.width * picture.height
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").histogram()[255] < opaque:
        _warn("the picture's transparency is laid on white, and the result has none")
    asked = sorted(COLOURS & set(re.findall(r"\w+", " ".join(prompts).lower())))
    if pictures.is_grey(picture) and asked:
        _warn(f"the picture is grey, and so will be the result, not {', '.join(asked)}: give it as RGB to have colours")
    width, height = pictures.working_size(*picture.size, config.size)
    if max(picture.size) >= MUCH_SMALLER * max(width, height) and config.crop == "none":
        said = (
            f"the picture of {picture.width}×{picture.height} pixels is edited at {width}×{height}, and what changes "
        )
        _warn(f"{said}comes back blurred: crop auto edits the part of the drags and the mask alone, or give more size")


def warn_of_idle(drags: Sequence[Any], size: Size, working: Size, config: EditConfig, changed: bool) -> None:
    """Warn of drags that go nowhere, and where there are none of an edit that changes nothing.

    size, working: the picture's, and that which it is edited at. changed: prompt, control or guidance change something.
    """
    if not len(drags) and not changed:
        _warn("no drags and no other prompt: the result is the picture's reconstruction")
    reach, grid = config.drag.reach, pictures.grid_size(working)
    cell = max(size[0] / grid[0], size[1] / grid[1])  # pixels
    handles, targets, _ = pictures.drags_to_grid(drags, size, grid)
    ways = (targets - handles).norm(dim=1).tolist()  # cells, as the loop begins
    for n, ((handle, target), way) in enumerate(zip(drags, ways, strict=True), start=1):
        if tuple(handle) == tuple(target):
            _warn(f"handle {n} and its target are the same")
        elif way < reach:
            said = f"handle {n} is not dragged: it is {way * cell:.1f} px from its target, and has arrived below"
            smaller = ", a larger working size (--size), or --crop auto" if max(size) > config.size else ""
            _warn(f"{said} {reach * cell:.1f} px; try a smaller arrival threshold (--reach){smaller}")


def warn_of_unused(config: EditConfig, negative: str, generated: bool) -> None:
    """Warn of settings that are given and do nothing. generated: the source is drawn from noise.

    The settings of masked control count as given where no preset has them.
    """
    if negative and config.guidance == config.drag.drag_guidance == 1:
        _warn("the negative prompt does nothing at guidance 1: give another scale (--guidance)")
    presets = [getattr(EditConfig, name)() for name in get_args(Preset)]
    idle = [name for name in OF_MASKED if getattr(config, name) not in [getattr(one, name) for one in presets]]
    if idle and config.control != "masked":
        _warn(f"{', '.join(idle)}: nothing but masked control goes by that (--control masked)")
    if config.fixed_point and generated:
        _warn("fixed-point iterations (--fixed-point) do nothing: a generated picture is not inverted")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)  # who called `edit`

"""Checks of an edit's settings, drags and mask, and of the source that it is made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dragsa import pictures
from dragsa.checks import values
from dragsa.checks.notices import warn_of_idle, warn_of_losses, warn_of_unused
from dragsa.checks.tensors import drag_settings, looked_at
from dragsa.config import EditConfig, suiting
from dragsa.ddim import Schedule
from dragsa.model.blocks import check_blocks
from dragsa.pictures import Size


def request(
    config: EditConfig,
    image: Any,
    drags: Sequence[Any],
    mask: Any,
    prompts: tuple[str, str],
    target_prompt: str | None = None,
    control: Any = None,
) -> None:
    """Raise a ValueError for an edit that cannot be made, and warn of what one loses of its picture.

    image: a picture, an `editing.Source`, or None where one is to be generated. mask: as `pictures.open_mask` takes it.
    prompts: the source's, and the negative one. control: one that is not the config's.
    """
    words(*prompts, target_prompt)
    if None in prompts:
        raise ValueError("prompt and negative prompt are texts, came None: leave them out, or give ''")
    (prompt, negative), source = prompts, None if image is None or isinstance(image, Image.Image) else image
    if source is not None:
        made_for(config, source, *prompts)
        if config.crop != "none":
            raise ValueError("a part is cut out before inversion: for crop 'auto' give the picture, not its source")
        prompt, image = source.prompt, source.picture
        negative = source.negative_prompt if source.guidance == 1 else ""  # its own passes have used it
    size = width, height = (config.size, config.size) if image is None else image.size
    settings(config, drags, mask, size)
    if image is not None:
        warn_of_losses(image, config, (prompt, target_prompt or ""))
    changed = target_prompt not in (None, prompt) or control is not None or config.guidance != 1
    working = pictures.working_size(width, height, config.size) if source is None else source.working_size
    warn_of_idle(drags, size, working, config, changed)
    warn_of_unused(config, negative, image is None or (source is not None and source.generated))


def configured(config: Any, widths: tuple[int, ...] = ()) -> EditConfig:
    """Return the config, for None that of the preset that suits a UNet of these widths.

    Raises ValueError for another class and for a wrong setting.
    """
    config = getattr(EditConfig, suiting(widths))() if config is None else config
    if not isinstance(config, EditConfig):
        raise ValueError(f"config must be an EditConfig, came {type(config).__name__}")
    values.check(config)
    return config


def settings(config: EditConfig, drags: Sequence[Any] = (), mask: Any = None, size: Size | None = None) -> None:
    """Raise a ValueError for settings that no edit can be made with, and drags and a mask that do not fit a picture.

    `size` is the picture's; without it only what holds for any picture is looked at.
    """
    configured(config)
    Schedule(config.steps, config.variant)
    drag_settings(config.drag)
    check_blocks(config.control_blocks)
    check_blocks(config.mask_blocks)
    if config.control == "masked" and not config.object_words:
        raise ValueError("masked control tells the object by words of the prompts: name them (object_words)")
    pictures.working_size(1, 1, config.size)
    if not isinstance(drags, Collection):
        raise ValueError(f"drags are ((x, y), (x, y)), handle and target, in a list, came {drags!r}")
    if len(drags) and config.drag_step > (last := config.steps - 1):
        hint = "another drag step (--drag-step)"
        if config.steps != EditConfig.steps:  # a preset's S is of its own T
            far = min(last, round(config.drag_step * config.steps / EditConfig.steps))
            as_far = f"of {config.steps} steps, {far} is as far as {config.drag_step} of {EditConfig.steps}"
            hint = f"a drag step (--drag-step) with the steps: {as_far}"
        said = f"drag step S must be a whole number from 0 to T - 1 = {last}, came {config.drag_step!r}"
        raise ValueError(f"{said}; give {hint}")
    for pair in drags:
        if not _is_drag(pair):
            raise ValueError(f"a drag is ((x, y), (x, y)), handle and target, came {pair!r}")
    if size is not None:
        if config.blend and mask is None:
            raise ValueError("blending keeps what lies outside of the mask, and there is no mask")
        pictures.to_grid([point for pair in drags for point in pair], size, size)
        width, height = pictures.grid_size(pictures.working_size(*size, config.size))
        looked_at(len(drags), config.drag, (height, width))
        if mask is not None:
            pictures.open_mask(mask, size, (1, 1))


def _is_drag(pair: Any) -> bool:
    try:
        return np.shape(pair) == (2, 2)
    except ValueError:  # of two points, one is no pair
        return False


def words(*prompts: str | None) -> None:
    """Raise a ValueError for a prompt that is no text, or that holds halves of characters, which no tokenizer takes."""
    for prompt in prompts:
        if not isinstance(prompt, str | None):
            raise ValueError(f"a prompt is a text, came {type(prompt).__name__}")
        try:
            (prompt or "").encode()
        except UnicodeEncodeError:
            raise ValueError(f"the prompt {prompt!r} is not text in UTF-8") from None


def generation(config: EditConfig, size: Size) -> None:
    """Raise a ValueError where no picture of this size can be generated, or one to be learnt by a LoRA."""
    if config.lora_steps:
        raise ValueError("a LoRA is trained on a picture that is there: save the generated one and edit that")
    if min(size) < pictures.SMALLEST or size[0] % 8 or size[1] % 8:
        least = pictures.SMALLEST
        raise ValueError(f"a generated picture's sides are multiples of 8 from {least}, came {size[0]}×{size[1]}")


def of_source(config: EditConfig, generated: bool = False) -> dict[str, Any]:
    """Return the settings that a source is made by, by their names: edits that share them can share it.

    generated: it is drawn from noise, not inverted. `kept` tells what its passes leave of their K and V.
    """
    names = ("steps", "variant", "size", "lora_steps", "guidance" if generated else "fixed_point")
    made = {name: getattr(config, name) for name in names}
    if config.source_kv == "inversion":
        made["kept"] = config.control, config.control_step, config.control_blocks
    return made


def made_for(config: EditConfig, source: Any, prompt: str = "", negative: str = "") -> None:
    """Raise a ValueError where a source was prepared under other settings than the edit's."""
    schedule, wanted = source.schedule, of_source(config, source.generated)
    trained = 0 if source.adapted is None else len(source.adapted.losses)
    made = {"steps": schedule.steps, "variant": schedule.variant, "fixed_point": source.fixed_point}
    made |= {"lora_steps": trained, "working size": source.working_size}
    if not source.generated:  # a generated picture has its own size
        width, height = source.picture.size
        wanted["working size"] = pictures.working_size(width, height, config.size)
    for name, value in made.items():
        if value != wanted.get(name, value):
            raise ValueError(f"the source was prepared with {name} {value!r}, and the edit has {wanted[name]!r}")
    for what, asked, own in (("", prompt, source.prompt), ("negative ", negative, source.negative_prompt)):
        if asked not in ("", own):
            raise ValueError(f"the source was prepared with the {what}prompt {own!r}; prepare one for {asked!r}")

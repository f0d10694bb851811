"""Checks of an edit's settings, drags and mask, and of the source that it is made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dragsa import pictures
from dragsa.checks import values
from dragsa.checks.notices import warn_of_idle, warn_of_losses
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
    prompt = prompts[0]
    if image is not None and not isinstance(image, Image.Image):
        made_for(config, image, *prompts)
        if config.crop != "none":
            raise ValueError("a part is cut out before inversion: for crop 'auto' give the picture, not its source")
        prompt, image = image.prompt, image.picture
    settings(config, drags, mask, (config.size, config.size) if image is None else image.size)
    if image is not None:
        warn_of_losses(image, config, (prompt, target_prompt or ""))
    changed = target_prompt not in (None, prompt) or control is not None or config.guidance != 1
    warn_of_idle(drags, changed)


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


def made_for(config: EditConfig, source: Any, prompt: str = "", negative: str = "") -> None:
    """Raise a ValueError where a source was prepared under other settings than the edit's."""
    schedule, inverted = source.schedule, not source.generated  # a generated picture has its own size
    width, height = source.picture.size
    size = pictures.working_size(width, height, config.size) if inverted else source.working_size
    trained = 0 if source.adapted is None else len(source.adapted.losses)
    for name, made, value in (
        ("steps", schedule.steps, config.steps),
        ("variant", schedule.variant, config.variant),
        ("fixed_point", source.fixed_point, config.fixed_point if inverted else 0),
        ("lora_steps", trained, config.lora_steps),
        ("working size", source.working_size, size),
    ):
        if made != value:
            raise ValueError(f"the source was prepared with {name} {made!r}, and the edit has {value!r}")
    for what, asked, own in (("", prompt, source.prompt), ("negative ", negative, source.negative_prompt)):
        if asked not in ("", own):
            raise ValueError(f"the source was prepared with the {what}prompt {own!r}; prepare one for {asked!r}")

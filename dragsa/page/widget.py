"""The canvas in a notebook: drags and mask come out as Python values, and an edit shows its progress in place."""

from __future__ import annotations

from typing import Any

from dragsa.config import EditConfig
from dragsa.loading import StableDiffusion
from dragsa.pictures import Given


def widget(
    sd: StableDiffusion,
    picture: Given,
    prompt: str = "",
    config: EditConfig | None = None,
    *,
    seed: int = 42,
    negative_prompt: str = "",
) -> Any:
    """Return a canvas for a notebook's cell, on which the picture is dragged by hand.

    picture, prompt, config, seed, negative_prompt: as `edit` takes them. Of what comes back `.drags` is what was
    pulled, [[[x, y], [x, y]], …] in pixels of the picture, and can be set; `.mask` is what was painted, a picture or
    None; `.edit(target_prompt=None)` makes the edit, shows it on the canvas, and returns the `EditResult`, which stays
    as `.result`. The button Run does the same beside the cells. Its Stop, or of a cell the kernel's interrupt, ends
    the drag with its next update, and the picture is finished. The picture is inverted once.

    Raises ImportError where the extra `notebook` is not installed, and ValueError for a picture that cannot be read.
    """
    try:
        from dragsa.page import notebook
    except ModuleNotFoundError as error:
        raise ImportError(f"the widget needs the package {error.name}: pip install 'dragsa[notebook]'") from None
    return notebook.DragWidget(sd, picture, prompt, config, seed=seed, negative_prompt=negative_prompt)

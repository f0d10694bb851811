"""Tell where a drag's handles are while it runs."""

from __future__ import annotations

import torch

from dragsa import pictures
from dragsa.editing import Drag, Source
from dragsa.pictures import DragProgress, Point


def handles_in_pixels(update: DragProgress, source: Source, drags: tuple[Drag, ...]) -> list[Point]:
    """Return the handles that an update used, in pixels of the picture, as the trace will have them."""
    size, grid = source.picture.size, pictures.grid_size(source.working_size)
    handles, _, asked = pictures.drags_to_grid(drags, size, grid)
    found = torch.tensor(update.handles) + (asked - handles)  # the loop's handles stand on whole cells
    return [(x, y) for x, y in pictures.from_grid(found, size, grid).tolist()]

"""The picture as given where an edit may not change it, and the part of a large picture that an edit is about."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from dragsa.pictures import images
from dragsa.pictures.images import Given, Point, Size
from dragsa.pictures.trace import Trace

RIM = 1  # pixels of the working picture, half the width of the soft rim
MARGIN = 0.5  # of the longer side of what is dragged and masked, round it
Drags = Sequence[tuple[Point, Point]]


def paste(result: Image.Image, original: Image.Image, mask: Given, working: Size) -> Image.Image:
    """Return the result with the original's own pixels outside of the mask's white. All are of one size.

    Pixels that are less than half as white as the mask's whitest are the original's, to the bit. From there inwards the
    result fades in over a rim of two pixels of the working picture.
    """
    shares = inner_shares(images.mask_levels(mask, original.size), RIM * max(original.size) / max(working))
    pasted = images.to_rgb(original).convert(result.mode)
    pasted.paste(result, mask=shares)
    pasted.info = dict(result.info)
    return pasted


def inner_shares(levels: np.ndarray, rim: float) -> Image.Image:
    """Return the result's share at each pixel in 255ths: 0 outside of the white, rising over 2 `rim` pixels within.

    levels: a mask's, (height, width). Where a mask is so thin that such a rim takes more than half of it, the rim is
    narrower.
    """
    white = Image.fromarray(np.uint8(255) * (levels >= levels.max() / 2).astype(np.uint8))
    area, width = white.histogram()[255], round(rim)
    while width > 0:
        # A window's mean is white where all of it is: the white without its rim. A second mean makes the slope.
        core = white.filter(ImageFilter.BoxBlur(width)).point(lambda level: 255 * (level == 255))
        if core.histogram()[255] >= area / 2:
            core = core.filter(ImageFilter.BoxBlur(width))
            return Image.composite(core, Image.new("L", core.size), white)  # rounding may leave a shade outside
        width //= 2
    return white


@dataclass(frozen=True)
class Part:
    """A rectangle of a picture: left and top belong to it, right and bottom do not."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.right, self.bottom

    def drags(self, drags: Drags) -> tuple[tuple[Point, Point], ...]:
        """Return a picture's drags as the part's own."""
        return tuple((self._moved(handle, -1), self._moved(target, -1)) for handle, target in drags)

    def mask(self, mask: Given | None, size: Size) -> np.ndarray | None:
        """Return a picture's mask as the part's own levels, (height, width)."""
        if mask is None:
            return None
        return images.mask_levels(mask, size)[self.top : self.bottom, self.left : self.right]

    def put_back(self, edited: Image.Image, picture: Image.Image, working: Size) -> Image.Image:
        """Return the picture with the edited part in it, faded in over a rim unless it ends at the picture's edge."""
        whole = images.to_rgb(picture).convert(edited.mode)
        whole.paste(edited, self.box)
        whole.info = dict(edited.info)
        inside = np.zeros(picture.size[::-1], np.float32)
        inside[self.top : self.bottom, self.left : self.right] = 1
        cells = (working[0] * picture.width / edited.width, working[1] * picture.height / edited.height)
        return paste(whole, picture, inside, (round(cells[0]), round(cells[1])))

    def trace(self, trace: Trace, size: Size) -> Trace:
        """Return the trace of the part's edit with its points in the picture's pixels; the grid stays the part's."""
        drags = tuple((self._moved(handle), self._moved(target)) for handle, target in trace.drags)
        handles = tuple(tuple(self._moved(point) for point in row) for row in trace.handles)
        tracked = tuple(self._moved(point) for point in trace.tracked)
        found = tuple(None if point is None else self._moved(point) for point in trace.found)
        points = replace(trace, drags=drags, handles=handles, tracked=tracked, found=found)
        return replace(points, config=replace(trace.config, crop="auto"), picture_size=size, part=self.box)

    def _moved(self, point: Point, sign: int = 1) -> Point:
        return point[0] + sign * self.left, point[1] + sign * self.top


def part_of(size: Size, drags: Drags, mask: Given | None, working: int) -> Part | None:
    """Return the part of a picture to edit: the mask's white, handles and targets, with a margin.

    It is at least `working` pixels wide and high, where the picture is, and its longer side at most twice the shorter.
    None where that is all of the picture, and where there is neither mask nor drag to go by. Raises ValueError for a
    mask that does not fit.
    """
    points = [point for drag in drags for point in drag]
    columns, rows = [x for x, _ in points], [y for _, y in points]
    if mask is not None:
        levels = images.mask_levels(mask, size)
        white = levels >= levels.max() / 2
        columns += np.flatnonzero(white.any(axis=0))[[0, -1]].tolist()
        rows += np.flatnonzero(white.any(axis=1))[[0, -1]].tolist()
    if not columns:
        return None
    ends = [(min(values), max(values) + 1) for values in (columns, rows)]
    longest = max(end - start for start, end in ends)
    sides = [max(end - start + 2 * MARGIN * longest, working) for start, end in ends]
    sides = [max(side, max(sides) / 2) for side in sides]
    (left, right), (top, bottom) = (
        _within((start + end) / 2, round(side), most)
        for (start, end), side, most in zip(ends, sides, size, strict=True)
    )
    part = Part(left, top, right, bottom)
    return None if part.box == (0, 0, *size) else part


def _within(middle: float, side: int, most: int) -> tuple[int, int]:
    """Return start and end of a side about the middle, moved and cut to lie within 0 … most."""
    side = min(side, most)
    start = min(max(0, round(middle - side / 2)), most - side)
    return start, start + side


def edit_part(
    make: Callable[..., Any], image: Image.Image | None, drags: Drags, mask: Given | None, working: int
) -> Any:
    """Have the part of a large picture edited that drags and mask are about, and put it back.

    make: given a picture, its drags and its mask, returns the `EditResult`. Without a part it is given all.
    """
    if image is None:
        warnings.warn("crop auto does nothing: a generated picture is edited as a whole", stacklevel=3)
    part = None if image is None else part_of(image.size, drags, mask, working)
    if image is None or part is None:
        return make(image, drags, mask)
    made = make(image.crop(part.box), part.drags(drags), part.mask(mask, image.size))
    whole = part.put_back(made.image, image, made.trace.working_size)
    return made._replace(image=whole, source=image, trace=part.trace(made.trace, image.size))

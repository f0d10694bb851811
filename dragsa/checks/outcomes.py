"""Find out what came of a drag: where the handles' surroundings are now, and what to say where it fell short."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor

from dragsa import motion, tracking
from dragsa.model.unet import UNet
from dragsa.pictures import Point, Size, Trace, scaled, to_rgb

SIDE = 160  # pixels of the longer side that pictures are compared at
HALF = 6  # of the patch's side there, without its middle
ALIKE = 0.05  # of the window's median difference: over it nothing looks like the patch
THERE = 0.6  # of the average cell's distance: where the nearest one is further, what is looked for is not there
STILL = 1.5  # times the least distance: what stood there has hardly moved
AS_NEAR = 1.1  # times the least distance: features that do not differ
NOISE = 4e-4  # mean squared difference, of levels 0 … 1, under which patches do not differ

ADVICE = {
    "budget": "more updates (--updates) or a larger step (--lr)",
    "not moving": "a larger step (--lr), a larger patch (--radius) or an earlier drag step (--drag-step)",
    "tracking lost": "a smaller step (--lr), a shorter drag, or a handle on a clearer feature",
    "no nearer": "handles that do not contradict one another, a shorter drag, or an earlier drag step (--drag-step)",
    "not finite": "a smaller step (--lr)",
}


def found_in(
    source: Image.Image, result: Image.Image, drags: Sequence[tuple[Point, Point]]
) -> tuple[Point | None, ...]:
    """Return where the pixels about each handle of the source are in the result, in pixels; None where it is not sure.

    The patch about the handle is looked for about the target, as far as the way from the handle. A place is not sure
    where nothing looks like the patch, or another place does as well: on an even surface one is like the next.
    """
    shrink = min(1.0, SIDE / max(source.size))
    small = scaled(source.size, shrink)
    before, after = (
        _patches(to_rgb(picture).resize(small, Image.Resampling.BOX)) for picture in (source, result)
    )  # (height, width, 3, side, side), a patch about every pixel
    return tuple(_place(before, after, drag, (small[0] / source.width, small[1] / source.height)) for drag in drags)


def _patches(picture: Image.Image) -> np.ndarray:
    """Return the patch about every pixel of an RGB picture, a view (height, width, 3, side, side) of levels 0 … 1."""
    levels = np.asarray(picture, dtype=np.float32) / 255
    padded = np.pad(levels, ((HALF, HALF), (HALF, HALF), (0, 0)), mode="edge")
    return sliding_window_view(padded, (2 * HALF + 1, 2 * HALF + 1), axis=(0, 1))


def _place(before: np.ndarray, after: np.ndarray, drag: tuple[Point, Point], scale: Point) -> Point | None:
    """Return one handle's place; scale: of the arrays' pixels for one of the picture's in x and y."""
    (hx, hy), (tx, ty) = (tuple((c + 0.5) * s - 0.5 for c, s in zip(p, scale, strict=True)) for p in drag)
    column, row = round(hx), round(hy)
    reach = math.hypot(tx - hx, ty - hy) + HALF
    rows, columns = np.mgrid[: after.shape[0], : after.shape[1]]
    rows, columns = rows[near := np.hypot(columns - tx, rows - ty) <= reach], columns[near]
    differences = ((after[rows, columns] - before[row, column]) ** 2).mean(axis=(1, 2, 3))  # (places,)
    best = int(differences.argmin())
    elsewhere = np.hypot(columns - columns[best], rows - rows[best]) > 2
    alike = elsewhere & (differences <= 2 * differences[best] + NOISE)
    if differences[best] > ALIKE * np.median(differences) or alike.any():
        return None
    x, y = ((c + 0.5) / s - 0.5 for c, s in zip((columns[best], rows[best]), scale, strict=True))
    # The patch was cut about a whole pixel; what lies between is the handle's own.
    return x + (hx - column) / scale[0], y + (hy - row) / scale[1]


def in_short(trace: Trace) -> str:
    """Return what came of an edit, on one line: reached or why not, updates, pixels left, seconds."""
    spent = f"{sum(trace.seconds.values()):.1f} s"
    if trace.stop is None:
        return f"no drag, {spent}"
    reached = "reached" if trace.stop == "reached" else f"not reached ({trace.stop})"
    updates = "1 update" if len(trace.losses) == 1 else f"{len(trace.losses)} updates"
    return f"{reached}, {updates}, {max(trace.distances_of(trace.tracked)[0]):.1f} px left, {spent}"


def shortfall(trace: Trace) -> str | None:
    """Return the warning that an edit's drag calls for: it did not arrive, or what arrived is not in the result."""
    if trace.stop is None or trace.stop == "stopped":
        return None
    pixel = max(trace.picture_size[0] / trace.grid_size[0], trace.picture_size[1] / trace.grid_size[1])
    if trace.stop != "reached":
        left = [math.dist(place, target) for place, (_, target) in zip(trace.tracked, trace.drags, strict=True)]
        worst = max(left)
        most = [f"handle {n} is {px:.1f} px from its target" for n, px in enumerate(left, start=1) if px > worst / 2]
        said = ", ".join(most[:5]) + (f" and {len(most) - 5} more" if len(most) > 5 else "")
        return f"the drag did not arrive ({trace.stop}): {said}; try {ADVICE[trace.stop]}"
    allowed = trace.config.drag.reach * pixel + 2
    far = []
    for n, (place, (_, target)) in enumerate(zip(trace.found, trace.drags, strict=True), start=1):
        if place is not None and math.dist(place, target) > allowed:
            far.append(f"what was at handle {n} is {math.dist(place, target):.1f} px from its target")
    if far:
        what = ", ".join(far)
        return f"the features arrived, but in the result {what}; try a larger patch (--radius) or more handles"
    return None


@torch.no_grad()
def find_again(
    unet: UNet, latents: Tensor, t: Tensor, context: Tensor, handles: Tensor, tap: str, grid: Size
) -> Tensor:
    """Return where the source's handles (n, 2) on the grid (W, H) are in the re-prompted picture, and warn of the rest.

    latents, context: (2, …), source and target. A drag acts on the re-prompted picture, whose objects need not stand
    where the source's do: a handle from which the source's features are gone is brought to the cell of the whole map
    where they are nearest, of several as near to the one that is the least way off. Where none is near, what
    it stood on is gone, and it stays.
    """
    size, tap, places = (grid[1], grid[0]), tap.partition("+")[0], handles.clone()
    source, target = unet(latents, t, context, taps=(tap,), until=tap).taps[tap].chunk(2)
    reference = tracking.sample_points(source, handles.to(source.device), size)  # (n, C)
    dense = motion.upsampled(target, size)[0]  # (C, H, W)
    for n, (sought, chance) in enumerate(zip(reference, tracking.chance(target, reference), strict=True)):
        distances = (dense - sought[:, None, None]).abs().sum(dim=0)  # (H, W)
        x, y = handles[n].long().tolist()
        if distances.min() < THERE * chance:
            if distances[y, x] <= STILL * distances.min():
                continue  # tracking follows the few cells that it may have moved by
            alike = (distances <= AS_NEAR * distances.min()).nonzero().flip(1).to(handles)  # (m, 2)
            places[n] = alike[(alike - handles[n]).norm(dim=1).argmin()]
        else:
            warnings.warn(
                f"handle {n + 1}: the changed prompt left nothing like the source there to drag", stacklevel=3
            )
    return places

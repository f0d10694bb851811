"""Find out what came of a drag: where the handles' surroundings are now, and what to say where it fell short."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dragsa import motion, tracking
from dragsa.model.unet import UNet
from dragsa.pictures import Point, Size, Trace, scaled, to_grid, to_tensor, unmasked

SIDE = 160  # pixels of the longer side that pictures are compared at
HALF = 10  # of the patch's side there, without its middle
ALIKE = 1.5  # times the least difference: a place that is as like the patch
SURE = 1.0  # pixels there: a difference as large as a patch so far off would make, and the place is not sure
NOISE = 4e-4  # mean squared difference, of levels 0 … 1, under which patches do not differ
THERE = 0.6  # of the average cell's distance: where the nearest one is further, what is looked for is not there
STILL = 1.5  # times the least distance: what stood there has hardly moved
AS_NEAR = 1.1  # times the least distance: features that do not differ

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
    where another one is nearly as like the patch, as on an even surface, or where what is there differs from it by as
    much as the patch from itself a pixel on: what came is then another thing, or has changed its form.
    """
    shrink = min(1.0, SIDE / max(source.size))
    small = scaled(source.size, shrink)
    before, after = (
        F.pad(to_tensor(picture, small) / 2, (HALF, HALF, HALF, HALF), mode="replicate") for picture in (source, result)
    )  # (1, 3, height + 2·HALF, width + 2·HALF), a range of 1
    return tuple(_place(before, after, drag, (small[0] / source.width, small[1] / source.height)) for drag in drags)


def _place(before: Tensor, after: Tensor, drag: tuple[Point, Point], scale: Point) -> Point | None:
    """Return one handle's place; scale: of the tensors' pixels for one of the picture's in x and y."""
    (hx, hy), (tx, ty) = (tuple((c + 0.5) * s - 0.5 for c, s in zip(p, scale, strict=True)) for p in drag)
    column, row = round(hx), round(hy)
    patch = before[:, :, row : row + 2 * HALF + 1, column : column + 2 * HALF + 1]
    # The mean of (a - p)² = a² - 2 a p + p², of every place's patch a
    squares = F.avg_pool2d(after.square().mean(dim=1), 2 * HALF + 1, stride=1)[0]
    products = F.conv2d(after, patch / patch.numel())[0, 0]
    differences = (squares - 2 * products + patch.square().mean()).clamp(min=0)  # (height, width)
    rows, columns = (torch.arange(float(n)) for n in differences.shape)
    away = torch.hypot(columns - tx, rows[:, None] - ty)
    differences[away > math.hypot(tx - hx, ty - hy) + HALF] = math.inf
    y, x = divmod(int(differences.argmin()), differences.shape[1])
    best = float(differences[y, x])
    elsewhere = torch.hypot(columns - x, rows[:, None] - y) > 2
    alike = elsewhere & (differences <= ALIKE * best + NOISE)
    slopes = torch.stack(torch.gradient(patch[0], dim=(1, 2))).flatten(1)  # (2, 3·side·side)
    least = torch.linalg.eigvalsh(slopes @ slopes.mT / slopes.shape[1])[0]  # in the direction of least change
    if best > SURE**2 * least or alike.any():
        return None
    # The patch was cut about a whole pixel; what lies between is the handle's own.
    at = x + hx - column, y + hy - row
    return (at[0] + 0.5) / scale[0] - 0.5, (at[1] + 0.5) / scale[1] - 0.5


def in_short(trace: Trace) -> str:
    """Return what came of an edit, on one line: reached or why not, updates, pixels left, seconds."""
    spent = f"{sum(trace.seconds.values()):.1f} s"
    if trace.stop is None:
        return f"no drag, {spent}"
    reached = "reached" if trace.stop == "reached" else f"not reached ({trace.stop})"
    updates = "1 update" if len(trace.losses) == 1 else f"{len(trace.losses)} updates"
    return f"{reached}, {updates}, {max(trace.distances_of(trace.tracked)[0]):.1f} px left, {spent}"


def shortfall(trace: Trace, mask: Tensor | None = None) -> str | None:
    """Return the warning that an edit's drag calls for: it did not arrive, or what arrived is not in the result.

    mask: the edit's, (H, W) on the grid.
    """
    if trace.stop is None or trace.stop == "stopped":
        return None
    pixel = max(trace.picture_size[0] / trace.grid_size[0], trace.picture_size[1] / trace.grid_size[1])
    if trace.stop != "reached":
        left = [math.dist(place, target) for place, (_, target) in zip(trace.tracked, trace.drags, strict=True)]
        worst = max(left)
        most = [f"handle {n} is {px:.1f} px from its target" for n, px in enumerate(left, start=1) if px > worst / 2]
        said = ", ".join(most[:5]) + (f" and {len(most) - 5} more" if len(most) > 5 else "")
        handles = to_grid([handle for handle, _ in trace.drags], trace.picture_size, trace.grid_size)
        held = mask is not None and any(unmasked(mask, handles))
        advice = "a mask that is white at the handles: white may move" if held else ADVICE[trace.stop]
        return f"the drag did not arrive ({trace.stop}): {said}; try {advice}"
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

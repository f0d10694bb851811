"""Motion supervision: the loss that pulls the patch under each handle one cell towards its target.

With F the features brought to the supervision grid, h a handle, t its target and d = (t - h) / |t - h|, the loss of a
handle is

    (2 r₁ + 1)² · mean over channels and q ∈ Ω(h, r₁) of |F(q + d) - sg F(q)|,

sg being the stopped gradient and Ω the square of radius r₁ about int(h), cut at the border; the loss is the sum over
handles. (The paper sums |·| over Ω; the factor and the mean are those of DragDiffusion's program.)

F is bilinear in the native features f, a product of one linear map for the rows and one for the columns, so that a
square of the grid is a small matrix times the few native cells under it,

    F(q) = Σ_kl Y[q_y, k] X[q_x, l] f[k, l],

and F(q + d) is bilinear in the four cells of the grid round it. `motion_supervision_loss` gathers those native cells
and multiplies, for all handles at once; its shapes depend on the radius and the two resolutions, never on where a
handle stands. `motion_supervision_loss_reference` makes the whole map and slices it, handle by handle.

Points are (x, y) on the supervision grid, cell centres at integers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F


class Window(NamedTuple):
    """The square of the grid about each of n points, P × P cells."""

    x: Tensor  # (n, P) its columns
    y: Tensor  # (n, P) its rows
    inside: Tensor  # (n, P, P) bool: (row, column) is a cell of the grid


class Moved(NamedTuple):
    """One axis of the windows after a shift by less than two cells."""

    cells: Tensor  # (n, P + 1) cells of the grid: sample p lies between the p-th and the next
    fraction: Tensor  # (n, P) and this far towards the next
    still: Tensor  # (n, P) bool: on the very features that it left, by a zero shift or by the border


def motion_supervision_loss(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int = 1,
    grid: tuple[int, int] | None = None,
    active: Tensor | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """The loss of the module's first lines, a scalar, from the native cells under the patches alone.

    features: (1, C, h, w) at any resolution, coarser or finer than the grid. handles, targets: (n, 2). radius: r₁.
    grid: (H, W), by default that of the features. active: (n,) bool, the handles that count; None counts all of them. A
    handle exactly at its target has no direction and adds nothing. still: (1, C, h, w), where the patch that stays is
    read; by default the features themselves. No gradient goes there.

    Differentiable in `features`. bfloat16 and float16 features are accumulated in float32. Equal to the reference but
    for the gradient where the border makes the map flat: there the sign of rounding decides. Raises ValueError for a
    wrong shape, or a point outside of the grid.
    """
    height, width = grid = _check(features, handles, targets, radius, grid)
    _, c, h, w = features.shape
    dtype = accumulated_in(features)
    with torch.no_grad():
        handles, targets = handles.to(dtype), targets.to(dtype)
        d = direction(handles, targets)  # (n, 2)
        window = window_about(handles, radius, grid)
        x, y = moved_by(window.x, d[:, :1], w, width), moved_by(window.y, d[:, 1:], h, height)
        columns, rows = cells_under(window.x, 1, w, width), cells_under(window.y, 1, h, height)  # (n, L), (n, K)
        here = sampling(window.x, window.y, columns, rows, (h, w), grid)  # (n, P, P, K L)
        there = sampling(x.cells, y.cells, columns, rows, (h, w), grid)  # (n, P + 1, P + 1, K L)
        counted = window.inside & (d != 0).any(dim=1)[:, None, None]  # (n, P, P)
        if still is None:
            # A sample that does not move must not count by rounding: the sign of 1e-8 is a gradient like any other.
            counted = counted & ~(y.still[:, :, None] & x.still[:, None])
        if active is not None:
            counted = counted & active[:, None, None]
        cells = window.inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)  # (n, 1, 1), that the mean is taken over
        weight = counted * ((2 * radius + 1) ** 2 / (c * cells.to(dtype)))  # (n, P, P)

    native = native_cells(features, columns, rows)  # (n, C, K L)
    stays = sample((native if still is None else native_cells(still, columns, rows)).detach(), here)  # (n, C, P, P)
    moved = between(sample(native, there), x.fraction, y.fraction)  # (n, C, P, P)
    return ((moved - stays).abs() * weight[:, None]).sum()


def motion_supervision_loss_reference(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int = 1,
    grid: tuple[int, int] | None = None,
    active: Tensor | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """The same numbers from the whole map on the grid, one handle after the other."""
    height, width = grid = _check(features, handles, targets, radius, grid)
    dense = upsampled(features, grid)  # (1, C, H, W)
    dense_still = (dense if still is None else upsampled(still, grid)).detach()
    handles, targets = handles.to(dense.dtype), targets.to(dense.dtype)
    loss = dense.new_zeros(())
    for i, (handle, (dx, dy)) in enumerate(zip(handles.tolist(), direction(handles, targets), strict=True)):
        if dx == dy == 0 or (active is not None and not active[i]):
            continue
        left, right = max(0, int(handle[0]) - radius), min(width, int(handle[0]) + radius + 1)
        top, bottom = max(0, int(handle[1]) - radius), min(height, int(handle[1]) + radius + 1)
        columns, fraction_x = _shifted_slice(left, right, dx, width)
        rows, fraction_y = _shifted_slice(top, bottom, dy, height)
        moved = between(dense[:, :, rows][:, :, :, columns], fraction_x, fraction_y)  # (1, C, rows, columns)
        loss = loss + (2 * radius + 1) ** 2 * F.l1_loss(moved, dense_still[:, :, top:bottom, left:right])
    return loss


def direction(handles: Tensor, targets: Tensor) -> Tensor:
    """d = (t - h) / |t - h|, (n, 2), and zero for a handle at its target."""
    towards = targets - handles
    distance = towards.norm(dim=1, keepdim=True)
    return towards / torch.where(distance > 0, distance, torch.ones_like(distance))


def accumulated_in(features: Tensor) -> torch.dtype:
    """float32, or float64 for float64 features."""
    return torch.promote_types(features.dtype, torch.float32)


def upsampled(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """The whole map on the grid, (1, C, h, w) -> (1, C, H, W): bilinear, align_corners=False, edges clamped."""
    return F.interpolate(features.to(accumulated_in(features)), size=grid, mode="bilinear", align_corners=False)


def window_about(points: Tensor, radius: int, grid: tuple[int, int]) -> Window:
    """The squares of `radius` about int(points), points (n, 2)."""
    near = torch.arange(-radius, radius + 1, device=points.device)
    x, y = (points.trunc()[:, :, None] + near).unbind(dim=1)  # each (n, P)
    inside = ((y >= 0) & (y < grid[0]))[:, :, None] & ((x >= 0) & (x < grid[1]))[:, None]
    return Window(x, y, inside)


def cells_under(position: Tensor, margin: int, native: int, grid: int) -> Tensor:
    """The native cells (n, K) along one axis that reach positions (n, P) of the grid moved by up to `margin` cells.

    They are consecutive, as many for every window, and cells of the map: at its border more than need be.
    """
    span = position.shape[1] - 1 + 2 * margin
    count = min(native, math.ceil(span * native / grid) + 2)
    first = native_position(position[:, :1] - margin, native, grid).floor().long().clamp(max=native - count)
    return first + torch.arange(count, device=position.device)  # (n, K)


def native_position(position: Tensor, native: int, grid: int) -> Tensor:
    """Where cells of the grid lie among the native cells, edges clamped."""
    return ((position + 0.5) * (native / grid) - 0.5).clamp(0, native - 1)


def sampling(
    x: Tensor, y: Tensor, columns: Tensor, rows: Tensor, native: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The linear map from native cells, columns (n, L) and rows (n, K), to cells of the grid, x (n, Q) and y (n, P)."""
    along_x = _hat(native_position(x, native[1], grid[1])[:, :, None] - columns[:, None])  # (n, Q, L)
    along_y = _hat(native_position(y, native[0], grid[0])[:, :, None] - rows[:, None])  # (n, P, K)
    return einsum(along_y, along_x, "n p k, n q l -> n p q k l").flatten(3)  # (n, P, Q, K L)


def native_cells(features: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The native cells of each window: (1, C, h, w) -> (n, C, K L), float32 or float64."""
    index = (rows[:, :, None] * features.shape[3] + columns[:, None]).flatten()  # (n K L)
    # gather, whose backward adds up in a fixed order on the CPU; that of indexing does not
    cells = features.flatten(2).gather(2, index.expand(1, features.shape[1], -1))  # (1, C, n K L)
    return rearrange(cells, "1 c (n k) -> n c k", n=len(rows)).to(accumulated_in(features))


def sample(cells: Tensor, weights: Tensor) -> Tensor:
    """Cells (n, C, K L) under weights (n, P, Q, K L) -> (n, C, P, Q)."""
    return einsum(weights, cells, "n p q k, n c k -> n c p q")


def between(corners: Tensor, fraction_x: Tensor, fraction_y: Tensor) -> Tensor:
    """Bilinear samples, each between four neighbours: (n, C, P + 1, Q + 1), (n, Q) and (n, P) -> (n, C, P, Q).

    The order of the sum is DragDiffusion's. At a corner of the map all four neighbours can be one native cell; what
    then remains of F(q + d) - F(q) is rounding, whose sign is gradient, and only the same order gives the same sign.
    """
    right, below = fraction_x[:, None, None, :], fraction_y[:, None, :, None]
    left, above = 1 - right, 1 - below
    return (
        corners[:, :, :-1, :-1] * (left * above)
        + corners[:, :, 1:, :-1] * (left * below)
        + corners[:, :, :-1, 1:] * (right * above)
        + corners[:, :, 1:, 1:] * (right * below)
    )


def _hat(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def moved_by(position: Tensor, shift: Tensor, native: int, grid: int) -> Moved:
    """Positions (n, P) of a window, shifted by (n, 1) and clamped to the grid."""
    # One fraction for all samples of a window, taken at its first cell inside the grid, as the reference rounds it.
    first = position[:, :1].clamp(min=0)
    start = (first + shift).floor()
    cell = position + (start - first)  # (n, P)
    fraction = torch.where((cell >= 0) & (cell < grid - 1), first + shift - start, 0)
    same = native_position(cell, native, grid) == native_position(position, native, grid)
    return Moved(torch.cat([cell, cell[:, -1:] + 1], dim=1).clamp(0, grid - 1), fraction, same & (fraction == 0))


def _shifted_slice(first: int, end: int, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The indices (P + 1,) between which first … end - 1 lie once shifted, and the fractions (1, P); edges clamped."""
    start = (first + shift).floor()
    cell = start.long() + torch.arange(end - first + 1, device=shift.device)  # (P + 1,)
    clamped = (cell[:-1] < 0) | (cell[:-1] >= size - 1)
    return cell.clamp(0, size - 1), torch.where(clamped, 0, first + shift - start)[None]


def _check(
    features: Tensor, handles: Tensor, targets: Tensor, radius: int, grid: tuple[int, int] | None
) -> tuple[int, int]:
    """Raise a ValueError unless the arguments fit together; the grid."""
    if features.ndim != 4 or features.shape[0] != 1:
        raise ValueError(f"features must be (1, C, h, w), came {tuple(features.shape)}")
    if handles.ndim != 2 or handles.shape[1] != 2 or handles.shape != targets.shape:
        came = f"{tuple(handles.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"handles and targets must be (n, 2) of (x, y), as many of each, came {came}")
    if radius < 0:
        raise ValueError(f"the patch's radius must be 0 or more, came {radius}")
    grid = (features.shape[2], features.shape[3]) if grid is None else grid
    check_inside(handles, grid)
    return grid


def check_inside(points: Tensor, grid: tuple[int, int]) -> None:
    """Raise a ValueError for a point outside of the grid; not where looking would stop a device or a trace."""
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        return
    end = torch.tensor([grid[1] - 0.5, grid[0] - 0.5], dtype=points.dtype)
    outside = ~((points >= -0.5) & (points <= end)).all(dim=1)  # (n,), true for NaN
    if outside.any():
        x, y = points[outside][0].tolist()
        raise ValueError(f"point ({x:g}, {y:g}) lies outside of the grid, {grid[1]} cells wide and {grid[0]} high")

"""Windows of a map: the few cells under points, gathered, sampled between, and scattered back.

A map (1, C, h, w) of native cells lies edge on edge under a *grid* of H × W cells, four times the latent's, on which
points (x, y) are given, cell centres at integers. F, the map brought to the grid, is bilinear in the native cells
(`align_corners=False`, edges clamped): a product of one linear map for the rows and one for the columns. So what is
wanted of F in a window is small matrices times the few native cells under it.

Windows of several points may overlap. What is computed of a cell twice is put back once, so that its gradient is
counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

LARGE = 2**25  # numbers; a product of two maps that has more is not made


class Cells(NamedTuple):
    """n windows of K × L cells of a map, K and L the same for all."""

    rows: Tensor  # (n, K) int64, consecutive
    columns: Tensor  # (n, L) int64, consecutive


def index(cells: Cells, width: int) -> Tensor:
    """Return their places in the flattened map: (n K L)."""
    return (cells.rows[:, :, None] * width + cells.columns[:, None]).flatten()


def take(x: Tensor, at: Tensor) -> Tensor:
    """(B, C, h w) -> (B, C, m), the cells at (m,)."""
    # gather, whose backward adds up in a fixed order on the CPU; that of indexing does not
    return x.gather(2, at.expand(*x.shape[:2], -1))


def put(values: Tensor, at: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, m) -> (B, C, h, w), zero elsewhere; of several values for one cell, which are equals, the first."""
    order = torch.arange(len(at), device=at.device)
    first = torch.full((grid[0] * grid[1],), len(at), device=at.device).scatter_reduce(0, at, order, "amin")
    kept = values * (first[at] == order)
    whole = values.new_zeros(*values.shape[:2], grid[0] * grid[1])
    return whole.scatter_add(2, at.expand_as(kept), kept).unflatten(2, grid)


def coarser(cells: Cells, fine: Sequence[int], coarse: Sequence[int]) -> Cells:
    """Return the cells of a coarse map (h', w') that upsampling (nearest) makes these from, and those round them."""
    rows, columns = (_coarser(one, f, c) for one, f, c in zip(cells, fine, coarse, strict=True))  # (n, K'), (n, L')
    return Cells(rows, columns)


def _coarser(position: Tensor, fine: int, coarse: int) -> Tensor:
    count = min(coarse, (position.shape[1] + 1) * coarse // fine + 2)
    first = ((position[:, :1] - 1).clamp(min=0) * coarse // fine).clamp(max=coarse - count)
    return first + torch.arange(count, device=position.device)


def surrounded(x: Tensor, cells: Cells) -> Tensor:
    """Each window of (1, C, h, w) with the cells round it, zeros beyond the border: (n, C, K + 2, L + 2)."""
    n, rows, columns = len(cells.rows), cells.rows.shape[1] + 2, cells.columns.shape[1] + 2
    padded = F.pad(x, (1, 1, 1, 1))  # a cell's row in it is that of the cell above it in x
    larger = Cells(*(one[:, :1] + torch.arange(one.shape[1] + 2, device=one.device) for one in cells))
    taken = take(padded.flatten(2), index(larger, padded.shape[3]))  # (1, C, n (K + 2) (L + 2))
    return taken[0].unflatten(1, (n, rows, columns)).transpose(0, 1)


# --- points on the grid -----------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """The square of the grid about each of n points, P × P cells."""

    x: Tensor  # (n, P) its columns
    y: Tensor  # (n, P) its rows
    inside: Tensor  # (n, P, P) bool: (row, column) is a cell of the grid


class Weights(NamedTuple):
    """The linear map from native cells to the samples of each window, a map for each axis."""

    along_y: Tensor  # (n, P, K)
    along_x: Tensor  # (n, Q, L)
    both: Tensor | None  # (n, P, Q, K L), their product; None where it would be large


class Moved(NamedTuple):
    """One axis of the windows after a shift by less than two cells."""

    before: Tensor  # (n, P) where the samples lay among the native cells
    at: Tensor  # (n, P + 1) where cells of the grid lie among the native: sample p is between the p-th and the next
    fraction: Tensor  # (n, P) and this far towards the next
    flat: Tensor  # (n, P) bool: both stand on the very features that the sample left, by a zero shift or by the border


def accumulated_in(features: Tensor) -> torch.dtype:
    """float32, or float64 for float64 features."""
    return torch.promote_types(features.dtype, torch.float32)


def within(radius: int, grid: tuple[int, int]) -> int:
    """Return the radius, or where it is larger that of the square which covers the grid from any of its cells."""
    return min(radius, max(grid) - 1)


def window_about(points: Tensor, radius: int, grid: tuple[int, int]) -> Window:
    """The squares of `radius` about int(points), points (n, 2)."""
    near = torch.arange(-radius, radius + 1, device=points.device)
    x, y = (points.trunc()[:, :, None] + near).unbind(dim=1)  # each (n, P)
    inside = ((y >= 0) & (y < grid[0]))[:, :, None] & ((x >= 0) & (x < grid[1]))[:, None]
    return Window(x, y, inside)


def cells_across(radius: int, margin: int, native: int, grid: int) -> int:
    """Return how many native cells along one axis reach any window of that radius, moved by up to `margin` cells."""
    return min(native, -(-2 * (radius + margin) * native // grid) + 2)


def cells_under(position: Tensor, margin: int, native: int, grid: int) -> Tensor:
    """Return the native cells (n, K) along one axis that reach grid positions (n, P) moved by up to `margin` cells.

    They are consecutive, as many for every window, and cells of the map: at its border more than need be.
    """
    count = cells_across(position.shape[1] // 2, margin, native, grid)
    first = native_position(position[:, :1] - margin, native, grid).floor().long().clamp(max=native - count)
    return first + torch.arange(count, device=position.device)  # (n, K)


def native_position(position: Tensor, native: int, grid: int) -> Tensor:
    """Return the places of the grid's cells among the native cells, edges clamped."""
    return ((position + 0.5) * (native / grid) - 0.5).clamp(0, native - 1)


def along(at: Tensor, cells: Tensor) -> Tensor:
    """Return the linear map of one axis, from native cells (n, K) to positions (n, P) among them: (n, P, K)."""
    return (1 - (at[:, :, None] - cells[:, None]).abs()).clamp(min=0)


def along_moved(moved: Moved, cells: Tensor) -> Tensor:
    """Return the same to where the samples have moved, between two cells of the grid."""
    neighbours = along(moved.at, cells)  # (n, P + 1, K)
    fraction = moved.fraction[:, :, None]
    return neighbours[:, :-1] * (1 - fraction) + neighbours[:, 1:] * fraction  # (n, P, K)


def product(along_y: Tensor, along_x: Tensor) -> Weights:
    """The linear map of both axes, (n, P, K) and (n, Q, L)."""
    if along_y.numel() * along_x.shape[1] * along_x.shape[2] > LARGE:
        return Weights(along_y, along_x, None)
    return Weights(along_y, along_x, einsum(along_y, along_x, "n p k, n q l -> n p q k l").flatten(3))


def native_cells(features: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The native cells of each window: (1, C, h, w) -> (n, C, K L), float32 or float64."""
    cells = take(features.flatten(2), index(Cells(rows, columns), features.shape[3]))  # (1, C, n K L)
    return rearrange(cells, "1 c (n k) -> n c k", n=len(rows)).to(accumulated_in(features))


def sample(cells: Tensor, weights: Weights) -> Tensor:
    """Cells (n, C, K L) -> samples (n, C, P, Q)."""
    if weights.both is not None:
        return einsum(weights.both, cells, "n p q k, n c k -> n c p q")
    rows = einsum(weights.along_x, cells.unflatten(2, (weights.along_y.shape[2], -1)), "n q l, n c k l -> n c k q")
    return einsum(weights.along_y, rows, "n p k, n c k q -> n c p q")


def back(samples: Tensor, weights: Weights) -> Tensor:
    """Samples (n, C, P, Q) -> what each cell has in them, (n, C, K L): the transpose of `sample`."""
    if weights.both is not None:
        return einsum(samples, weights.both, "n c p q, n p q k -> n c k")
    rows = einsum(weights.along_y, samples, "n p k, n c p q -> n c k q")
    return einsum(weights.along_x, rows, "n q l, n c k q -> n c k l").flatten(2)


def between(corners: Tensor, fraction_x: Tensor, fraction_y: Tensor) -> Tensor:
    """Bilinear samples, each between four neighbours: (n, C, P + 1, Q + 1), (n, Q) and (n, P) -> (n, C, P, Q)."""
    upper, lower = corners[:, :, :-1], corners[:, :, 1:]
    return blend(upper[..., :-1], lower[..., :-1], upper[..., 1:], lower[..., 1:], fraction_x, fraction_y)


def blend(
    above_left: Tensor,
    below_left: Tensor,
    above_right: Tensor,
    below_right: Tensor,
    fraction_x: Tensor,
    fraction_y: Tensor,
) -> Tensor:
    """Four (n, C, P, Q) weighted by fractions (n, Q) and (n, P), in DragDiffusion's order of products and sums.

    Of four equals it returns them but for rounding, and only the same order leaves the same sign of that.
    """
    right, below = fraction_x[:, None, None, :], fraction_y[:, None, :, None]
    left, above = 1 - right, 1 - below
    return (
        above_left * (left * above)
        + below_left * (left * below)
        + above_right * (right * above)
        + below_right * (right * below)
    )


def moved_by(position: Tensor, shift: Tensor, native: int, grid: int) -> Moved:
    """Positions (n, P) of a window, shifted by (n, 1) and clamped to the grid."""
    # One fraction for all samples of a window, taken at its first cell inside the grid, as the reference rounds it.
    first = position[:, :1].clamp(min=0)
    start = (first + shift).floor()
    cell = position + (start - first)  # (n, P)
    fraction = torch.where((cell >= 0) & (cell < grid - 1), first + shift - start, 0)
    cells = torch.cat([cell, cell[:, -1:] + 1], dim=1).clamp(0, grid - 1)  # (n, P + 1)
    before, at = native_position(position, native, grid), native_position(cells, native, grid)
    flat = (at[:, :-1] == before) & ((at[:, 1:] == before) | (fraction == 0))
    return Moved(before, at, fraction, flat)


def patches(features: Tensor, points: Tensor, radius: int, grid: tuple[int, int]) -> Tensor:
    """Return F in the window about each point: (1, C, h, w) and (n, 2) -> (n, C, P, P), P = 2 radius + 1."""
    (height, width), (h, w) = grid, features.shape[2:]
    window = window_about(points.to(accumulated_in(features)), radius, grid)
    columns, rows = cells_under(window.x, 0, w, width), cells_under(window.y, 0, h, height)
    at_x, at_y = native_position(window.x, w, width), native_position(window.y, h, height)
    return sample(native_cells(features, columns, rows), product(along(at_y, rows), along(at_x, columns)))


def sample_points(features: Tensor, points: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return F at points: (1, C, h, w) and (n, 2) -> (n, C), between cells bilinear, beyond the border the border's.

    Its plain twin is `bilinear` in scripts/plain.py.
    """
    (height, width), (h, w) = grid, features.shape[2:]
    with torch.no_grad():
        points = points.to(accumulated_in(features))
        window = window_about(points, 0, grid)
        columns, rows = cells_under(window.x, 1, w, width), cells_under(window.y, 1, h, height)
        beyond = points - points.trunc()  # (n, 2)
        x, y = moved_by(window.x, beyond[:, :1], w, width), moved_by(window.y, beyond[:, 1:], h, height)
        weights = product(along(y.at, rows), along(x.at, columns))  # (n, 2, 2, K L)
    return between(sample(native_cells(features, columns, rows), weights), x.fraction, y.fraction)[:, :, 0, 0]

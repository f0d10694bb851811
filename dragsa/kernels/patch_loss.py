"""Motion supervision: the loss that pulls the patch under each handle one cell towards its target.

With F the features brought to the supervision grid, h a handle, t its target and d = (t - h) / |t - h|, the loss of a
handle is

    (2 r₁ + 1)² · mean over channels and q ∈ Ω(h, r₁) of |F(q + d) - sg F(q)|,

sg being the stopped gradient and Ω the square of radius r₁ about int(h), cut at the border; the loss is the sum over
handles. (The paper sums |·| over Ω; the factor and the mean are those of DragDiffusion's program.)

F is bilinear in the native features f, a product of one linear map for the rows and one for the columns, and F(q + d)
is bilinear in the four cells of the grid round it: one more such product, so that

    F(q) = Σ_kl Y[q_y, k] X[q_x, l] f[k, l]    and    F(q + d) = Σ_kl Y'[q_y, k] X'[q_x, l] f[k, l],

small matrices times the few native cells under the patch. `motion_supervision_loss` gathers those cells and multiplies,
for all handles at once, and finds the gradient on the way,

    ∂loss / ∂f[k, l] = Σ_q weight(q) sign(F(q + d) - F(q)) Y'[q_y, k] X'[q_x, l],

which is kept as those few cells until the backward pass adds them into a map of zeros. Its shapes depend on the radius
and the two resolutions, never on where a handle stands. It is one operator, `dragsa::pull`, to whoever traces it; on
CUDA a Triton kernel does its work, elsewhere torch. `motion_supervision_loss_reference` makes the whole map and slices
it, handle by handle.

Where the border clamps F(q), F(q + d) and all between them onto one native cell, F(q + d) - F(q) is nothing but
rounding, and the sign of that would be a gradient like any other. Which samples these are is decided by where they
stand. One that moves by whole cells is not counted; one that is blended with itself gets the residue of DragDiffusion's
four products in DragDiffusion's order (`blend`), so that the sign is theirs, whatever the order of the sums above.

Points are (x, y) on the supervision grid, cell centres at integers.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from dragsa.kernels.cells import Cells, index, take


class Window(NamedTuple):
    """The square of the grid about each of n points, P × P cells."""

    x: Tensor  # (n, P) its columns
    y: Tensor  # (n, P) its rows
    inside: Tensor  # (n, P, P) bool: (row, column) is a cell of the grid


class Moved(NamedTuple):
    """One axis of the windows after a shift by less than two cells."""

    at: Tensor  # (n, P + 1) where cells of the grid lie among the native: sample p is between the p-th and the next
    fraction: Tensor  # (n, P) and this far towards the next
    flat: Tensor  # (n, P) bool: both stand on the very features that the sample left, by a zero shift or by the border


class Pull(NamedTuple):
    """The loss, a scalar, and its gradient as the native cells that it reaches, both float32 or float64."""

    loss: Tensor
    gradient: Tensor  # (n, C, K, L)
    first: Tensor  # (n, 2) int64: row and column of the first of each handle's K × L cells


def motion_supervision_loss(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int = 1,
    grid: tuple[int, int] | None = None,
    active: Tensor | None = None,
    stays: Tensor | None = None,
) -> Tensor:
    """The loss of the module's first lines, a scalar, from the native cells under the patches alone.

    features: (1, C, h, w) at any resolution, coarser or finer than the grid. handles, targets: (n, 2). radius: r₁.
    grid: (H, W), by default that of the features. active: (n,) bool, the handles that count; None counts all of them. A
    handle exactly at its target has no direction and adds nothing. stays: (n, C, 2 r₁ + 1, 2 r₁ + 1), what stands for
    sg F(q), such as `patches` of other features; by default the features' own. No gradient goes there.

    Differentiable in `features`, once. bfloat16 and float16 features are accumulated in float32, and so is what several
    handles give to one cell of the gradient. Equal to the reference but for the gradient at the last row and column of
    native cells, where the border makes the map flat: the dense map blends such a cell with itself, and there the sign
    of its rounding decides. Raises ValueError for a wrong shape, or a point outside of the grid.
    """
    height, width = _check(features, handles, targets, radius, grid, stays)
    dtype = accumulated_in(features)
    handles = handles.detach().to(dtype)
    directions = direction(handles, targets.detach().to(dtype))  # (n, 2)
    stays = None if stays is None else stays.detach().to(dtype)
    loss, _, _ = _pull(features, stays, handles, directions, active, radius, height, width)
    return loss


def motion_supervision_loss_reference(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int = 1,
    grid: tuple[int, int] | None = None,
    active: Tensor | None = None,
    stays: Tensor | None = None,
) -> Tensor:
    """The same numbers from the whole map on the grid, one handle after the other."""
    height, width = grid = _check(features, handles, targets, radius, grid, stays)
    dense = upsampled(features, grid)  # (1, C, H, W)
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
        stay = dense[:, :, top:bottom, left:right]
        if stays is not None:
            first_row, first_column = int(handle[1]) - radius, int(handle[0]) - radius  # of the whole patch
            stay = stays[i, None, :, top - first_row : bottom - first_row, left - first_column : right - first_column]
        loss = loss + (2 * radius + 1) ** 2 * F.l1_loss(moved, stay.detach().to(moved.dtype))
    return loss


@torch.no_grad()
def patches(features: Tensor, handles: Tensor, radius: int = 1, grid: tuple[int, int] | None = None) -> Tensor:
    """F about each handle: (1, C, h, w) and (n, 2) -> (n, C, 2 r₁ + 1, 2 r₁ + 1). Beyond the border nothing counts."""
    height, width = _check(features, handles, handles, radius, grid)
    _, _, h, w = features.shape
    window = window_about(handles.to(accumulated_in(features)), radius, (height, width))
    columns, rows = cells_under(window.x, 0, w, width), cells_under(window.y, 0, h, height)
    weights = sampling(window.x, window.y, columns, rows, (h, w), (height, width))  # (n, P, P, K L)
    return sample(native_cells(features, columns, rows), weights)


def pull(
    features: Tensor,
    stays: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    grid: tuple[int, int],
) -> Pull:
    """Loss and gradient of `motion_supervision_loss` in torch; handles and directions (n, 2) float32 or float64."""
    height, width = grid
    _, c, h, w = features.shape
    window = window_about(handles, radius, grid)
    at_x, at_y = native_position(window.x, w, width), native_position(window.y, h, height)  # (n, P) each
    x, y = moved_by(window.x, at_x, directions[:, :1], w, width), moved_by(window.y, at_y, directions[:, 1:], h, height)
    columns, rows = cells_under(window.x, 1, w, width), cells_under(window.y, 1, h, height)  # (n, L), (n, K)
    there = product(_along_moved(y, rows), _along_moved(x, columns))  # (n, P, P, K L)

    native = native_cells(features, columns, rows)  # (n, C, K L)
    moved = sample(native, there)  # (n, C, P, P)
    counted = window.inside & (directions != 0).any(dim=1)[:, None, None]  # (n, P, P)
    if active is not None:
        counted = counted & active[:, None, None]
    if stays is None:
        here = product(along(at_y, rows), along(at_x, columns))  # (n, P, P, K L)
        stays = sample(native, here)  # (n, C, P, P)
        flat = y.flat[:, :, None] & x.flat[:, None]  # (n, P, P)
        blended = (y.fraction != 0)[:, :, None] | (x.fraction != 0)[:, None]
        counted = counted & (blended | ~flat)
        moved = torch.where(flat[:, None], blend(stays, stays, stays, stays, x.fraction, y.fraction), moved)
    cells = window.inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)  # (n, 1, 1), that the mean is taken over
    weight = (counted * ((2 * radius + 1) ** 2 / (c * cells.to(native.dtype))))[:, None]  # (n, 1, P, P)
    difference = moved - stays
    gradient = einsum(difference.sgn() * weight, there, "n c p q, n p q k -> n c k")
    first = torch.stack([rows[:, 0], columns[:, 0]], dim=1)  # (n, 2)
    return Pull((difference.abs() * weight).sum(), gradient.unflatten(2, (rows.shape[1], -1)), first)


def spread(gradient: Tensor, first: Tensor, scale: Tensor, native: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Cells (n, C, K, L) times a scalar, added up in a map of zeros (1, C, h, w) of that type."""
    c = gradient.shape[1]
    rows = first[:, :1] + torch.arange(gradient.shape[2], device=first.device)  # (n, K)
    columns = first[:, 1:] + torch.arange(gradient.shape[3], device=first.device)  # (n, L)
    at = index(Cells(rows, columns), native[1])  # (n K L)
    cells = rearrange(gradient * scale, "n c k l -> c (n k l)")
    # In float32 whatever the type, since handles overlap. scatter_add_ adds up in a fixed order on the CPU.
    features = gradient.new_zeros(c, native[0] * native[1]).scatter_add_(1, at.expand(c, -1), cells)  # (C, h w)
    return features.to(dtype).view(1, c, *native)


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


def cells_across(radius: int, margin: int, native: int, grid: int) -> int:
    """As many native cells along one axis as reach any window of that radius, moved by up to `margin` cells."""
    return min(native, -(-2 * (radius + margin) * native // grid) + 2)


def cells_under(position: Tensor, margin: int, native: int, grid: int) -> Tensor:
    """The native cells (n, K) along one axis that reach positions (n, P) of the grid moved by up to `margin` cells.

    They are consecutive, as many for every window, and cells of the map: at its border more than need be.
    """
    count = cells_across(position.shape[1] // 2, margin, native, grid)
    first = native_position(position[:, :1] - margin, native, grid).floor().long().clamp(max=native - count)
    return first + torch.arange(count, device=position.device)  # (n, K)


def native_position(position: Tensor, native: int, grid: int) -> Tensor:
    """Where cells of the grid lie among the native cells, edges clamped."""
    return ((position + 0.5) * (native / grid) - 0.5).clamp(0, native - 1)


def along(at: Tensor, cells: Tensor) -> Tensor:
    """The linear map of one axis, from native cells (n, K) to positions (n, P) among them: (n, P, K)."""
    return (1 - (at[:, :, None] - cells[:, None]).abs()).clamp(min=0)


def _along_moved(moved: Moved, cells: Tensor) -> Tensor:
    """The same to where the samples have moved, between two cells of the grid."""
    neighbours = along(moved.at, cells)  # (n, P + 1, K)
    fraction = moved.fraction[:, :, None]
    return neighbours[:, :-1] * (1 - fraction) + neighbours[:, 1:] * fraction  # (n, P, K)


def product(along_y: Tensor, along_x: Tensor) -> Tensor:
    """The linear map of both axes, (n, P, K) and (n, Q, L) -> (n, P, Q, K L)."""
    return einsum(along_y, along_x, "n p k, n q l -> n p q k l").flatten(3)


def sampling(
    x: Tensor, y: Tensor, columns: Tensor, rows: Tensor, native: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The linear map from native cells, columns (n, L) and rows (n, K), to cells of the grid, x (n, Q) and y (n, P)."""
    at_y, at_x = native_position(y, native[0], grid[0]), native_position(x, native[1], grid[1])
    return product(along(at_y, rows), along(at_x, columns))  # (n, P, Q, K L)


def native_cells(features: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The native cells of each window: (1, C, h, w) -> (n, C, K L), float32 or float64."""
    cells = take(features.flatten(2), index(Cells(rows, columns), features.shape[3]))  # (1, C, n K L)
    return rearrange(cells, "1 c (n k) -> n c k", n=len(rows)).to(accumulated_in(features))


def sample(cells: Tensor, weights: Tensor) -> Tensor:
    """Cells (n, C, K L) under weights (n, P, Q, K L) -> (n, C, P, Q)."""
    return einsum(weights, cells, "n p q k, n c k -> n c p q")


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


def moved_by(position: Tensor, left_at: Tensor, shift: Tensor, native: int, grid: int) -> Moved:
    """Positions (n, P) of a window, `left_at` among the native cells, shifted by (n, 1) and clamped to the grid."""
    # One fraction for all samples of a window, taken at its first cell inside the grid, as the reference rounds it.
    first = position[:, :1].clamp(min=0)
    start = (first + shift).floor()
    cell = position + (start - first)  # (n, P)
    fraction = torch.where((cell >= 0) & (cell < grid - 1), first + shift - start, 0)
    cells = torch.cat([cell, cell[:, -1:] + 1], dim=1).clamp(0, grid - 1)  # (n, P + 1)
    at = native_position(cells, native, grid)  # (n, P + 1)
    flat = (at[:, :-1] == left_at) & ((at[:, 1:] == left_at) | (fraction == 0))
    return Moved(at, fraction, flat)


def _shifted_slice(first: int, end: int, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The indices (P + 1,) between which first … end - 1 lie once shifted, and the fractions (1, P); edges clamped."""
    start = (first + shift).floor()
    cell = start.long() + torch.arange(end - first + 1, device=shift.device)  # (P + 1,)
    clamped = (cell[:-1] < 0) | (cell[:-1] >= size - 1)
    return cell.clamp(0, size - 1), torch.where(clamped, 0, first + shift - start)[None]


def _check(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int,
    grid: tuple[int, int] | None,
    stays: Tensor | None = None,
) -> tuple[int, int]:
    """Raise a ValueError unless the arguments fit together; the grid."""
    if features.ndim != 4 or features.shape[0] != 1:
        raise ValueError(f"features must be (1, C, h, w), came {tuple(features.shape)}")
    if handles.ndim != 2 or handles.shape[1] != 2 or handles.shape != targets.shape:
        came = f"{tuple(handles.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"handles and targets must be (n, 2) of (x, y), as many of each, came {came}")
    if radius < 0:
        raise ValueError(f"the patch's radius must be 0 or more, came {radius}")
    expected = len(handles), features.shape[1], 2 * radius + 1, 2 * radius + 1
    if stays is not None and stays.shape != expected:
        raise ValueError(f"the patches that stay must be {expected}, one for each handle, came {tuple(stays.shape)}")
    grid = (features.shape[2], features.shape[3]) if grid is None else grid
    check_inside(handles, grid)
    return grid


def check_inside(points: Tensor, grid: tuple[int, int]) -> None:
    """Raise a ValueError for a point outside of the grid; not where looking would stop a device or a trace."""
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for x, y in points.tolist():
        if not (-0.5 <= x <= grid[1] - 0.5 and -0.5 <= y <= grid[0] - 0.5):  # NaN is nowhere
            raise ValueError(f"point ({x:g}, {y:g}) lies outside of the grid, {grid[1]} cells wide and {grid[0]} high")


@cache
def triton_kernels() -> ModuleType | None:
    """The kernels for CUDA; None without Triton, which PyTorch brings where it has a release: not on Windows."""
    return importlib.import_module("dragsa.kernels.triton_kernels") if importlib.util.find_spec("triton") else None


@torch.library.custom_op("dragsa::pull", mutates_args=())
def _pull(
    features: Tensor,
    stays: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pull`, as an operator for every device."""
    loss, gradient, first = pull(features, stays, handles, directions, active, radius, (height, width))
    return loss, gradient, first


@_pull.register_kernel("cuda")
def _pull_cuda(
    features: Tensor,
    stays: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = triton_kernels()
    pulled = pull if kernels is None else kernels.pull
    loss, gradient, first = pulled(features, stays, handles, directions, active, radius, (height, width))
    return loss, gradient, first


@_pull.register_fake
def _pull_shapes(
    features: Tensor,
    stays: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, (_, c, h, w) = handles.shape[0], features.shape
    cells = cells_across(radius, 1, h, height), cells_across(radius, 1, w, width)  # K, L
    loss = features.new_empty((), dtype=accumulated_in(features))
    return loss, loss.new_empty(n, c, *cells), loss.new_empty(n, 2, dtype=torch.long)


@torch.library.custom_op("dragsa::spread", mutates_args=())
def _spread(gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """`spread`, as an operator for every device; height and width are those of the features."""
    return spread(gradient, first, scale, (height, width), dtype)


@_spread.register_kernel("cuda")
def _spread_cuda(gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    kernels = triton_kernels()
    return (spread if kernels is None else kernels.spread)(gradient, first, scale, (height, width), dtype)


@_spread.register_fake
def _spread_shape(
    gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    return gradient.new_empty(1, gradient.shape[1], height, width, dtype=dtype)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient, first = output
    ctx.mark_non_differentiable(gradient, first)
    ctx.save_for_backward(gradient, first)
    ctx.native, ctx.dtype = inputs[0].shape[2:], inputs[0].dtype


def _spread_gradient(ctx: Any, scale: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradient, first = ctx.saved_tensors
    return _spread(gradient, first, scale, *ctx.native, ctx.dtype), None, None, None, None, None, None, None


_pull.register_autograd(_spread_gradient, setup_context=_keep_gradient)

"""The Triton kernels of motion supervision and point tracking, for CUDA, in the place of torch.

`pull`, `spread` and `search` are called as those of the same names there are, and give the same numbers. Imported only
where a tensor on CUDA asks for it; without a GPU they run in Triton's interpreter (TRITON_INTERPRET=1 before Triton is
imported).

A program of `pull` and of `search` works on one handle. F and its shifted samples are linear in the native cells under
the window, so that the samples are a small matrix product, cells (channels, K L) times weights (K L, samples), each
extent padded to a power of two and masked. Most windows are one block of samples, wide ones several.

Floating-point contraction is off: `_blend` multiplies and adds as DragDiffusion does, each result rounded, because the
sign of what rounding leaves there is a gradient (see `patch_loss`). Nothing else hangs on the order of a sum. Where
patches overlap, `spread` adds up in the order of the handles, without atomics: the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dragsa.kernels import windows

TILE = 2048  # native cells × channels, and native cells × samples, that one program holds
ROUNDED = {"enable_fp_fusion": False}  # no product and sum in one rounding


def pull(
    features: Tensor,
    target_patch: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    *grid: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `patch_loss.pull`."""
    dtype = windows.accumulated_in(features)
    n, c, sizes = len(handles), features.shape[1], _sizes(features, radius, 1, grid)
    blocks = triton.cdiv(c, sizes["CHANNELS"])
    loss = torch.empty(n, blocks, dtype=dtype, device=features.device)
    gradient = torch.empty(n, c, sizes["ROWS"], sizes["COLUMNS"], dtype=dtype, device=features.device)
    first = torch.empty(n, 2, dtype=torch.long, device=features.device)
    given = features if target_patch is None else target_patch.contiguous()
    with torch.cuda.device_of(features):
        _pull[n, blocks](
            features, given, handles.contiguous(), directions.contiguous(),
            handles if active is None else active.contiguous(), loss, gradient, first,
            *features.stride()[1:], c, blocks,
            HAS_TARGET=target_patch is not None, HAS_ACTIVE=active is not None, **sizes, **ROUNDED,
        )  # fmt: skip
    return loss.sum(), gradient, first


def spread(gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Compute `patch_loss.spread`."""
    n, c, rows, columns = gradient.shape
    features = torch.zeros(1, c, height, width, dtype=dtype, device=gradient.device)
    cells = triton.next_power_of_2(rows * columns)
    channels = max(1, min(TILE // cells, triton.next_power_of_2(c)))
    with torch.cuda.device_of(gradient):
        _spread[n, triton.cdiv(c, channels)](
            gradient.contiguous(), first.contiguous(), scale, features, n, c, NATIVE_HEIGHT=height, NATIVE_WIDTH=width,
            ROWS=rows, COLUMNS=columns, CELLS=cells, CHANNELS=channels, **ROUNDED,
        )  # fmt: skip
    return features


def search(features: Tensor, reference: Tensor, handles: Tensor, radius: int, *grid: int) -> tuple[Tensor, Tensor]:
    """Compute `tracking.search`, but that NaN is never the minimum."""
    dtype, (n, c) = windows.accumulated_in(features), reference.shape
    points = torch.empty(n, 2, dtype=handles.dtype, device=handles.device)
    distance = torch.empty(n, dtype=dtype, device=features.device)
    with torch.cuda.device_of(features):
        _search[n,](
            features, reference.to(dtype).contiguous(), handles.to(dtype).contiguous(), points, distance,
            *features.stride()[1:], c, **_sizes(features, radius, 0, grid), **ROUNDED,
        )  # fmt: skip
    return points, distance


def _sizes(features: Tensor, radius: int, margin: int, grid: Sequence[int]) -> dict[str, int]:
    """Return the fixed sizes of a launch, by the kernels' names for them.

    ROWS × COLUMNS native cells lie under a window. A program holds tensors that are padded: CELLS of those, CHANNELS of
    one block, and SAMPLES of one block of the window's P².
    """
    c, *native = features.shape[1:]
    rows, columns = (windows.cells_across(radius, margin, *sizes) for sizes in zip(native, grid, strict=True))
    least = 16  # that tl.dot takes
    cells = max(least, triton.next_power_of_2(rows * columns))
    channels, samples = (
        max(least, min(TILE // cells, triton.next_power_of_2(count))) for count in (c, (2 * radius + 1) ** 2)
    )
    return {
        "RADIUS": radius, "NATIVE_HEIGHT": native[0], "NATIVE_WIDTH": native[1], "HEIGHT": grid[0], "WIDTH": grid[1],
        "ROWS": rows, "COLUMNS": columns, "CELLS": cells, "CHANNELS": channels, "SAMPLES": samples,
    }  # fmt: skip


@triton.jit
def _pull(
    features: tl.tensor,  # (1, C, h, w), any strides
    given: tl.tensor,  # (n, C, P, P), the target patches
    handles: tl.tensor,  # (n, 2)
    directions: tl.tensor,  # (n, 2)
    active: tl.tensor,  # (n,) bool
    loss: tl.tensor,  # (n, blocks)
    gradient: tl.tensor,  # (n, C, K, L)
    first: tl.tensor,  # (n, 2)
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    C: tl.tensor,
    blocks: tl.tensor,
    HAS_TARGET: tl.constexpr,
    HAS_ACTIVE: tl.constexpr,
    RADIUS: tl.constexpr,
    NATIVE_HEIGHT: tl.constexpr,
    NATIVE_WIDTH: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SAMPLES: tl.constexpr,
) -> None:
    """Loss (one block of channels' part) and gradient of one handle."""
    handle, block = tl.program_id(0), tl.program_id(1)
    P: tl.constexpr = 2 * RADIUS + 1
    left = _truncated(tl.load(handles + 2 * handle)) - RADIUS
    top = _truncated(tl.load(handles + 2 * handle + 1)) - RADIUS
    shift_x, shift_y = tl.load(directions + 2 * handle), tl.load(directions + 2 * handle + 1)
    pulled = (shift_x != 0) | (shift_y != 0)
    if HAS_ACTIVE:
        pulled = pulled & (tl.load(active + handle) != 0)

    first_column = _first(left - 1, COLUMNS, NATIVE_WIDTH, WIDTH)
    first_row = _first(top - 1, ROWS, NATIVE_HEIGHT, HEIGHT)
    cell = tl.arange(0, CELLS)
    row, column = first_row + cell // COLUMNS, first_column + cell % COLUMNS
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    held = (channel < C)[:, None] & (cell < ROWS * COLUMNS)[None, :]  # (CHANNELS, CELLS)
    at = channel.to(tl.int64)[:, None] * channel_stride + (row * row_stride + column * column_stride)[None, :]
    native = tl.load(features + at, mask=held, other=0.0).to(gradient.dtype.element_ty)

    columns_inside = tl.minimum(left + P, WIDTH) - tl.maximum(left, 0)
    rows_inside = tl.minimum(top + P, HEIGHT) - tl.maximum(top, 0)
    factor = tl.where(pulled, P * P / (C * tl.maximum(columns_inside * rows_inside, 1.0)), 0.0)

    total = tl.zeros((CHANNELS, SAMPLES), gradient.dtype.element_ty)
    collected = tl.zeros((CHANNELS, CELLS), gradient.dtype.element_ty)
    for start in range(0, P * P, SAMPLES):
        q = start + tl.arange(0, SAMPLES)
        x, y = left + q % P, top + q // P  # (SAMPLES,)
        fraction_x, flat_x, here_x, there_x = _moved(x, left, shift_x, column, NATIVE_WIDTH, WIDTH)
        fraction_y, flat_y, here_y, there_y = _moved(y, top, shift_y, row, NATIVE_HEIGHT, HEIGHT)
        here, there = here_y * here_x, there_y * there_x  # (SAMPLES, CELLS)
        counted = (q < P * P) & (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
        moved = tl.dot(native, tl.trans(there), input_precision="ieee", out_dtype=native.dtype)  # (CHANNELS, SAMPLES)
        if HAS_TARGET:
            at = (handle * C + channel).to(tl.int64)[:, None] * (P * P) + q[None, :]
            stay = tl.load(given + at, mask=(channel < C)[:, None] & (q < P * P)[None, :], other=0.0)
        else:
            stay = tl.dot(native, tl.trans(here), input_precision="ieee", out_dtype=native.dtype)
            flat = flat_x & flat_y
            counted = counted & ((fraction_x != 0) | (fraction_y != 0) | (flat == 0))
            moved = tl.where(flat[None, :], _blend(stay, fraction_x[None, :], fraction_y[None, :]), moved)
        difference = moved - stay
        weight = tl.where(counted, factor, 0.0)[None, :]  # (1, SAMPLES)
        total += tl.abs(difference) * weight
        pushed = tl.where(difference > 0, weight, 0.0) - tl.where(difference < 0, weight, 0.0)
        collected += tl.dot(pushed, there, input_precision="ieee", out_dtype=native.dtype)

    tl.store(loss + handle * blocks + block, tl.sum(tl.sum(total, axis=1), axis=0))
    at = (handle * C + channel).to(tl.int64)[:, None] * (ROWS * COLUMNS) + cell[None, :]
    tl.store(gradient + at, collected, mask=held)
    if block == 0:
        tl.store(first + 2 * handle, first_row.to(tl.int64))
        tl.store(first + 2 * handle + 1, first_column.to(tl.int64))


@triton.jit
def _spread(
    gradient: tl.tensor,  # (n, C, K, L)
    first: tl.tensor,  # (n, 2)
    scale: tl.tensor,  # scalar
    features: tl.tensor,  # (1, C, h, w), zeros
    n: tl.tensor,
    C: tl.tensor,
    NATIVE_HEIGHT: tl.constexpr,
    NATIVE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Add up what all handles give to the cells of one. Handles that share a cell store the same number there."""
    handle = tl.program_id(0)
    cell = tl.arange(0, CELLS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.load(first + 2 * handle) + cell // COLUMNS
    column = tl.load(first + 2 * handle + 1) + cell % COLUMNS
    held = (channel < C)[:, None] & (cell < ROWS * COLUMNS)[None, :]  # (CHANNELS, CELLS)
    total = tl.zeros((CHANNELS, CELLS), gradient.dtype.element_ty)
    by = tl.load(scale)
    for other in range(n):
        k, l = row - tl.load(first + 2 * other), column - tl.load(first + 2 * other + 1)  # noqa: E741
        shared = (k >= 0) & (k < ROWS) & (l >= 0) & (l < COLUMNS)
        at = (other * C + channel).to(tl.int64)[:, None] * (ROWS * COLUMNS) + (k * COLUMNS + l)[None, :]
        total += tl.load(gradient + at, mask=held & shared[None, :], other=0.0) * by
    at = channel.to(tl.int64)[:, None] * (NATIVE_HEIGHT * NATIVE_WIDTH) + (row * NATIVE_WIDTH + column)[None, :]
    tl.store(features + at, total.to(features.dtype.element_ty), mask=held)


@triton.jit
def _search(
    features: tl.tensor,  # (1, C, h, w), any strides
    reference: tl.tensor,  # (n, C)
    handles: tl.tensor,  # (n, 2)
    points: tl.tensor,  # (n, 2)
    distance: tl.tensor,  # (n,)
    channel_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    C: tl.tensor,
    RADIUS: tl.constexpr,
    NATIVE_HEIGHT: tl.constexpr,
    NATIVE_WIDTH: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SAMPLES: tl.constexpr,
) -> None:
    """The nearest cell of one handle's window, and how near it is."""
    handle = tl.program_id(0)
    P: tl.constexpr = 2 * RADIUS + 1
    left = _truncated(tl.load(handles + 2 * handle)) - RADIUS
    top = _truncated(tl.load(handles + 2 * handle + 1)) - RADIUS
    cell = tl.arange(0, CELLS)
    row = _first(top, ROWS, NATIVE_HEIGHT, HEIGHT) + cell // COLUMNS
    column = _first(left, COLUMNS, NATIVE_WIDTH, WIDTH) + cell % COLUMNS

    best, taken = tl.full((), float("inf"), distance.dtype.element_ty), P * P - 1
    for start in range(0, P * P, SAMPLES):
        q = start + tl.arange(0, SAMPLES)  # in reading order
        x, y = left + q % P, top + q // P  # (SAMPLES,)
        at_x, at_y = _native_position(x, NATIVE_WIDTH, WIDTH), _native_position(y, NATIVE_HEIGHT, HEIGHT)
        here = _along(at_y, row) * _along(at_x, column)  # (SAMPLES, CELLS)
        apart = tl.zeros((SAMPLES,), distance.dtype.element_ty)
        for begin in range(0, C, CHANNELS):
            channel = begin + tl.arange(0, CHANNELS)
            held = (channel < C)[:, None] & (cell < ROWS * COLUMNS)[None, :]  # (CHANNELS, CELLS)
            at = channel.to(tl.int64)[:, None] * channel_stride + (row * row_stride + column * column_stride)[None, :]
            native = tl.load(features + at, mask=held, other=0.0).to(distance.dtype.element_ty)
            sought = tl.load(reference + handle * C + channel, mask=channel < C, other=0.0)
            found = tl.dot(native, tl.trans(here), input_precision="ieee", out_dtype=native.dtype)
            apart += tl.sum(tl.abs(found - sought[:, None]), axis=0)
        # What the border clamps onto the features of the column or row before is never the first minimum.
        again_x = (x >= 1) & (q % P > 0) & (at_x == _native_position(x - 1.0, NATIVE_WIDTH, WIDTH))
        again_y = (y >= 1) & (q // P > 0) & (at_y == _native_position(y - 1.0, NATIVE_HEIGHT, HEIGHT))
        eligible = (q < P * P) & (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT) & ((again_x | again_y) == 0)
        apart = tl.where(eligible, apart, float("inf"))
        nearest = tl.min(apart, axis=0)
        taken = tl.where(nearest < best, tl.min(tl.where(apart == nearest, q, P * P - 1), axis=0), taken)
        best = tl.minimum(nearest, best)

    tl.store(distance + handle, best)
    tl.store(points + 2 * handle, (left + taken % P).to(points.dtype.element_ty))
    tl.store(points + 2 * handle + 1, (top + taken // P).to(points.dtype.element_ty))


@triton.jit
def _truncated(point: tl.tensor) -> tl.tensor:
    return tl.where(point < 0, tl.ceil(point), tl.floor(point))


@triton.jit
def _native_position(position: tl.tensor, NATIVE: tl.constexpr, GRID: tl.constexpr) -> tl.tensor:
    return tl.minimum(tl.maximum((position + 0.5) * (NATIVE / GRID) - 0.5, 0.0), NATIVE - 1.0)


@triton.jit
def _first(position: tl.tensor, COUNT: tl.constexpr, NATIVE: tl.constexpr, GRID: tl.constexpr) -> tl.tensor:
    """The first of COUNT native cells that reach this position of the grid and those after it."""
    return tl.minimum(tl.floor(_native_position(position, NATIVE, GRID)).to(tl.int32), NATIVE - COUNT)


@triton.jit
def _along(at: tl.tensor, cells: tl.tensor) -> tl.tensor:
    """`windows.along`: the weights (SAMPLES, CELLS) of native cells at places among them."""
    return tl.maximum(1.0 - tl.abs(at[:, None] - cells[None, :]), 0.0)


@triton.jit
def _moved(
    position: tl.tensor, first: tl.tensor, shift: tl.tensor, cells: tl.tensor, NATIVE: tl.constexpr, GRID: tl.constexpr
) -> tl.tuple:
    """`windows.moved_by` of a window that begins at `first`: fraction, flat, and the weights before and after."""
    first = tl.maximum(first, 0.0)
    start = tl.floor(first + shift)
    cell = position + (start - first)
    fraction = tl.where((cell >= 0) & (cell < GRID - 1), first + shift - start, 0.0)
    at = _native_position(position, NATIVE, GRID)
    near = _native_position(tl.minimum(tl.maximum(cell, 0.0), GRID - 1.0), NATIVE, GRID)
    far = _native_position(tl.minimum(tl.maximum(cell + 1.0, 0.0), GRID - 1.0), NATIVE, GRID)
    flat = (near == at) & ((far == at) | (fraction == 0))
    there = _along(near, cells) * (1.0 - fraction)[:, None] + _along(far, cells) * fraction[:, None]
    return fraction, flat, _along(at, cells), there


@triton.jit
def _blend(value: tl.tensor, right: tl.tensor, below: tl.tensor) -> tl.tensor:
    """`windows.blend` of four equals."""
    left, above = 1.0 - right, 1.0 - below
    return value * (left * above) + value * (left * below) + value * (right * above) + value * (right * below)

"""Point tracking: where the features of a handle are after an update of the latent.

    h' = argmin over q ∈ Ω(h, r₂) of Σ_channels |F(q) - reference|,

Ω being the square of radius r₂ about int(h), cut at the border, and F the features on the supervision grid. The first
minimum in reading order wins. `track` samples the window alone, for all handles at once, without a host sync, and is
one operator, `dragsa::search`, to whoever traces it: a Triton kernel on CUDA, elsewhere torch. `track_points_reference`
makes the whole map and searches it handle by handle. Points are (x, y) on the grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dragsa.kernels import patch_loss


class Track(NamedTuple):
    """points: (n, 2), whole numbers as floats. distance: (n,), Σ_channels |F(point) - reference|."""

    points: Tensor
    distance: Tensor


def track_points(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int = 3, grid: tuple[int, int] | None = None
) -> Tensor:
    """The handles' new places (n, 2), as `track` finds them."""
    return track(features, reference, handles, radius, grid).points


@torch.no_grad()
def track(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int = 3, grid: tuple[int, int] | None = None
) -> Track:
    """Look for `reference` in the features about each handle.

    features: (1, C, h, w) at any resolution. reference: (n, C), what to look for. handles: (n, 2). radius: r₂. grid:
    (H, W), by default that of the features. Raises ValueError for a wrong shape.
    """
    height, width = _check(features, reference, handles, radius, grid)
    return Track(*_search(features, reference, handles, radius, height, width))


@torch.no_grad()
def track_points_reference(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int = 3, grid: tuple[int, int] | None = None
) -> Tensor:
    """The same from the whole map on the grid, one handle after the other."""
    height, width = grid = _check(features, reference, handles, radius, grid)
    dense = patch_loss.upsampled(features, grid)  # (1, C, H, W)
    points = []
    for (x, y), wanted in zip(handles.tolist(), reference.to(dense.dtype), strict=True):
        left, right = max(0, int(x) - radius), min(width, int(x) + radius + 1)
        top, bottom = max(0, int(y) - radius), min(height, int(y) + radius + 1)
        distance = (dense[0, :, top:bottom, left:right] - wanted[:, None, None]).abs().sum(dim=0)
        row, column = divmod(int(distance.flatten().argmin()), right - left)
        points.append([left + column, top + row])
    return torch.tensor(points, dtype=handles.dtype, device=handles.device)


def sample_points(features: Tensor, points: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """The features on the grid at any points of it: (1, C, h, w) and (n, 2) -> (n, C), differentiable in the features.

    Between cells of the grid they are bilinear, beyond its border those of the border.
    """
    height, width = grid = _check(features, None, points, 0, grid)
    _, _, h, w = features.shape
    with torch.no_grad():
        points = points.to(patch_loss.accumulated_in(features))
        window = patch_loss.window_about(points, 0, grid)
        columns, rows = patch_loss.cells_under(window.x, 1, w, width), patch_loss.cells_under(window.y, 1, h, height)
        beyond = points - points.trunc()  # (n, 2)
        at_x, at_y = (patch_loss.native_position(*axis) for axis in ((window.x, w, width), (window.y, h, height)))
        x = patch_loss.moved_by(window.x, at_x, beyond[:, :1], w, width)
        y = patch_loss.moved_by(window.y, at_y, beyond[:, 1:], h, height)
        weights = patch_loss.product(patch_loss.along(y.at, rows), patch_loss.along(x.at, columns))  # (n, 2, 2, K L)
    cells = patch_loss.native_cells(features, columns, rows)  # (n, C, K L)
    return patch_loss.between(patch_loss.sample(cells, weights), x.fraction, y.fraction)[:, :, 0, 0]


def search(features: Tensor, reference: Tensor, handles: Tensor, radius: int, grid: tuple[int, int]) -> Track:
    """`track` in torch."""
    height, width = grid
    _, _, h, w = features.shape
    dtype = patch_loss.accumulated_in(features)
    window = patch_loss.window_about(handles.to(dtype), radius, grid)
    x, y = window.x, window.y  # each (n, P)
    columns, rows = patch_loss.cells_under(x, 0, w, width), patch_loss.cells_under(y, 0, h, height)
    weights = patch_loss.sampling(x, y, columns, rows, (h, w), grid)  # (n, P, P, K L)
    found = patch_loss.sample(patch_loss.native_cells(features, columns, rows), weights)  # (n, C, P, P)
    distance = (found - reference.to(dtype)[:, :, None, None]).abs().sum(dim=1)  # (n, P, P)
    repeated = _repeats(y, h, height)[:, :, None] | _repeats(x, w, width)[:, None]
    distance = distance.masked_fill(~window.inside | repeated, torch.inf).flatten(1)  # (n, P P)
    best, index = distance.min(dim=1)  # the first of equals
    size = x.shape[1]
    best_x, best_y = x.gather(1, index[:, None] % size), y.gather(1, index[:, None] // size)
    return Track(torch.cat([best_x, best_y], dim=1).to(handles.dtype), best)


@torch.no_grad()
def chance(features: Tensor, reference: Tensor) -> Tensor:
    """How far the average cell of a map is from each reference: (1, C, h, w) and (n, C) -> (n,), Σ_channels |·|.

    A match that is no nearer than this could be anywhere. The average is over a lattice of some 16 × 16 cells.
    """
    dtype = patch_loss.accumulated_in(features)
    _, _, h, w = features.shape
    cells = features[0, :, :: max(1, h // 16), :: max(1, w // 16)].flatten(1).T  # (cells, C)
    return torch.cdist(reference.to(dtype), cells.to(dtype), p=1).mean(dim=1)


def _repeats(position: Tensor, native: int, grid: int) -> Tensor:
    """Rows or columns (n, P) that the border clamps onto the same features as the one before: never the first minimum.

    Left in, they would tie with it but for rounding.
    """
    at = patch_loss.native_position(position, native, grid)
    same = (at[:, 1:] == at[:, :-1]) & (position[:, :-1] >= 0)
    return torch.cat([torch.zeros_like(at[:, :1], dtype=torch.bool), same], dim=1)


def _check(
    features: Tensor, reference: Tensor | None, handles: Tensor, radius: int, grid: tuple[int, int] | None
) -> tuple[int, int]:
    """Raise a ValueError unless the arguments fit together; the grid."""
    if features.ndim != 4 or features.shape[0] != 1:
        raise ValueError(f"features must be (1, C, h, w), came {tuple(features.shape)}")
    if handles.ndim != 2 or handles.shape[1] != 2:
        raise ValueError(f"points must be (n, 2) of (x, y), came {tuple(handles.shape)}")
    if reference is not None and reference.shape != (len(handles), features.shape[1]):
        expected = (len(handles), features.shape[1])
        raise ValueError(f"reference must be {expected}, a feature for each handle, came {tuple(reference.shape)}")
    if radius < 0:
        raise ValueError(f"the search's radius must be 0 or more, came {radius}")
    grid = (features.shape[2], features.shape[3]) if grid is None else grid
    patch_loss.check_inside(handles, grid)
    return grid


@torch.library.custom_op("dragsa::search", mutates_args=())
def _search(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """`search`, as an operator for every device."""
    points, distance = search(features, reference, handles, radius, (height, width))
    return points, distance


@_search.register_kernel("cuda")
def _search_cuda(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    kernels = patch_loss.triton_kernels()
    found = search if kernels is None else kernels.search
    points, distance = found(features, reference, handles, radius, (height, width))
    return points, distance


@_search.register_fake
def _search_shapes(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    n = handles.shape[0]
    return handles.new_empty(n, 2), features.new_empty(n, dtype=patch_loss.accumulated_in(features))

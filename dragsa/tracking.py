"""Point tracking (section 2.2): where the features of a handle are after an update of the latent.

    h' = argmin over q ∈ Ω(h, r₂) of Σ_channels |F(q) - reference|,

Ω being the square of radius r₂ about int(h), cut at the border, and F the features on the supervision grid. The first
minimum in reading order wins. `track` samples the windows alone, for all handles at once, without a host sync
(`kernels/tracking.py`); `track_points_reference` makes the whole map and searches it handle by handle.

Points are (x, y) on the grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dragsa import checks, kernels
from dragsa.motion import upsampled


class Track(NamedTuple):
    """points: (n, 2), whole numbers as floats. distance: (n,), Σ_channels |F(point) - reference|."""

    points: Tensor
    distance: Tensor


def track_points(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int = 3, grid: tuple[int, int] | None = None
) -> Tensor:
    """Return the handles' new places (n, 2), as `track` finds them. The plain twin is `track` in scripts/plain.py."""
    return track(features, reference, handles, radius, grid).points


@torch.no_grad()
def track(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int = 3, grid: tuple[int, int] | None = None
) -> Track:
    """Look for `reference` in the features about each handle.

    features: (1, C, h, w) at any resolution. reference: (n, C), what to look for. handles: (n, 2). radius: r₂. grid:
    (H, W), by default that of the features. Raises ValueError for a wrong shape. The plain twin is `track` in
    scripts/plain.py.
    """
    height, width = grid = checks.tracking(features, reference, handles, radius, grid)
    return Track(*kernels.search(features, reference, handles, kernels.windows.within(radius, grid), height, width))


@torch.no_grad()
def track_points_reference(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int = 3, grid: tuple[int, int] | None = None
) -> Tensor:
    """Return the same from the whole map on the grid, one handle after the other."""
    height, width = grid = checks.tracking(features, reference, handles, radius, grid)
    dense = upsampled(features, grid)  # (1, C, H, W)
    points = []
    for (x, y), sought in zip(handles.tolist(), reference.to(dense.dtype), strict=True):
        left, right = max(0, int(x) - radius), min(width, int(x) + radius + 1)
        top, bottom = max(0, int(y) - radius), min(height, int(y) + radius + 1)
        distance = (dense[0, :, top:bottom, left:right] - sought[:, None, None]).abs().sum(dim=0)
        row, column = divmod(int(distance.flatten().argmin()), right - left)
        points.append([left + column, top + row])
    return torch.tensor(points, dtype=handles.dtype, device=handles.device)


def sample_points(features: Tensor, points: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Return the features at any points of the grid: (1, C, h, w) and (n, 2) -> (n, C), differentiable in the features.

    Between cells of the grid they are bilinear, beyond its border those of the border. The plain twin is `bilinear` in
    scripts/plain.py, of a map that `on_grid` made.
    """
    return kernels.sample_points(features, points, checks.points_about(features, points, grid))


@torch.no_grad()
def chance(features: Tensor, reference: Tensor) -> Tensor:
    """Return how far the average cell of a map is from each reference: (1, C, h, w), (n, C) -> (n,), Σ_channels |·|.

    A match that is no nearer than this could be anywhere. The average is over a lattice of some 16 × 16 cells.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    _, _, h, w = features.shape
    cells = features[0, :, :: max(1, h // 16), :: max(1, w // 16)].flatten(1).T  # (cells, C)
    return torch.cdist(reference.to(dtype), cells.to(dtype), p=1).mean(dim=1)

"""The search of point tracking in the windows alone, for all handles at once, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from dragsa.kernels import windows


def search(
    features: Tensor, reference: Tensor, handles: Tensor, radius: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Find the cell of each window whose features are nearest to the reference (n, C). handles: (n, 2).

    height, width: of the grid. Returns the points (n, 2), whole numbers as floats, and their distances (n,),
    Σ_channels |F(point) - reference|. The plain twin is `track` in scripts/plain.py.
    """
    grid, (h, w) = (height, width), features.shape[2:]
    dtype = windows.accumulated_in(features)
    window = windows.window_about(handles.to(dtype), radius, grid)
    x, y = window.x, window.y  # each (n, P)
    found = windows.patches(features, handles, radius, grid)  # (n, C, P, P)
    distance = (found - reference.to(dtype)[:, :, None, None]).abs().sum(dim=1)  # (n, P, P)
    repeated = repeats(y, h, height)[:, :, None] | repeats(x, w, width)[:, None]
    distance = distance.masked_fill(~window.inside | repeated, torch.inf).flatten(1)  # (n, P P)
    best, index = distance.min(dim=1)  # the first of equals
    size = x.shape[1]
    best_x, best_y = x.gather(1, index[:, None] % size), y.gather(1, index[:, None] // size)
    return torch.cat([best_x, best_y], dim=1).to(handles.dtype), best


def repeats(position: Tensor, native: int, grid: int) -> Tensor:
    """Rows or columns (n, P) that the border clamps onto the same features as the one before: never the first minimum.

    Left in, they would tie with it but for rounding.
    """
    at = windows.native_position(position, native, grid)
    same = (at[:, 1:] == at[:, :-1]) & (position[:, :-1] >= 0)
    return torch.cat([torch.zeros_like(at[:, :1], dtype=torch.bool), same], dim=1)

"""The patch loss and its gradient from the native cells under the patches, for all handles at once.

With Y, X the linear maps to cells of the grid and Y', X' those to where they have moved,

    F(q) = Σ_kl Y[q_y, k] X[q_x, l] f[k, l]    and    F(q + d) = Σ_kl Y'[q_y, k] X'[q_x, l] f[k, l],

and the gradient is found on the way,

    ∂loss / ∂f[k, l] = Σ_q weight(q) sign(F(q + d) - F(q)) Y'[q_y, k] X'[q_x, l].

It is kept as those few cells until the backward pass adds them into a map of zeros. Its shapes depend on the radius and
the two resolutions, never on where a handle stands.

Where the border clamps F(q), F(q + d) and all between them onto one native cell, F(q + d) - F(q) is nothing but
rounding, and the sign of that would be a gradient like any other. Which samples these are is decided by where they
stand. One that moves by whole cells is not counted; one that is blended with itself gets the residue of DragDiffusion's
four products in DragDiffusion's order (`windows.blend`), so that the sign is theirs, whatever the order of the sums.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from dragsa.kernels import windows
from dragsa.kernels.windows import Cells


def pull(
    features: Tensor,
    target_patch: Tensor | None,
    handles: Tensor,
    directions: Tensor,
    active: Tensor | None,
    radius: int,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, a scalar, its gradient as the native cells that it reaches, and where these are.

    handles and directions: (n, 2) float32 or float64, and the loss and the gradient (n, C, K, L) likewise. height,
    width: of the grid. Where they are is row and column of the first of each handle's K × L cells, (n, 2) int64. The
    plain twin is `motion_supervision` in scripts/plain.py.
    """
    grid, (_, c, h, w) = (height, width), features.shape
    window = windows.window_about(handles, radius, grid)
    x = windows.moved_by(window.x, directions[:, :1], w, width)
    y = windows.moved_by(window.y, directions[:, 1:], h, height)
    columns = windows.cells_under(window.x, 1, w, width)  # (n, L)
    rows = windows.cells_under(window.y, 1, h, height)  # (n, K)
    there = windows.product(windows.along_moved(y, rows), windows.along_moved(x, columns))

    native = windows.native_cells(features, columns, rows)  # (n, C, K L)
    moved = windows.sample(native, there)  # (n, C, P, P)
    counted = window.inside & (directions != 0).any(dim=1)[:, None, None]  # (n, P, P)
    if active is not None:
        counted = counted & active[:, None, None]
    if target_patch is None:
        here = windows.product(windows.along(y.before, rows), windows.along(x.before, columns))
        target_patch = windows.sample(native, here)  # (n, C, P, P)
        flat = y.flat[:, :, None] & x.flat[:, None]  # (n, P, P)
        blended = (y.fraction != 0)[:, :, None] | (x.fraction != 0)[:, None]
        counted = counted & (blended | ~flat)
        same = target_patch  # four neighbours that are one
        itself = windows.blend(same, same, same, same, x.fraction, y.fraction)
        moved = torch.where(flat[:, None], itself, moved)
    cells = window.inside.sum(dim=(1, 2), keepdim=True).clamp(min=1)  # (n, 1, 1), that the mean is taken over
    weight = (counted * ((2 * radius + 1) ** 2 / (c * cells.to(native.dtype))))[:, None]  # (n, 1, P, P)
    difference = moved - target_patch
    gradient = windows.back(difference.sgn() * weight, there)  # (n, C, K L)
    first = torch.stack([rows[:, 0], columns[:, 0]], dim=1)  # (n, 2)
    return (difference.abs() * weight).sum(), gradient.unflatten(2, (rows.shape[1], -1)), first


def spread(gradient: Tensor, first: Tensor, scale: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Add up cells (n, C, K, L), times a scalar, in a map of zeros (1, C, height, width) of that type."""
    c = gradient.shape[1]
    rows = first[:, :1] + torch.arange(gradient.shape[2], device=first.device)  # (n, K)
    columns = first[:, 1:] + torch.arange(gradient.shape[3], device=first.device)  # (n, L)
    at = windows.index(Cells(rows, columns), width)  # (n K L)
    cells = rearrange(gradient * scale, "n c k l -> c (n k l)")
    # In float32 whatever the type, since handles overlap. scatter_add_ adds up in a fixed order on the CPU.
    features = gradient.new_zeros(c, height * width).scatter_add_(1, at.expand(c, -1), cells)  # (C, h w)
    return features.to(dtype).view(1, c, height, width)

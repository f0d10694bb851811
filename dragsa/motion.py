"""Motion supervision (section 2.2): the loss that pulls the patch under each handle one cell towards its target.

With F the features brought to the supervision grid, h a handle, t its target and d = (t - h) / |t - h|, the loss of a
handle is

    (2 r₁ + 1)² · mean over channels and q ∈ Ω(h, r₁) of |F(q + d) - sg F(q)|,

sg being the stopped gradient and Ω the square of radius r₁ about int(h), cut at the border; the loss is the sum over
handles. (The paper sums |·| over channels and Ω, C times as much; factor and mean are those of DragDiffusion's program.
`DragConfig.loss` chooses.)

`motion_supervision_loss` computes this and its gradient from the few native cells under the patches
(`kernels/patch_loss.py`); `motion_supervision_loss_reference` makes the whole map and slices it, handle by handle.

Points are (x, y) on the supervision grid, cell centres at integers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa import checks, kernels

CELLS = 4  # of the supervision grid for one of the latent, in each direction


def motion_supervision_loss(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int = 1,
    grid: tuple[int, int] | None = None,
    active: Tensor | None = None,
    target_patch: Tensor | None = None,
) -> Tensor:
    """Return the loss of the module's first lines, a scalar, from the native cells under the patches alone.

    features: (1, C, h, w) at any resolution, coarser or finer than the grid. handles, targets: (n, 2). radius: r₁; one
    that reaches over the grid is as any larger.
    grid: (H, W), by default that of the features. active: (n,) bool, the handles that count; None counts all of them. A
    handle exactly at its target has no direction and adds nothing. target_patch: (n, C, 2 r₁ + 1, 2 r₁ + 1), in place
    of sg F(q), such as `patches` of other features; no gradient goes there.

    Differentiable in `features`, once. bfloat16 and float16 features are accumulated in float32, and so is what several
    handles give to one cell of the gradient. Its plain twins are the reference, and `motion_supervision` in
    scripts/plain.py. It is equal to them but for the gradient at the last row and column of native cells, where the
    border makes the map flat: the dense map blends such a cell with itself, and there the sign of its rounding decides.
    Raises ValueError for a wrong shape, or a point outside of the grid.
    """
    height, width = grid = checks.motion(features, handles, targets, radius, grid, target_patch)
    radius = kernels.windows.within(radius, grid)
    dtype = _accumulated(features)
    handles = handles.detach().to(dtype)
    directions = direction(handles, targets.detach().to(dtype))  # (n, 2)
    if target_patch is not None:
        target_patch = target_patch.detach().to(dtype)
    loss, _, _ = kernels.pull(features, target_patch, handles, directions, active, radius, height, width)
    return loss


def motion_supervision_loss_reference(
    features: Tensor,
    handles: Tensor,
    targets: Tensor,
    radius: int = 1,
    grid: tuple[int, int] | None = None,
    active: Tensor | None = None,
    target_patch: Tensor | None = None,
) -> Tensor:
    """Return the same number from the whole map on the grid, one handle after the other."""
    height, width = grid = checks.motion(features, handles, targets, radius, grid, target_patch)
    radius = kernels.windows.within(radius, grid)
    dense = upsampled(features, grid)  # (1, C, H, W)
    handles, targets = handles.to(dense.dtype), targets.to(dense.dtype)
    loss = dense.new_zeros(())
    for i, (handle, (dx, dy)) in enumerate(zip(handles.tolist(), direction(handles, targets), strict=True)):
        if dx == dy == 0 or (active is not None and not active[i]):
            continue
        first_column, first_row = int(handle[0]) - radius, int(handle[1]) - radius  # of the whole patch
        left, right = max(0, first_column), min(width, first_column + 2 * radius + 1)
        top, bottom = max(0, first_row), min(height, first_row + 2 * radius + 1)
        columns, fraction_x = _shifted_slice(left, right, dx, width)
        rows, fraction_y = _shifted_slice(top, bottom, dy, height)
        moved = kernels.between(dense[:, :, rows][:, :, :, columns], fraction_x, fraction_y)  # F(q + d)
        pulled_to = dense[:, :, top:bottom, left:right]  # F(q)
        if target_patch is not None:
            cut = slice(top - first_row, bottom - first_row), slice(left - first_column, right - first_column)
            pulled_to = target_patch[i, None, :, *cut]
        loss = loss + (2 * radius + 1) ** 2 * F.l1_loss(moved, pulled_to.detach().to(moved.dtype))
    return loss


@torch.no_grad()
def patches(features: Tensor, handles: Tensor, radius: int = 1, grid: tuple[int, int] | None = None) -> Tensor:
    """Return F about each handle: (1, C, h, w) and (n, 2) -> (n, C, 2 r₁ + 1, 2 r₁ + 1).

    Beyond the border it is what is at the border, and no patch is larger than reaches over the grid.
    """
    grid = checks.points_of(features, handles, radius, grid)
    return kernels.patches(features, handles, kernels.windows.within(radius, grid), grid)


def direction(handles: Tensor, targets: Tensor) -> Tensor:
    """Return d = (t - h) / |t - h|, (n, 2), and zero for a handle at its target."""
    towards = targets - handles
    distance = towards.norm(dim=1, keepdim=True)
    return towards / torch.where(distance > 0, distance, torch.ones_like(distance))


def upsampled(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring the whole map to the grid, (1, C, h, w) -> (1, C, H, W): bilinear, align_corners=False, edges clamped.

    Its plain twin is `on_grid` in scripts/plain.py.
    """
    return F.interpolate(features.to(_accumulated(features)), size=grid, mode="bilinear", align_corners=False)


def _accumulated(features: Tensor) -> torch.dtype:
    """float32, or float64 for float64 features."""
    return torch.promote_types(features.dtype, torch.float32)


def _shifted_slice(first: int, end: int, shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The indices (P + 1,) between which first … end - 1 lie once shifted, and the fractions (1, P); edges clamped."""
    start = (first + shift).floor()
    cell = start.long() + torch.arange(end - first + 1, device=shift.device)  # (P + 1,)
    clamped = (cell[:-1] < 0) | (cell[:-1] >= size - 1)
    return cell.clamp(0, size - 1), torch.where(clamped, 0, first + shift - start)[None]

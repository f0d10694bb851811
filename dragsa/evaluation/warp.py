"""The drags carried out on the picture's own pixels, without any network: what an editor has to be better than.

Handles and targets are read as similarities (moved, resized, turned), as few as bring every handle near to its target.
What lies within the mask goes along with the nearest handle, and what it leaves behind is filled in smoothly. Where a
part moves and another is held, the picture is bent instead, by a thin-plate spline that leaves the rest in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dragsa.editing import Drag

NEAR = 3 / 128  # of the width: a similarity may miss a target by so much
HELD = 1 / 128  # of the width: a handle that goes no further is held
CELL = 1 / 16  # of the width: the spline is held in place on cells of this side outside of the mask
WAY = 16  # places on the way of a pixel to its image that must lie in the mask
ROUNDS = 20  # of sorting handles in two
TOLERANCE = 1e-4  # of the filling, in colours of [-1, 1]


def warped(picture: Tensor, drags: Sequence[Drag], mask: Tensor) -> Tensor:
    """Return the picture (3, H, W) in [-1, 1] with what the mask (H, W) lets move brought to the targets.

    `drags`: handles and targets in pixels.
    """
    handles, targets = torch.tensor(drags, dtype=torch.float64).unbind(dim=1)  # (n, 2) each
    width = picture.shape[-1]
    groups = grouped(handles, targets, NEAR * width)
    held = [(targets[group] - handles[group]).norm(dim=1).max() <= HELD * width for group in groups]
    if any(held) and not all(held):
        return _bent(picture, handles, targets, mask)
    return _carried(picture, handles, targets, groups, mask)


def similarity(handles: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (2, 2) and b (2,) of x ↦ A x + b, moved, resized and turned, nearest to the targets by least squares.

    One handle alone, or several at one place, are moved.
    """
    middle, goal = handles.mean(dim=0), targets.mean(dim=0)
    h, t = handles - middle, targets - goal
    spread = h.square().sum()
    if spread < 1e-9:
        return torch.eye(2, dtype=handles.dtype), goal - middle
    along, across = (h * t).sum() / spread, (h[:, 0] * t[:, 1] - h[:, 1] * t[:, 0]).sum() / spread
    matrix = torch.stack([torch.stack([along, -across]), torch.stack([across, along])])
    return matrix, goal - matrix @ middle


def grouped(handles: Tensor, targets: Tensor, near: float) -> list[list[int]]:
    """Return the handles' numbers in as few groups as it takes for a similarity of each to miss no target by more.

    A group that misses one is sorted in two by displacement and half the place (2-means).
    """

    def sorted_out(group: list[int]) -> list[list[int]]:
        matrix, shift = similarity(handles[group], targets[group])
        off = (handles[group] @ matrix.T + shift - targets[group]).norm(dim=1)
        if len(group) < 2 or off.max() <= near:
            return [group]
        features = torch.cat([targets[group] - handles[group], handles[group] / 2], dim=1)  # (n, 4)
        apart = torch.cdist(features, features)
        first, second = divmod(int(apart.argmax()), len(group))
        centres = features[[first, second]]
        for _ in range(ROUNDS):
            nearer = torch.cdist(features, centres).argmin(dim=1)
            centres = torch.stack([features[nearer == n].mean(dim=0) for n in (0, 1)])
        parts = [[i for i, side in zip(group, nearer.tolist(), strict=True) if side == n] for n in (0, 1)]
        return [part for half in parts for part in sorted_out(half)]

    return sorted_out([*range(len(handles))])


def _carried(picture: Tensor, handles: Tensor, targets: Tensor, groups: Sequence[list[int]], mask: Tensor) -> Tensor:
    """Return the picture with every part of the mask brought where its similarity says."""
    places = _places(picture)  # (H, W, 2)
    nearest = torch.cdist(places.flatten(0, 1), handles).argmin(dim=1).view(mask.shape)
    result, left, landed = picture, torch.zeros_like(mask, dtype=torch.bool), torch.zeros_like(mask, dtype=torch.bool)
    for group in groups:
        matrix, shift = similarity(handles[group], targets[group])
        mine = (mask > 0.5) & torch.isin(nearest, torch.tensor(group))
        for n in range(1, WAY + 1):  # what would leave the mask stays
            way = torch.lerp(places, places @ matrix.T + shift, n / WAY)
            mine &= _looked_up(mask[None].double(), way, "nearest")[0] > 0.5
        back = (places - shift) @ torch.linalg.inv(matrix).T
        here = (mask > 0.5) & (_looked_up(mine[None].double(), back, "nearest")[0] > 0.5)
        result = torch.where(here, _looked_up(picture.double(), back, "bicubic").to(picture), result)
        left, landed = left | mine, landed | here
    return filled(result, left & ~landed).clamp(-1, 1)


def _bent(picture: Tensor, handles: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the picture bent so that the handles come to the targets and nothing outside of the mask moves."""
    places = _places(picture)
    width = picture.shape[-1]
    step = max(1, round(CELL * width))
    cells = places[step // 2 :: step, step // 2 :: step].flatten(0, 1)
    cells = cells[mask[step // 2 :: step, step // 2 :: step].flatten() <= 0.5]
    spline = thin_plate(torch.cat([targets, cells]), torch.cat([handles - targets, torch.zeros_like(cells)]))
    back = places + spline(places.flatten(0, 1)).view_as(places)
    return torch.where(mask > 0.5, _looked_up(picture.double(), back, "bicubic").to(picture), picture).clamp(-1, 1)


def thin_plate(places: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function (m, 2) -> (m, k) that takes values (n, k) at places (n, 2), and bends least between them.

    Of places that are the same, the first counts.
    """
    _, first = torch.unique(places.round(decimals=6), dim=0, return_inverse=True)
    kept = [int((first == n).nonzero()[0]) for n in range(int(first.max()) + 1)]
    places, values = places[kept], values[kept]

    def affine(at: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(at[:, :1]), at], dim=1)  # (m, 3)

    def kernel(at: Tensor) -> Tensor:
        square = (at[:, None] - places).square().sum(dim=-1)  # (m, n)
        return torch.xlogy(square, square)

    n = len(places)
    system = torch.zeros(n + 3, n + 3, dtype=places.dtype)
    system[:n, :n], system[:n, n:], system[n:, :n] = kernel(places), affine(places), affine(places).T
    weights = torch.linalg.lstsq(system, F.pad(values, (0, 0, 0, 3)), driver="gelsd").solution
    return lambda at: kernel(at) @ weights[:n] + affine(at) @ weights[n:]


def filled(picture: Tensor, hole: Tensor) -> Tensor:
    """Return the picture (3, H, W) with a hole (H, W) filled by Laplace's equation from its rim.

    Every pixel of the hole is the mean of its neighbours; solved by conjugate gradients. A hole without a rim stays.
    """
    if not hole.any() or hole.all():
        return picture
    inside = hole.to(torch.float64)
    known = picture.double() * (1 - inside)
    ones = torch.ones(1, 1, *hole.shape, dtype=torch.float64)
    cross = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64).view(1, 1, 3, 3)

    def around(values: Tensor) -> Tensor:
        """The sum of each pixel's neighbours."""
        return F.conv2d(values[:, None], cross, padding=1)[:, 0]

    count = F.conv2d(ones, cross, padding=1)[0, 0]

    def operator(values: Tensor) -> Tensor:
        return inside * (count * values - around(values))

    solved = torch.zeros_like(known)
    residual = inside * around(known)
    direction, square = residual, residual.square().sum()
    for _ in range(4 * max(hole.shape)):
        if residual.abs().max() < TOLERANCE:
            break
        pushed = operator(direction)
        step = square / (direction * pushed).sum()
        solved, residual = solved + step * direction, residual - step * pushed
        before, square = square, residual.square().sum()
        direction = residual + square / before * direction
    return torch.where(hole, solved.to(picture), picture)


def _places(picture: Tensor) -> Tensor:
    """Return every pixel's own place (H, W, 2), (x, y)."""
    height, width = picture.shape[-2:]
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)


def _looked_up(values: Tensor, places: Tensor, mode: str) -> Tensor:
    """Return values (C, H, W) at places (H', W', 2) in pixels, edges clamped: (C, H', W')."""
    size = torch.tensor([values.shape[-1], values.shape[-2]], dtype=places.dtype)
    grid = (2 * places + 1) / size - 1
    return F.grid_sample(values[None], grid[None], mode=mode, padding_mode="border", align_corners=False)[0]

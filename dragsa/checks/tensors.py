"""Checks of the tensors that motion supervision, tracking and the drag loop are given.

Grids are (H, W), points (x, y) on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dragsa.checks import values
from dragsa.config import DragConfig
from dragsa.kernels import windows
from dragsa.model.blocks import ACTIVATIONS, STAGES

Grid = tuple[int, int]
MOST = 2**20  # cells in the windows of all handles: a number for each channel is some gigabytes


def points_of(features: Tensor, points: Tensor, radius: int, grid: Grid | None) -> Grid:
    """Raise a ValueError unless these are a map, points of its grid and a radius; return the grid.

    Where a point lies is not looked at where that would stop a device or a trace.
    """
    grid = points_about(features, points, grid)
    if radius < 0:
        raise ValueError(f"the radius must be 0 or more, came {radius}")
    if points.device.type == "cpu" and not torch.compiler.is_compiling():
        _inside(points, "point", "grid", grid)
    return grid


def points_about(features: Tensor, points: Tensor, grid: Grid | None) -> Grid:
    """Raise a ValueError unless these are a map and points, in its grid or beyond the border; return the grid."""
    if features.ndim != 4 or features.shape[0] != 1:
        raise ValueError(f"features must be (1, C, h, w), came {tuple(features.shape)}")
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be (n, 2) of (x, y), came {tuple(points.shape)}")
    return (features.shape[2], features.shape[3]) if grid is None else grid


def motion(
    features: Tensor, handles: Tensor, targets: Tensor, radius: int, grid: Grid | None, target_patch: Tensor | None
) -> Grid:
    """Raise a ValueError unless the arguments of motion supervision fit together; return the grid."""
    if handles.shape != targets.shape:
        came = f"{tuple(handles.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"handles and targets must be (n, 2) of (x, y), as many of each, came {came}")
    grid = points_of(features, handles, radius, grid)
    side = 2 * windows.within(radius, grid) + 1
    expected = len(handles), features.shape[1], side, side
    if target_patch is not None and target_patch.shape != expected:
        came = str(tuple(target_patch.shape))
        raise ValueError(f"the target patches must be {expected}, one for each handle, came {came}")
    return grid


def tracking(features: Tensor, reference: Tensor, handles: Tensor, radius: int, grid: Grid | None) -> Grid:
    """Raise a ValueError unless the arguments of point tracking fit together; return the grid."""
    grid = points_of(features, handles, radius, grid)
    if reference.shape != (len(handles), features.shape[1]):
        expected = (len(handles), features.shape[1])
        raise ValueError(f"reference must be {expected}, a feature for each handle, came {tuple(reference.shape)}")
    return grid


def drag_on(latent: Tensor, handles: Tensor, targets: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return handles and targets as float32 (n, 2) on the CPU.

    Raises ValueError for more than one latent, another shape, a point outside of the grid, and a number of targets
    that is not that of the handles.
    """
    if latent.ndim != 4 or latent.shape[0] != 1:
        raise ValueError(f"one latent is dragged at a time: expected (1, 4, h, w), came {tuple(latent.shape)}")
    handles, targets = (torch.as_tensor(p).detach().to("cpu", torch.float32, copy=True) for p in (handles, targets))
    for points, name in ((handles, "handle"), (targets, "target")):
        if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
            raise ValueError(f"{name}s must be (n, 2) of (x, y), n at least 1, came {tuple(points.shape)}")
        _inside(points, name, "supervision grid", grid)
    if handles.shape != targets.shape:
        raise ValueError(f"as many targets as handles are needed, came {len(handles)} handles, {len(targets)} targets")
    return handles, targets


def _inside(points: Tensor, name: str, what: str, grid: Grid) -> None:
    """Raise a ValueError that names the first of the points (n, 2) which lies outside of the grid; NaN is nowhere."""
    height, width = grid
    for number, (x, y) in enumerate(points.tolist(), start=1):
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            ends = f"from -0.5 to {width - 0.5:g} and to {height - 0.5:g}"
            there = f"outside of the {what}, {width} cells wide and {height} high, {ends}"
            raise ValueError(f"{name} {number} at ({x:g}, {y:g}) lies {there}")


def looked_at(handles: int, config: DragConfig, grid: Grid) -> None:
    """Raise a ValueError for more handles than their windows leave memory for."""
    side = 2 * windows.within(max(config.radius, config.track_radius), grid) + 1
    if handles * side**2 > MOST:
        most, of = MOST // side**2, f"windows of {side} × {side} cells (--radius, --track-radius)"
        raise ValueError(f"{handles} handles are too many: of {of} at most {most} are dragged together")


def mask_on(mask: Tensor, grid: Grid) -> Tensor:
    """Return the mask. Raises ValueError unless it is (H, W) on the grid and within [0, 1]."""
    mask = torch.as_tensor(mask)
    if mask.shape != grid:
        raise ValueError(f"the mask must be {grid}, on the supervision grid, came {tuple(mask.shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("the mask must hold numbers from 0 (stays) to 1 (may move)")
    return mask


def drag_settings(config: DragConfig) -> None:
    """Raise a ValueError that names the first setting out of its range."""
    values.check(config)
    names = config.tap.split("+")
    if any(name not in ACTIVATIONS for name in names):
        known = f"block01 … block16, {', '.join(STAGES)}"
        raise ValueError(f"drag: features cannot be read at {config.tap!r}: known are {known}")
    if len({ACTIVATIONS[name] for name in names}) > 1:
        raise ValueError(f"drag: the features of {config.tap} cannot be added: they differ in channels or in grid")

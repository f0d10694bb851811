"""Least squares by Levenberg and Marquardt's method with finite differences, from several starts as one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ITERATIONS = 24


class Numbers(NamedTuple):
    """What is known of the numbers that are looked for, (P,) each."""

    steps: Tensor  # of the finite differences
    furthest: Tensor  # that one iteration may go
    least: Tensor
    most: Tensor


def descend(residuals: Callable[[Tensor], Tensor], rows: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Return where the sums of squared residuals are least, near each start: (S, P), and the sums, (S,).

    `residuals`: rows (B, P) -> (B, N). `rows`: the starts, (S, P).
    """
    steps, furthest, least, most = numbers

    def linearised(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return residuals (S, N) and their derivatives (S, N, P)."""
        around = torch.cat([rows[:, None], rows[:, None] + torch.diag(steps)], dim=1)  # (S, 1 + P, P)
        at = residuals(around.flatten(0, 1)).unflatten(0, around.shape[:2])  # (S, 1 + P, N)
        return at[:, 0], ((at[:, 1:] - at[:, :1]) / steps[:, None]).transpose(1, 2)

    residual, slope = linearised(rows)
    cost, damping = residual.square().sum(dim=1), torch.full((len(rows),), 1e-2)
    for _ in range(ITERATIONS):
        curvature = slope.transpose(1, 2) @ slope  # (S, P, P)
        scale = curvature.diagonal(dim1=1, dim2=2)
        damped = curvature + torch.diag_embed(damping[:, None] * scale + 1e-3)
        step = -torch.linalg.solve(damped, slope.transpose(1, 2) @ residual[..., None])[..., 0]
        tried = (rows + step.clamp(-furthest, furthest)).clamp(least, most)
        if ((tried - rows).abs().amax(dim=0) < 0.02 * steps).all():
            break
        tried_residual, tried_slope = linearised(tried)
        tried_cost = tried_residual.square().sum(dim=1)
        better = tried_cost < cost
        rows = torch.where(better[:, None], tried, rows)
        residual = torch.where(better[:, None], tried_residual, residual)
        slope = torch.where(better[:, None, None], tried_slope, slope)
        cost, damping = torch.where(better, tried_cost, cost), torch.where(better, damping / 4, damping * 5)
    return rows, cost

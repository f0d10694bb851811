"""Drawn feature maps, points at every border of their grids, and a loss with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

# native (h, w), grid (H, W): four times, eight times, a quarter more, the same, coarser, and no common factor
SIZES = [
    ((16, 16), (64, 64)),
    ((9, 14), (72, 112)),
    ((4, 6), (64, 96)),
    ((20, 28), (25, 35)),
    ((24, 20), (24, 20)),
    ((40, 48), (20, 24)),
    ((7, 11), (30, 26)),
    ((2, 3), (32, 48)),
]


def border_points(grid: tuple[int, int]) -> Tensor:
    """Points (n, 2) whose patches are cut by each border, by each corner, and by none; whole, and between cells."""
    height, width = grid
    right, bottom = width - 1, height - 1
    points = [
        (0, 0), (right, 0), (0, bottom), (right, bottom), (width // 2, 1), (width // 2, bottom - 1),
        (1, height // 2), (right - 1, height // 2), (width // 2, height // 2),
        (-0.4, 2.7), (right + 0.4, bottom + 0.4), (width / 3 + 0.25, height / 3 + 0.9), (width * 0.6, height * 0.7),
    ]  # fmt: skip
    return torch.tensor(points)


def drawn(native: tuple[int, int], channels: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, *native, generator=generator, dtype=dtype)


def drawn_targets(n: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.rand(n, 2, generator=generator) * torch.tensor([grid[1] - 1.0, grid[0] - 1.0])


def with_gradient(loss_of, features: Tensor, *arguments, **options) -> tuple[Tensor, Tensor]:
    features = features.detach().requires_grad_()
    loss = loss_of(features, *arguments, **options)
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.detach(), gradient

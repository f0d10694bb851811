"""The noise that SD 1.5 was trained on: ᾱ by timestep, and what a network that predicts v says of ε."""

from __future__ import annotations

import torch
from torch import Tensor

TRAINING_STEPS = 1000


def training_alpha_bars() -> Tensor:
    """Return ᾱ of timesteps 0 … 999, float64 (1000,): β scaled-linear from 0.00085 to 0.012."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - beta, dim=0)


def eps_of_v(v: Tensor, z: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return ε = √ᾱ v + √(1 - ᾱ) z, where v = √ᾱ ε - √(1 - ᾱ) z_0 (Salimans and Ho 2022, appendix D).

    v, z: (B, C, h, w). alpha_bar: (B,), of z.
    """
    alpha_bar = alpha_bar.to(z)[:, None, None, None]  # (B, 1, 1, 1)
    return alpha_bar.sqrt() * v.to(z.dtype) + (1 - alpha_bar).sqrt() * z

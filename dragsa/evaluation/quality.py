"""Likeness of two pictures, whatever they show: PSNR, structural similarity, mean difference; overlap of masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dragsa import pictures

BEST_DB = 60.0  # the PSNR that is reported for any two pictures which are nearer to each other


def psnr(picture: Tensor, truth: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of pictures (..., 3, H, W) in [-1, 1]: (...)."""
    return 10 * torch.log10(4 / (picture - truth).square().mean(dim=(-3, -2, -1)))


def decibels(picture: Tensor, truth: Tensor) -> float:
    """Return the PSNR of one picture (..., 3, H, W), at most `BEST_DB`."""
    return min(BEST_DB, psnr(picture, truth).min().item())


def iou(first: Tensor, second: Tensor) -> float:
    """Return the intersection over union of two soft masks (H, W)."""
    return (torch.minimum(first, second).sum() / torch.maximum(first, second).sum().clamp(min=1e-6)).item()


def ssim(first: Tensor, second: Tensor) -> float:
    """Return the structural similarity of two pictures (3, H, W) in [-1, 1], mean over pixels and channels.

    Wang et al. 2004: Gaussian windows of 11×11 pixels with σ = 1.5, K_1 = 0.01, K_2 = 0.03; windows that reach over the
    picture's edge are left out.
    """
    side = torch.arange(11, dtype=torch.float64) - 5
    row = torch.exp(-side.square() / (2 * 1.5**2))
    row = row / row.sum()

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, row.view(1, 1, 1, 11)), row.view(1, 1, 11, 1))

    x, y = ((p.double()[:, None] + 1) / 2 for p in (first, second))  # (3, 1, H, W)
    mean_x, mean_y, c_1, c_2 = blurred(x), blurred(y), 0.01**2, 0.03**2
    var_x, var_y, both = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2, blurred(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    return (brightness * (2 * both + c_2) / (var_x + var_y + c_2)).mean().item()


def difference(one: Image.Image, other: Image.Image, where: Tensor | None = None) -> float:
    """Return the mean absolute difference of two pictures of one size, in 255ths; only at `where`, bool (H, W)."""
    apart = 127.5 * (pictures.to_tensor(one) - pictures.to_tensor(other))[0].abs().mean(dim=0)  # (H, W)
    return (apart if where is None else apart[where]).mean().item()


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Return the structural similarity of two pictures' lightness."""
    x, y = (pictures.to_tensor(picture.convert("L"))[0] for picture in (one, other))
    return ssim(x, y)

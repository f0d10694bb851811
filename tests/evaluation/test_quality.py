"""Likeness of pictures, by its definition."""

from __future__ import annotations

import pytest
import torch

from dragsa.evaluation import quality


def test_structural_similarity_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(3, 13, 14, generator=generator) * 2 - 1 for _ in range(2))
    offsets = torch.arange(11.0) - 5
    window = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / 4.5).double()
    window /= window.sum()
    values = []
    for x, y in zip((first.double() + 1) / 2, (second.double() + 1) / 2, strict=True):
        for top in range(3):
            for left in range(4):
                a, b = (p[top : top + 11, left : left + 11] for p in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                value = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                values.append(value / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    assert quality.ssim(first, second) == pytest.approx(torch.stack(values).mean().item(), abs=1e-7)

"""The UNet's layers: what they keep for the gradient, and in which type they compute."""

from __future__ import annotations

import pytest
import torch

from dragsa.model.layers import GEGLU, GroupNorm, LayerNorm


def test_the_gated_unit_keeps_its_projection_alone_and_changes_no_number() -> None:
    torch.manual_seed(2)
    unit, x, slope = GEGLU(6, 5).requires_grad_(False), torch.randn(2, 7, 6, requires_grad=True), torch.randn(2, 7, 5)
    kept: list[tuple[int, ...]] = []

    def keep(held: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(held.shape))
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        out = unit(x)
    assert [shape for shape in kept if shape[0] == 2] == [(2, 7, 10)]
    first, gate = unit.proj(x).chunk(2, dim=-1)
    expected = first * torch.nn.functional.gelu(gate)
    assert torch.equal(out, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one, x, slope) for one in (out, expected)))


@pytest.mark.parametrize("norm", [GroupNorm(2, 8), LayerNorm(8)], ids=["group", "layer"])
def test_norms_keep_their_statistics_in_float32(norm: torch.nn.Module) -> None:
    torch.manual_seed(3)
    x = (torch.randn(2, 8, 8) + 30).bfloat16()  # a mean that bfloat16 holds to an eighth
    slope = torch.randn(2, 8, 8)

    def gradient(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((norm(x) * slope.to(x.dtype)).sum(), x)
        return g.float()

    expected = gradient(norm.float(), x.float())
    came = gradient(norm.bfloat16(), x)
    assert (came - expected).abs().max() < 0.01 * expected.abs().max()

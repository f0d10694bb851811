"""The convolution of a frozen network: PyTorch's numbers, and nothing kept for its weights."""

from __future__ import annotations

import pytest
import torch

from dragsa.kernels import Convolution


def test_a_convolution_of_few_cells_is_the_convolution() -> None:
    torch.manual_seed(2)
    layer, x = Convolution(6, 40).requires_grad_(False), torch.randn(2, 6, 5, 7)
    assert layer.is_mostly_weights(x) and not layer.is_mostly_weights(torch.randn(1, 6, 7, 7))
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize("trained", [False, True])
def test_a_convolution_keeps_its_input_for_its_own_gradient_alone(cells: int, trained: bool) -> None:
    torch.manual_seed(2)
    layer = Convolution(6, 4, cells).requires_grad_(trained)
    x, slope, kept = torch.randn(2, 6, 5, 7, requires_grad=True), torch.randn(2, 4, 5, 7), []

    def keep(held: torch.Tensor) -> torch.Tensor:
        kept.append(held.shape)
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        out = layer(x)
    assert (x.shape in kept) == trained
    expected = torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=cells // 2)
    assert torch.equal(out, expected)
    wanted = (x, *layer.parameters()) if trained else (x,)
    came, right = (torch.autograd.grad(y, wanted, slope) for y in (out, expected))
    for one, other in zip(came, right, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_a_convolution_to_and_from_tokens_is_the_convolution(trained: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    layer = Convolution(6, 4, 1).to(dtype).requires_grad_(trained)
    x = torch.randn(2, 6, 5, 7, dtype=dtype, requires_grad=True)
    slope, kept = torch.randn(2, 4, 5, 7, dtype=dtype), []

    def keep(held: torch.Tensor) -> torch.Tensor:
        kept.append(held.data_ptr())
        return held

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda held: held):
        tokens = layer.to_tokens(x)
        assert (x.data_ptr() in kept) == trained
        kept.clear()
        out = layer.from_tokens(x.flatten(2).transpose(1, 2), (5, 7))
    assert (x.data_ptr() in kept) == trained
    assert tokens.is_contiguous() and out.is_contiguous()
    # In float32, of the same rounded numbers: PyTorch's own bfloat16 gradient is off by more on some processors.
    wanted = (x, *layer.parameters()) if trained else (x,)
    exact = [value.detach().float().requires_grad_() for value in (x, layer.weight, layer.bias)]
    expected = torch.nn.functional.conv2d(exact[0], exact[1], exact[2])
    right = torch.autograd.grad(expected, exact[: len(wanted)], slope.float())
    for came in (tokens.transpose(1, 2).unflatten(2, (5, 7)), out):
        found = (came, *torch.autograd.grad(came, wanted, slope))
        for one, other in zip(found, (expected, *right), strict=True):
            torch.testing.assert_close(one, other.to(dtype))


def test_in_bfloat16_fewer_cells_are_few() -> None:
    torch.manual_seed(2)
    layer = Convolution(96, 8).requires_grad_(False).bfloat16()
    x = torch.randn(1, 96, 2, 3).bfloat16()
    assert layer.is_mostly_weights(x) and not layer.is_mostly_weights(x.repeat(1, 1, 1, 3))
    expected = torch.nn.functional.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1)
    assert torch.allclose(layer(x).float(), expected, atol=0.02)

"""The optimisers of an update: Adam against PyTorch's, and Adam-mini by hand."""

from __future__ import annotations

import torch
from toy_drag import latent

from dragsa import passes


def test_adam_is_pytorchs():
    z = latent()
    parameter, state = latent().requires_grad_(), None
    optimizer = torch.optim.Adam([parameter], lr=0.02)
    for seed in range(1, 9):
        gradient = latent(seed=seed) * 10.0 ** (seed - 5)
        z, state = passes.adam(z, gradient, state, 0.02)
        parameter.grad = gradient
        optimizer.step()
        torch.testing.assert_close(z, parameter.detach(), rtol=1e-6, atol=1e-6)


def test_adam_mini_has_one_scale_for_the_whole_latent():
    """Steps are in proportion to the gradient, whatever its size, and nothing moves where it is zero."""
    z = latent()
    gradient = latent(seed=1) * (torch.arange(z.shape[-1]) < 3)
    descend = passes.OPTIMIZERS["adam-mini"]
    first, state = descend(z, gradient, None, 0.02)
    torch.testing.assert_close(first, z - 0.02 * gradient / gradient.square().mean().sqrt())
    second, _ = descend(first, 1000 * gradient, state, 0.02)
    mean = (0.9 * 0.1 + 0.1 * 1000) / (1 - 0.9**2)
    scale = ((0.999 * 0.001 + 0.001 * 1000**2) / (1 - 0.999**2)) ** 0.5
    torch.testing.assert_close(second, first - 0.02 * mean / scale * gradient / gradient.square().mean().sqrt())
    assert torch.equal(second[..., 3:], z[..., 3:])

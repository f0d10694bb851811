"""The patches that motion supervision computes: their operators, and how they add up and round."""

from __future__ import annotations

import pytest
import torch
from feature_maps import border_points, drawn, drawn_targets, with_gradient

from dragsa import motion
from dragsa.kernels import operators, windows
from dragsa.motion import motion_supervision_loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_overlapping_patches_add_up_before_they_are_rounded(dtype):
    """A large number and nineteen that each round away beside it."""
    large = 2 / torch.finfo(dtype).eps  # the next number of the type is 2 more
    gradient = torch.ones(20, 1, 1, 1)
    gradient[0] = large
    first, scale = torch.tensor([[2, 1]]).expand(20, 2), torch.tensor(1.0)
    came = operators.spread(gradient, first, scale, 3, 4, dtype)
    assert came.dtype == dtype
    assert abs(came[0, 0, 2, 1].item() - (large + 19)) <= 1
    assert came.count_nonzero() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_are_what_they_are_registered_as(dtype):
    """Schema, shapes without data, and autograd, as torch.library checks them."""
    features, target_patch = drawn((9, 14), 3).to(dtype).requires_grad_(), torch.ones(4, 3, 7, 7)
    handles, grid = border_points((36, 56))[:4], (36, 56)
    directions = motion.direction(handles, drawn_targets(4, grid))
    active = torch.tensor([True, False, True, True])
    for arguments in ((None, None, 1), (target_patch, active, 3)):
        torch.library.opcheck(operators.pull, (features, arguments[0], handles, directions, *arguments[1:], *grid))
    _, gradient, first = operators.pull(features.detach(), None, handles, directions, active, 1, *grid)
    torch.library.opcheck(operators.spread, (gradient, first, torch.tensor(2.0), 9, 14, dtype))


@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (47, 0), (46, 31), (0, 31)])
def test_what_is_blended_with_itself_does_not_hang_on_the_other_sums(corner, monkeypatch):
    """In these corners all that a sample is blended of is one native cell: its weights alone decide what is left."""
    features, grid = drawn((4, 6), 64), (32, 48)
    arguments = torch.tensor([corner]).float(), torch.tensor([[23.3, 17.9]]), 1, grid
    loss, gradient = with_gradient(motion_supervision_loss, features, *arguments)
    exact = windows.along_moved
    monkeypatch.setattr(windows, "along_moved", lambda *axis: exact(*axis) * (1 + 1e-5))
    of_others, gradient_of_others = with_gradient(motion_supervision_loss, features, *arguments)
    assert torch.equal(of_others, loss)
    torch.testing.assert_close(gradient_of_others, gradient, rtol=1e-4, atol=0)

"""The Triton kernels in Triton's interpreter, in the place of torch: run by test_triton.py, or with
TRITON_INTERPRET=1 in the environment.

The tests that are imported are those of the CPU, through the same operators.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import golden_cases
import pytest
import test_motion
import torch
import triton.language as tl
from feature_maps import SIZES, border_points, drawn, drawn_targets, with_gradient
from kernels.test_patch_loss import test_overlapping_patches_add_up_before_they_are_rounded  # noqa: F401
from test_motion import (  # noqa: F401
    test_a_handle_at_its_target_adds_nothing,
    test_a_ramp_moves_by_its_slope,
    test_half_precision_is_accumulated_in_float32,
    test_only_the_cells_under_the_patch_are_touched,
    test_the_first_corner_is_rounded_as_stored,
    test_the_layout_in_memory_is_of_no_account,
    test_upstream_gradient,
)
from test_tracking import (  # noqa: F401
    test_bfloat16_features,
    test_equals_go_to_the_first_in_reading_order,
    test_finds_what_was_moved,
    test_nothing_outside_of_the_window_is_read,
    test_the_window_is_a_square_about_the_whole_part,
)

from dragsa import motion
from dragsa import tracking as point_tracking
from dragsa.kernels import operators, patch_loss, tracking, triton

CASES = {case.tag: case for case in golden_cases.cases("patch")}
CALLS: list[str] = []  # of the kernels, as they come


def substituted(name: str) -> None:
    """Have Triton's kernel do an operator's work on the CPU too, for as long as this process runs."""

    def call(*arguments: Any) -> Any:
        CALLS.append(name)
        return getattr(triton, name)(*arguments)

    getattr(operators, name).register_kernel("cpu")(call)


for operator in ("pull", "spread", "search"):
    substituted(operator)


@pytest.fixture(autouse=True)
def kernels():
    CALLS.clear()
    yield
    assert CALLS, "no kernel was run"


def cases(radii):
    """Each pair of resolutions with one of the radii, an odd number of channels, and every other of the points."""
    each = zip(SIZES, cycle(radii), cycle((7, 1, 17)), cycle((0, 1)), strict=False)
    return [(*size, radius, channels, border_points(size[1])[first::2]) for size, radius, channels, first in each]


@pytest.mark.parametrize("tag", CASES)
def test_stored_loss_and_gradient(tag):
    test_motion.test_stored_loss_and_gradient(CASES[tag], motion.motion_supervision_loss)


@pytest.mark.parametrize("native, grid, radius, channels, handles", cases((1, 3, 0)))
def test_loss_and_gradient_equal_those_of_torch(native, grid, radius, channels, handles):
    directions = motion.direction(handles, drawn_targets(len(handles), grid))
    features = drawn(native, channels)
    arguments = features, None, handles, directions, torch.arange(len(handles)) % 5 != 3, radius, *grid
    (loss, gradient, first), expected = operators.pull(*arguments), patch_loss.pull(*arguments)
    assert torch.equal(first, expected[2])
    assert golden_cases.relative(loss, expected[0]) < 1e-5
    assert golden_cases.relative(gradient, expected[1]) < 1e-5
    upstream = gradient, first, torch.tensor(-2.5), *native, torch.float32
    assert golden_cases.relative(operators.spread(*upstream), patch_loss.spread(*upstream)) < 1e-6


@pytest.mark.parametrize("native, grid, radius, channels, handles", cases((3, 4, 0)))
def test_tracking_equals_that_of_torch(native, grid, radius, channels, handles):
    reference = drawn((len(handles), channels), 1, 50)[0, 0]
    arguments = drawn(native, channels), reference, handles, radius, *grid
    (points, distance), expected = operators.search(*arguments), tracking.search(*arguments)
    assert torch.equal(points, expected[0])
    torch.testing.assert_close(distance, expected[1])


def test_rounding_does_not_part_equals(monkeypatch):
    """Were the later of two clamped rows or columns nearer by the last bit, the first would still be taken."""
    exact = triton._along

    def rounded(at, cells):
        return exact(at, cells) * (1 - 1e-6 * tl.arange(0, at.shape[0]))[:, None]

    features, grid = drawn((8, 12), 33).abs() + 1, (32, 48)
    reference = features[0][:, [0, -1], [0, -1]].T - 0.1  # every value lies above it, and what comes later is nearer
    corners = torch.tensor([[0.0, 0.0], [47.0, 31.0]])
    monkeypatch.setattr(triton, "_along", rounded)
    assert point_tracking.track_points(features, reference, corners, 1, grid).tolist() == [[0, 0], [46, 30]]


def test_six_handles_in_several_blocks(monkeypatch):
    """Blocks of 16 channels and 16 samples, where one would do otherwise, and patches that overlap."""
    monkeypatch.setattr(triton, "TILE", 256)
    native, grid = (12, 15), (48, 60)
    handles, targets = 20 + drawn_targets(6, grid) / 4, drawn_targets(6, grid, 1)
    features, reference = drawn(native, 19), drawn((6, 19), 1, 3)[0, 0]
    for loss_of in (motion.motion_supervision_loss, motion.motion_supervision_loss_reference):
        loss, gradient = with_gradient(loss_of, features, handles, targets, 2, grid)
        if loss_of is motion.motion_supervision_loss:
            came = loss, gradient
    assert golden_cases.relative(came[0], loss) < 1e-5
    assert golden_cases.relative(came[1], gradient) < 1e-5
    found = point_tracking.track_points(features, reference, handles, 2, grid)
    assert torch.equal(found, point_tracking.track_points_reference(features, reference, handles, 2, grid))


def test_equals_the_reference_with_patches_that_stay():
    native, grid = (9, 14), (72, 112)
    features, handles = drawn(native, 5), border_points(grid)[:6]
    target_patch = motion.patches(drawn(native, 5, 1), handles.flip(0), 1, grid)
    arguments = handles, drawn_targets(6, grid), 1, grid, None, target_patch
    came = with_gradient(motion.motion_supervision_loss, features, *arguments)
    expected = with_gradient(motion.motion_supervision_loss_reference, features, *arguments)
    assert golden_cases.relative(came[0], expected[0]) < 1e-5
    assert golden_cases.relative(came[1], expected[1]) < 1e-5


def test_gradcheck():
    native, grid = (3, 2), (6, 7)
    handles = torch.tensor([[0, 1], [4.5, 3.25]], dtype=torch.float64)
    targets = torch.tensor([[6.0, 5.0], [1.0, 1.5]])
    target_patch = motion.patches(drawn(native, 1, 1, torch.float64), handles, 1, grid)

    def loss_of(features):
        return motion.motion_supervision_loss(features, handles, targets, 1, grid, target_patch=target_patch)

    assert torch.autograd.gradcheck(loss_of, (drawn(native, 1, 2, torch.float64).requires_grad_(),))

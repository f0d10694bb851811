"""Motion supervision: against stored numbers, against the dense reference, and at every border."""

from __future__ import annotations

import golden_cases
import pytest
import torch
from feature_maps import SIZES, border_points, drawn, drawn_targets, with_gradient
from torch import Tensor

from dragsa import motion
from dragsa.motion import motion_supervision_loss, motion_supervision_loss_reference


@pytest.mark.parametrize("loss_of", [motion_supervision_loss, motion_supervision_loss_reference])
@pytest.mark.parametrize("case", golden_cases.cases("patch"), ids=lambda case: case.tag)
def test_stored_loss_and_gradient(case, loss_of):
    settings = case.settings
    features = case.input("features", 1, settings["channels"], *settings["feature_hw"])
    loss, gradient = with_gradient(
        loss_of, features, case.points("handles"), case.points("targets"), settings["r_m"], tuple(settings["sup_hw"])
    )
    assert golden_cases.relative(loss, case.outputs["loss"]) < 1e-5
    assert golden_cases.relative(gradient, case.outputs["grad"]) < 1e-5


def compare(
    native: tuple[int, int], handles: Tensor, targets: Tensor, radius: int, grid: tuple[int, int], seed: int = 0
) -> None:
    """Both routes' loss and gradient, but for the gradient at the last row and the last column of native cells.

    Beyond their centres the map is flat, and a sample that moves there does not change. The dense map blends such a
    cell with itself, and the sign of that rounding is no gradient to follow. `test_mirrored` looks there.
    """
    arguments = drawn(native, 7, seed), handles, targets, radius, grid
    loss, gradient = with_gradient(motion_supervision_loss, *arguments)
    expected_loss, expected = with_gradient(motion_supervision_loss_reference, *arguments)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient[:, :, :-1, :-1], expected[:, :, :-1, :-1], rtol=0, atol=1e-5 * expected.abs().max().item()
    )


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("native, grid", SIZES)
def test_equals_the_dense_reference(native, grid, radius):
    handles = border_points(grid)
    for seed in range(3):
        compare(native, handles, drawn_targets(len(handles), grid, seed), radius, grid, seed)


@pytest.mark.parametrize("radius", [32, 10**9, 2**62])
def test_a_radius_over_the_grid_is_the_largest_that_fits(radius):
    handles, grid = border_points((24, 32)), (24, 32)
    targets = drawn_targets(len(handles), grid, 0)
    compare((6, 8), handles, targets, radius, grid)
    features = drawn((6, 8), 7)
    loss = [motion_supervision_loss(features, handles, targets, r, grid) for r in (31, radius)]
    assert torch.equal(*loss)
    patch = motion.patches(features, handles, radius, grid)
    assert patch.shape == (len(handles), 7, 63, 63)
    for loss_of in (motion_supervision_loss, motion_supervision_loss_reference):
        given = loss_of(features, handles, targets, radius, grid, None, patch)
        torch.testing.assert_close(given, loss[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("towards", [(1, 0), (-1, 0), (0, 1), (0, -1), (-3, -4), (5, 12)])
@pytest.mark.parametrize("handle", [(0, 0), (1, 2), (31, 23), (30, 22), (12, 9), (12.5, 9.25)])
def test_each_direction_at_each_corner(handle, towards):
    handles = torch.tensor([handle], dtype=torch.float32)
    for seed in range(3):
        compare((6, 8), handles, handles + torch.tensor(towards), 2, (24, 32), seed)


@pytest.mark.parametrize("towards", [(1, 0), (-1, 0), (0, 1), (0, -1), (-3, -4), (5, 12), (3, -4)])
@pytest.mark.parametrize("native, grid", [size for size in SIZES if size[1] != (32, 48)])
def test_mirrored(native, grid, towards):
    """The far borders are the near ones of the mirrored map."""
    height, width = grid
    x, y = width // 2, height // 2
    handles = torch.tensor([[width - 1, y], [width - 2, y], [x, height - 1], [x, height - 3], [width - 3, height - 2]])
    last, features, towards = torch.tensor([width - 1, height - 1]), drawn(native, 7), torch.tensor(towards)
    loss, gradient = with_gradient(motion_supervision_loss, features, handles, handles + towards, 2, grid)
    mirrored = features.flip(2, 3), last - handles, last - handles - towards, 2, grid
    mirrored_loss, mirrored_gradient = with_gradient(motion_supervision_loss, *mirrored)
    gradient, expected = gradient.flatten(2)[:, :, :-1], mirrored_gradient.flip(2, 3).flatten(2)[:, :, :-1]
    torch.testing.assert_close(loss, mirrored_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_first_corner_is_rounded_as_stored():
    """At the map's first cell both routes agree to the sign of what rounding leaves, as the stored gradient does."""
    case = golden_cases.case("patch_edge")
    features = case.input("features", 1, case.settings["channels"], *case.settings["feature_hw"])
    arguments = case.points("handles"), case.points("targets"), case.settings["r_m"], tuple(case.settings["sup_hw"])
    stored = case.outputs["grad"][0, :, 0, 0]
    for loss_of in (motion_supervision_loss, motion_supervision_loss_reference):
        torch.testing.assert_close(with_gradient(loss_of, features, *arguments)[1][0, :, 0, 0], stored)


def test_a_ramp_moves_by_its_slope():
    # features 3 x + y on the grid itself: F(q + d) - F(q) = 3 d_x + d_y at every cell that does not meet the border
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = (3 * x + y)[None, None]
    handles, targets = torch.tensor([[10.0, 10.0]]), torch.tensor([[13.0, 14.0]])  # d = (0.6, 0.8)
    loss = motion_supervision_loss(ramp, handles, targets, 2)
    assert loss.item() == pytest.approx(25 * (3 * 0.6 + 0.8), rel=1e-5)


@pytest.mark.parametrize("native, grid", [((3, 4), (12, 16)), ((5, 4), (5, 4)), ((6, 4), (3, 2)), ((4, 3), (9, 11))])
def test_gradcheck(native, grid):
    """With patches given that stay: where their gradient is stopped the loss has no numerical derivative."""
    handles = torch.tensor([[0, 1], [1.5, 1.25], [grid[1] - 1, grid[0] - 1]], dtype=torch.float64)
    targets = drawn_targets(3, grid).double()
    target_patch = motion.patches(drawn(native, 2, seed=1, dtype=torch.float64), handles, 2, grid)

    def loss_of(features: Tensor) -> Tensor:
        return motion_supervision_loss(features, handles, targets, 2, grid, target_patch=target_patch)

    features = drawn(native, 2, seed=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (features,))
    expected = motion_supervision_loss_reference(features, handles, targets, 2, grid, target_patch=target_patch)
    torch.testing.assert_close(loss_of(features), expected)


def test_the_patches_that_stay_have_no_gradient():
    features, target_patch = drawn((8, 8)).requires_grad_(), torch.ones(1, 5, 3, 3, requires_grad=True)
    handles, targets = torch.tensor([[9.0, 9.0]]), torch.tensor([[20.0, 20.0]])
    loss = motion_supervision_loss(features, handles, targets, 1, (32, 32), target_patch=target_patch)
    assert torch.autograd.grad(loss, target_patch, allow_unused=True)[0] is None


@pytest.mark.parametrize("native, grid", SIZES)
def test_patches_are_slices_of_the_map(native, grid):
    features, (height, width) = drawn(native), grid
    handles = border_points(grid)
    dense = motion.upsampled(features, grid)
    for patch, (x, y) in zip(motion.patches(features, handles, 2, grid), handles.int().tolist(), strict=True):
        left, right, top, bottom = max(0, x - 2), min(width, x + 3), max(0, y - 2), min(height, y + 3)
        inside = patch[:, top - y + 2 : bottom - y + 2, left - x + 2 : right - x + 2]
        torch.testing.assert_close(inside, dense[0, :, top:bottom, left:right], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("native, grid", SIZES)
def test_patches_that_stay_may_be_from_elsewhere(native, grid):
    """From other features, about other points: cut like the patch that is pulled to them."""
    handles, targets = border_points(grid), drawn_targets(13, grid)
    target_patch = motion.patches(drawn(native, seed=1), handles.flip(0), 2, grid)
    features, arguments = drawn(native), (handles, targets, 2, grid, None, target_patch)
    loss, gradient = with_gradient(motion_supervision_loss, features, *arguments)
    expected = with_gradient(motion_supervision_loss_reference, features, *arguments)
    assert golden_cases.relative(loss, expected[0]) < 1e-5
    assert golden_cases.relative(gradient, expected[1]) < 1e-5


def test_patches_that_stay_and_are_too_few():
    arguments = drawn((8, 8)), torch.ones(2, 2), torch.ones(2, 2) + 5, 1, (32, 32), None, torch.zeros(1, 5, 3, 3)
    for loss_of in (motion_supervision_loss, motion_supervision_loss_reference):
        with pytest.raises(ValueError, match=r"must be \(2, 5, 3, 3\), one for each handle, came \(1, 5, 3, 3\)"):
            loss_of(*arguments)


def test_upstream_gradient():
    features, handles, targets = drawn((8, 8)), torch.tensor([[9.0, 9.0]]), torch.tensor([[20.0, 20.0]])
    _, once = with_gradient(motion_supervision_loss, features, handles, targets, 1, (32, 32))

    def scaled(features: Tensor) -> Tensor:
        return -2.5 * motion_supervision_loss(features, handles, targets, 1, (32, 32))

    torch.testing.assert_close(with_gradient(scaled, features)[1], -2.5 * once)


def test_a_handle_at_its_target_adds_nothing():
    features = drawn((8, 12))
    handles = torch.tensor([[10.3, 7.6], [20.0, 9.0]])
    targets = torch.tensor([[10.3, 7.6], [28.0, 20.0]])
    loss, gradient = with_gradient(motion_supervision_loss, features, handles, targets, 1, (32, 48))
    other, of_other = with_gradient(motion_supervision_loss, features, handles[1:], targets[1:], 1, (32, 48))
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(gradient, of_other)
    loss, gradient = with_gradient(motion_supervision_loss, features, handles[:1], targets[:1], 1, (32, 48))
    assert loss == 0
    assert (gradient == 0).all()


def test_handles_add_up_and_can_be_left_out():
    grid, features = (64, 96), drawn((16, 24), 9)
    handles = drawn_targets(20, grid, seed=5)
    targets = drawn_targets(20, grid, seed=6)
    alone = [
        with_gradient(motion_supervision_loss, features, handles[i : i + 1], targets[i : i + 1], 1, grid)
        for i in range(20)
    ]
    active = torch.arange(20) % 3 != 0
    for counted, mask in ((range(20), None), (active.nonzero().flatten().tolist(), active)):
        loss, gradient = with_gradient(motion_supervision_loss, features, handles, targets, 1, grid, active=mask)
        assert golden_cases.relative(loss, sum((alone[i][0] for i in counted), torch.tensor(0.0))) < 1e-5
        assert golden_cases.relative(gradient, sum((alone[i][1] for i in counted), torch.tensor(0.0))) < 1e-5
        reference = motion_supervision_loss_reference(features, handles, targets, 1, grid, active=mask)
        assert golden_cases.relative(loss, reference) < 1e-5


def test_only_the_cells_under_the_patch_are_touched():
    features = drawn((32, 32))
    broken = features.clone()
    broken[:, :, :12] = torch.nan  # the handle at row 64 of 128 lies at native row 16
    broken[:, :, 20:] = torch.nan
    broken[:, :, :, :12] = torch.nan
    arguments = torch.tensor([[64.0, 64.0]]), torch.tensor([[10.0, 20.0]]), 1, (128, 128)
    loss, gradient = with_gradient(motion_supervision_loss, broken, *arguments)
    expected_loss, expected = with_gradient(motion_supervision_loss, features, *arguments)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected)
    assert (gradient != 0).any(dim=1).sum() <= 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    features = drawn((16, 24), 640).to(dtype)
    handles, targets = torch.tensor([[20.0, 20.0], [60.5, 30.0]]), torch.tensor([[40.0, 44.0], [50.0, 2.0]])
    loss, gradient = with_gradient(motion_supervision_loss, features, handles, targets, 1, (64, 96))
    expected_loss, expected = with_gradient(motion_supervision_loss, features.float(), handles, targets, 1, (64, 96))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected_loss)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected.to(dtype))


def test_the_layout_in_memory_is_of_no_account():
    features, handles, grid = drawn((9, 14), 6), border_points((36, 56))[::3], (36, 56)
    patches = motion.patches(drawn((9, 14), 6, 1), handles, 1, grid)
    for target_patch in (None, patches):
        arguments = handles, drawn_targets(len(handles), grid), 1, grid, None
        expected = with_gradient(motion_supervision_loss, features, *arguments, target_patch)
        last = features.contiguous(memory_format=torch.channels_last)
        came = with_gradient(motion_supervision_loss, last, *arguments, target_patch)
        part = torch.cat([features, features], dim=3)[:, :, :, :14]
        of_part = with_gradient(
            motion_supervision_loss, part, *arguments, None if target_patch is None else target_patch.mT.clone().mT
        )
        for loss, gradient in (came, of_part):
            torch.testing.assert_close(loss, expected[0])
            torch.testing.assert_close(gradient, expected[1])


def test_one_graph_wherever_the_handles_are(graphs):
    def step(features, handles, targets, active):
        return motion_supervision_loss(features, handles, targets, 1, (64, 64), active)

    run, targets, active = (
        torch.compile(step, fullgraph=True, backend=graphs),
        drawn_targets(3, (64, 64)),
        torch.ones(3) > 0,
    )
    for seed in range(4):
        arguments = drawn((16, 16), 4, seed), drawn_targets(3, (64, 64), seed + 9), targets, active
        for came, expected in zip(with_gradient(run, *arguments), with_gradient(step, *arguments), strict=True):
            assert torch.equal(came, expected)
    assert len(graphs.traced) == 1


def test_the_same_bits_twice():
    grid = (64, 64)
    handles, targets = 20 + drawn_targets(12, grid) / 16, drawn_targets(12, grid, 1)  # patches that overlap
    first, again = (
        with_gradient(motion_supervision_loss, drawn((16, 16), 64), handles, targets, 1, grid) for _ in range(2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize(
    "features, handles, targets, radius, message",
    [
        ((2, 3, 8, 8), (1, 2), (1, 2), 1, r"features must be \(1, C, h, w\), came \(2, 3, 8, 8\)"),
        ((3, 8, 8), (1, 2), (1, 2), 1, r"features must be"),
        ((1, 3, 8, 8), (2,), (2,), 1, r"points must be \(n, 2\)"),
        ((1, 3, 8, 8), (2, 2), (1, 2), 1, r"came \(2, 2\) and \(1, 2\)"),
        ((1, 3, 8, 8), (1, 2), (1, 2), -1, r"radius must be 0 or more, came -1"),
    ],
)
def test_wrong_arguments(features, handles, targets, radius, message):
    for loss_of in (motion_supervision_loss, motion_supervision_loss_reference):
        with pytest.raises(ValueError, match=message):
            loss_of(torch.zeros(features), torch.zeros(handles), torch.zeros(targets), radius, (32, 32))


def test_direction_is_a_unit_vector_or_zero():
    d = motion.direction(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[4.0, 6.0], [5.0, 5.0]]))
    torch.testing.assert_close(d, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))

"""Point tracking: against the dense reference, what is planted is found, and equals go to the first."""

from __future__ import annotations

import pytest
import torch
from feature_maps import SIZES, border_points, drawn

from dragsa import motion
from dragsa.kernels import windows
from dragsa.tracking import chance, sample_points, track, track_points, track_points_reference


@pytest.mark.parametrize("radius", [0, 3, 4, 10**9])
@pytest.mark.parametrize("native, grid", SIZES)
def test_equals_the_dense_reference(native, grid, radius):
    handles = border_points(grid)
    for seed in range(4):
        features = drawn(native, 7, seed)
        reference = drawn((len(handles), 7), 1, seed + 50)[0, 0]
        moved = track_points(features, reference, handles, radius, grid)
        expected = track_points_reference(features, reference, handles, radius, grid)
        # Rows or columns that the border clamps onto the same features are equals that the dense map's rounding parts.
        for axis, size in ((0, 1), (1, 0)):
            came, wanted = (
                windows.native_position(points[:, axis], native[size], grid[size]) for points in (moved, expected)
            )
            assert torch.equal(came, wanted)
        assert torch.equal(moved, moved.trunc())
        assert (moved >= 0).all()
        assert (moved < torch.tensor([grid[1], grid[0]])).all()


def test_finds_what_was_moved():
    features = drawn((40, 52), 16)
    handles = torch.tensor([[10.0, 12.0], [30.0, 20.0], [44.0, 33.0]])
    reference = sample_points(features, handles)
    moved = features.roll((2, -3), dims=(2, 3))  # two down, three to the left
    found = track(moved, reference, handles, 3)
    assert torch.equal(found.points, handles + torch.tensor([-3.0, 2.0]))
    torch.testing.assert_close(found.distance, torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(track_points(moved, reference, handles, 2), track_points_reference(moved, reference, handles, 2))


def test_the_distance_is_the_sum_over_channels():
    features = drawn((16, 16), 6)
    reference = drawn((2, 6), 1, 9)[0, 0]
    found = track(features, reference, torch.tensor([[20.0, 31.0], [62.0, 5.5]]), 3, (64, 64))
    dense = motion.upsampled(features, (64, 64))[0]
    columns, rows = found.points.long().unbind(dim=1)
    torch.testing.assert_close(found.distance, (dense[:, rows, columns].T - reference).abs().sum(dim=1))


def test_equals_go_to_the_first_in_reading_order():
    # Beyond the centre of the outermost native cell the map is flat: the two outer rows and columns are the same.
    features, grid = drawn((8, 12), 33), (32, 48)
    corners = torch.tensor([[0.0, 0.0], [47.0, 0.0], [0.0, 31.0], [47.0, 31.0]])
    reference = features[0][:, [0, 0, -1, -1], [0, -1, 0, -1]].T
    for radius in (1, 2, 3, 5):
        moved = track_points(features, reference, corners, radius, grid)
        assert moved.tolist() == [[0, 0], [46, 0], [0, 30], [46, 30]]


def test_the_window_is_a_square_about_the_whole_part():
    features = torch.zeros(1, 1, 20, 20)
    reference = torch.ones(1, 1)
    features[0, 0, 13, 13] = 1  # three from (10, 10), four from (9, 9)
    assert track_points(features, reference, torch.tensor([[10.9, 10.9]]), 3).tolist() == [[13, 13]]
    assert track_points(features, reference, torch.tensor([[9.9, 9.9]]), 3).tolist() == [[6, 6]]


def test_nothing_outside_of_the_window_is_read():
    features = drawn((32, 32))
    broken = torch.full_like(features, torch.nan)
    broken[:, :, 12:20, 12:20] = features[:, :, 12:20, 12:20]
    handles, reference = torch.tensor([[64.0, 64.0]]), features[0, :, 16, 16][None]
    assert torch.equal(
        track_points(broken, reference, handles, 3, (128, 128)),
        track_points(features, reference, handles, 3, (128, 128)),
    )


def test_bfloat16_features():
    features = drawn((16, 16), 40).bfloat16()
    handles = border_points((64, 64))
    reference = sample_points(features, handles.clamp(0, 63).trunc(), (64, 64))
    assert reference.dtype == torch.float32
    moved = track_points(features, reference, handles, 3, (64, 64))
    assert torch.equal(moved, track_points_reference(features, reference, handles, 3, (64, 64)))


def test_one_graph_wherever_the_handles_are(graphs):
    def step(features, reference, handles):
        return track(features, reference, handles, 3, (64, 64))

    run = torch.compile(step, fullgraph=True, backend=graphs)
    for seed in range(4):
        features, reference = drawn((16, 16), 4, seed).requires_grad_(), drawn((3, 4), 1, seed)[0, 0]
        handles = 20 + drawn((3, 2), 1, seed)[0, 0]
        came, expected = run(features, reference, handles), step(features, reference, handles)
        assert torch.equal(came.points, expected.points)
        assert not came.distance.requires_grad
    assert len(graphs.traced) == 1


@pytest.mark.parametrize("native, grid", SIZES)
def test_samples_of_the_grid(native, grid):
    features = drawn(native, 4)
    dense = motion.upsampled(features, grid)
    points = border_points(grid)
    scale = torch.tensor([max(grid[1] - 1, 1), max(grid[0] - 1, 1)])
    expected = torch.nn.functional.grid_sample(
        dense, (2 * points / scale - 1)[None, None], align_corners=True, padding_mode="border"
    )[0, :, 0].T  # (n, C)
    torch.testing.assert_close(sample_points(features, points, grid), expected, rtol=1e-4, atol=1e-4)
    columns, rows = points.trunc().long().unbind(dim=1)
    torch.testing.assert_close(sample_points(features, points.trunc(), grid), dense[0][:, rows, columns].T)


def test_samples_beyond_the_border_are_the_borders():
    grid = (20, 24)
    beyond = torch.tensor([[-3.0, 5.25], [26.5, -0.75], [7.5, 23.0], [-40.0, 90.0]])
    at_the_border = torch.tensor([[0.0, 5.25], [23.0, 0.0], [7.5, 19.0], [0.0, 19.0]])
    features = drawn((5, 6), 3)
    torch.testing.assert_close(sample_points(features, beyond, grid), sample_points(features, at_the_border, grid))


def test_samples_are_differentiable():
    features = drawn((5, 6), 3, dtype=torch.float64).requires_grad_()
    points = torch.tensor([[0.3, 0.7], [11.2, 19.0]])
    assert torch.autograd.gradcheck(lambda f: sample_points(f, points, (20, 24)), (features,))


def test_chance_is_the_average_distance():
    features, reference = drawn((9, 14), 5), drawn((3, 5), 1, 3)[0, 0]
    every = (features[0].flatten(1)[None] - reference[:, :, None]).abs().sum(dim=1)  # (n, h w)
    torch.testing.assert_close(chance(features, reference), every.mean(dim=1))
    torch.testing.assert_close(chance(drawn((64, 64), 5), reference), every.mean(dim=1), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    "features, reference, handles, radius, message",
    [
        ((2, 3, 8, 8), (1, 3), (1, 2), 3, r"features must be \(1, C, h, w\)"),
        ((1, 3, 8, 8), (1, 4), (1, 2), 3, r"reference must be \(1, 3\), a feature for each handle, came \(1, 4\)"),
        ((1, 3, 8, 8), (1, 3), (2, 2), 3, r"reference must be \(2, 3\)"),
        ((1, 3, 8, 8), (1, 3), (2,), 3, r"points must be \(n, 2\)"),
        ((1, 3, 8, 8), (1, 3), (1, 2), -1, r"radius must be 0 or more"),
    ],
)
def test_wrong_arguments(features, reference, handles, radius, message):
    for tracked in (track_points, track_points_reference):
        with pytest.raises(ValueError, match=message):
            tracked(torch.zeros(features), torch.zeros(reference), torch.zeros(handles), radius, (32, 32))

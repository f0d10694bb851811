"""The search of point tracking: its operator, and equals that rounding must not part."""

from __future__ import annotations

import pytest
import torch
from feature_maps import border_points, drawn

from dragsa.kernels import operators, windows
from dragsa.tracking import track_points


def test_rounding_does_not_part_equals(monkeypatch):
    """Were the later of two clamped rows or columns nearer by the last bit, the first would still be taken."""
    exact = windows.sample

    def rounded(cells, weights):
        values = exact(cells, weights)  # (n, C, P, Q)
        later = torch.arange(values[0, 0].numel()).view(values.shape[2:])
        return values * (1 - 1e-7 * later)

    features, grid = drawn((8, 12), 33).abs() + 1, (32, 48)
    corners = torch.tensor([[0.0, 0.0], [47.0, 31.0]])
    reference = features[0][:, [0, -1], [0, -1]].T - 0.1  # every value lies above it, and what comes later is nearer
    monkeypatch.setattr(windows, "sample", rounded)
    assert track_points(features, reference, corners, 1, grid).tolist() == [[0, 0], [46, 30]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_is_what_it_is_registered_as(dtype):
    features, reference = drawn((9, 14), 3).to(dtype), drawn((4, 3), 1, 9)[0, 0]
    torch.library.opcheck(operators.search, (features, reference, border_points((36, 56))[:4], 3, 36, 56))

"""The settings are checked, and the seeded networks have usable values."""

from __future__ import annotations

import pytest
import torch

from dragsa.speed.problems import Settings, network, problem


def test_seeded_networks_are_finite_and_the_same(tiny):
    """The same values in every type, but for rounding; nothing overflows."""
    first, again, narrow = (network(tiny, dtype) for dtype in (torch.float32, torch.float32, torch.bfloat16))
    for one, other, rounded in zip(first.parameters(), again.parameters(), narrow.parameters(), strict=True):
        assert torch.equal(one, other) and torch.equal(one.bfloat16(), rounded) and not one.requires_grad
    at = problem(first.config, 64, "cpu", masked=True)
    eps = first(at.latent, at.noise.timestep, at.context).eps
    assert eps.isfinite().all() and 0.01 < eps.std() < 100


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"only": ("speed",)}, "only: 'speed' is none of roof, update"),
        ({"modes": ("float8",)}, "modes: 'float8' is none of baseline"),
        ({"sizes": (100,)}, "sizes are multiples of 8 from 64, came 100"),
        ({"sizes": (32,)}, "came 32"),
        ({"repeats": 0}, "repeats must be a whole number from 1, came 0"),
        ({"handles": (1, 0)}, "handles must be a whole number from 1, came 0"),
    ],
)
def test_wrong_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        Settings(**changes)

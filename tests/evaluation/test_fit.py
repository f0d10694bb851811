"""The fit finds what a picture shows, exactly drawn or spoilt."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dragsa.evaluation import cases, fit, scenes

BY_KIND = {case.kind: case for case in cases.cases("figures", limit=1)}
OTHERS = cases.cases("settings", limit=2)[5:]


def furthest(case: cases.Case, picture: torch.Tensor, scene: scenes.Scene) -> float:
    """Pixels from the worst found of the measured points to where it is in the scene that the picture shows."""
    at, true = case.points(fit.fit(picture, case.before).scene), case.points(scene)
    return max(math.dist(at[name], true[name]) for name in case.measured)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.kind)
def test_points_are_found_in_exact_drawings(case: cases.Case) -> None:
    assert furthest(case, scenes.draw(case.after), case.after) < 0.3
    assert furthest(case, scenes.draw(case.before), case.before) < 0.3


@pytest.mark.parametrize("kind", ["move", "resize", "turn"])
def test_drifted_colours_blur_noise_and_a_ghost_are_borne(kind: str) -> None:
    case = BY_KIND[kind]
    picture = scenes.draw(case.after)
    ghost = torch.lerp(picture, scenes.draw(case.before), 0.3 * scenes.object_mask(case.before))
    drifted = torch.lerp(ghost, torch.tensor([0.3, -0.2, 0.1])[:, None, None], 0.12)
    blurred = F.avg_pool2d(drifted[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    noise = 0.05 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    assert furthest(case, blurred + noise, case.after) < 1.5

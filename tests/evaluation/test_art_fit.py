"""The fit finds a drawing where a picture shows it, exactly drawn or spoilt, and says so where it is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dragsa.evaluation import art_cases, art_figures, art_fit, art_scenes
from dragsa.pictures import images

ONE_OF_EACH = art_cases.list_cases("settings", limit=1)
BY_KIND = {case.kind: case for case in ONE_OF_EACH}


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.kind)
def test_its_own_error_is_small(case: art_cases.ArtCase) -> None:
    errors = art_figures.check([case])
    assert set(errors) == {"source", "truth"}
    for (row,) in errors.values():
        assert row["found"]
        assert row["place"] < 0.5 and row["size"] < 2 and row["angle"] < 2 and row["points"] < 0.8, row
    assert "| truth | all | 1 | 0." in art_figures.check_table(errors)


@pytest.mark.parametrize("kind", ["move", "rotate", "part"])
def test_drifted_colours_blur_noise_and_a_ghost_are_borne(kind: str) -> None:
    case = BY_KIND[kind]
    before, after = (images.to_tensor(picture)[0] for picture in (case.source, case.truth))
    ghost = torch.lerp(after, before, 0.3 * case.covered(case.before.thing))
    drifted = torch.lerp(ghost, torch.tensor([0.3, -0.2, 0.1])[:, None, None], 0.12)
    blurred = F.avg_pool2d(drifted[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    noise = 0.05 * torch.randn(after.shape, generator=torch.Generator().manual_seed(0))
    found = art_fit.fit(blurred + noise, case.before, case.after.thing.pull)
    assert found.found
    goal, now = case.after.thing, found.scene.thing
    assert 128 * max(abs(goal.x - now.x), abs(goal.y - now.y)) < 1.5
    assert abs(goal.rotation - now.rotation) < 0.1 and abs(now.size / goal.size - 1) < 0.06
    assert found.share is None or abs(found.share - 1) < 0.3


def test_half_of_a_pull_is_half() -> None:
    case = BY_KIND["part"]
    pull = case.after.thing.pull
    assert pull is not None
    half = replace(case.after, thing=replace(case.after.thing, pull=replace(pull, dx=pull.dx / 2, dy=pull.dy / 2)))
    found = art_fit.fit(case.drawn(half), case.before, pull)
    assert found.share == pytest.approx(0.5, abs=0.1)


def test_a_thing_that_is_gone_is_not_found() -> None:
    case = BY_KIND["move"]
    assert not art_fit.fit(art_scenes.draw_ground(case.before.ground), case.before).found
    two = BY_KIND["two"]
    alone = art_fit.fit(two.drawn(replace(two.after, neighbour=None)), two.before)
    assert alone.found and not alone.neighbour_found


def test_a_drawing_is_refined_near_its_place_alone() -> None:
    case = BY_KIND["move"]
    one, other = (replace(case.before.thing, size=0.4, x=x, y=y) for x, y in ((0.27, 0.27), (0.73, 0.73)))
    shown_elsewhere = replace(case.before, thing=other)
    refined = art_fit.refined(case.drawn(shown_elsewhere), replace(case.before, thing=one)).thing
    assert max(abs(refined.x - one.x), abs(refined.y - one.y)) <= art_fit.NEAR * one.size + 1e-6
    moved = replace(one, x=one.x + 0.05, y=one.y - 0.03)
    back = art_fit.refined(case.drawn(replace(case.before, thing=moved)), replace(case.before, thing=one)).thing
    assert 128 * max(abs(back.x - moved.x), abs(back.y - moved.y)) < 0.5

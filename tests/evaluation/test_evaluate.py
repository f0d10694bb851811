"""The evaluator must find what is there, say so where nothing is, and never look at the truth to find it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cases
import evaluate
import pytest
import scenes
import torch
from torch.nn import functional as F

from dragsa.pictures import images

ONE_OF_EACH = cases.cases("figures", limit=1)
OTHERS = cases.cases("settings", limit=2)[5:]
BY_KIND = {case.kind: case for case in ONE_OF_EACH}


def furthest(case: cases.Case, picture: torch.Tensor, scene: scenes.Scene) -> float:
    """Pixels from the worst found of the measured points to where it is in the scene that the picture shows."""
    at, true = case.points(evaluate.fit(picture, case.before).scene), case.points(scene)
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


def test_the_truth_is_not_looked_at() -> None:
    case = BY_KIND["move"]
    misled = replace(case, after=replace(case.after, x=0.5, y=0.5))
    assert evaluate.measure(case.truth, case)["scene"] == evaluate.measure(case.truth, misled)["scene"]


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.kind)
def test_the_truth_is_all_right_and_the_source_is_not_moved(case: cases.Case) -> None:
    truth, source = evaluate.measure(case.truth, case), evaluate.measure(case.source, case)
    assert truth["found"] and truth["share"] < 0.03 and truth["overlap"] > 0.999
    assert truth["shape"] > 0.95 and truth["object_colour"] < 1
    assert truth["truth_ssim"] == pytest.approx(1) and truth["truth_db"] == evaluate.BEST_DB
    assert source["share"] == pytest.approx(1, abs=0.02) and source["all_left"] > 3
    assert source["background_error"] == truth["background_error"] == 0
    assert source["truth_db"] < 25 and source["truth_ssim"] < 0.97
    if case.kind in ("move", "two", "protect"):
        assert source["overlap"] < 0.6


def test_an_object_that_is_gone_counts_as_not_moved() -> None:
    case = BY_KIND["move"]
    empty = images.to_picture(scenes.draw_ground(case.before))
    figures = evaluate.measure(empty, case)
    assert not figures["found"] and figures["share"] == 1 and figures["object_colour"] is None
    assert figures["overlap"] < 0.05 and figures["shape"] == 0


def test_a_face_without_a_nose_counts_as_not_turned() -> None:
    case = BY_KIND["turn"]
    picture, (x, y) = scenes.draw(case.after), case.points(case.after)["nose"]
    skin = torch.tensor(scenes.PALETTE[case.before.colour])[:, None, None] * 2 - 1
    radius = scenes.NOSE_WIDTH * case.after.size / 2 * 128 + 1
    figures = evaluate.measure(images.to_picture(torch.lerp(picture, skin, scenes.disc(128, x, y, radius))), case)
    assert figures["found"] and figures["nose_found"] is False and figures["share"] == 1


def test_a_head_that_is_pushed_aside_has_not_turned() -> None:
    case = BY_KIND["turn"]
    start, goal = case.points(case.before)["nose"], case.points(case.after)["nose"]
    aside = (goal[0] - start[0]) / 128, (goal[1] - start[1]) / 128
    pushed = replace(case.before, x=case.before.x + aside[0], y=case.before.y + aside[1])
    figures = evaluate.measure(images.to_picture(scenes.draw(pushed)), case)
    assert figures["share"] < 0.05  # the nose is there
    assert figures["yaw_left"] == pytest.approx(1, abs=0.05)
    assert figures["centre_moved"] == pytest.approx(math.dist(start, goal), abs=0.5) and figures["overlap"] < 0.8
    turned = evaluate.measure(case.truth, case)
    assert turned["yaw_left"] < 0.03 and turned["centre_moved"] < 0.3


def test_half_of_two_objects_is_half() -> None:
    case = BY_KIND["two"]
    halfway = images.to_picture(scenes.draw(replace(case.before, x=case.after.x, y=case.after.y)))
    figures = evaluate.measure(halfway, case)
    shares = {point["name"]: point["share"] for point in figures["points"]}
    assert shares["centre"] < 0.05 and shares["neighbour centre"] == pytest.approx(1, abs=0.05)
    assert figures["share"] == pytest.approx(0.5, abs=0.05)


def test_what_becomes_of_a_protected_neighbour_is_told() -> None:
    case = BY_KIND["protect"]
    beside = case.after.neighbour
    assert beside is not None
    assert evaluate.measure(case.truth, case)["neighbour_error"] == 0
    elsewhere = replace(case.after, neighbour=replace(beside, x=beside.x + 3 / 128, y=beside.y + 4 / 128))
    figures = evaluate.measure(images.to_picture(scenes.draw(elsewhere)), case)
    assert figures["neighbour_moved"] == pytest.approx(5, abs=0.3) and figures["neighbour_error"] > 3
    assert figures["share"] < 0.05


def test_the_backgrounds_error_leaves_both_places_out() -> None:
    case = BY_KIND["move"]
    inside = cases.dilated(torch.maximum(*(scenes.object_mask(s) for s in (case.before, case.after))), 2 / 128) > 0
    truth = images.to_tensor(case.truth)[0]
    spoilt = images.to_picture(torch.where(inside, -truth, truth))
    assert evaluate.measure(spoilt, case)["background_error"] == 0
    lighter = images.to_picture(torch.where(inside, truth, (truth * 127.5 + 5) / 127.5))
    assert evaluate.measure(lighter, case)["background_error"] == pytest.approx(5, abs=0.2)


def test_the_error_outside_of_the_mask_is_what_the_mask_forbids() -> None:
    case = BY_KIND["move"]
    truth = images.to_tensor(case.truth)[0]
    inside = images.to_picture(torch.where(case.mask > 0, -truth, truth))
    assert evaluate.measure(inside, case)["outside_error"] == 0
    outside = images.to_picture(torch.where(case.mask > 0, truth, (truth * 127.5 + 5) / 127.5))
    assert evaluate.measure(outside, case)["outside_error"] == pytest.approx(5, abs=0.2)


def test_an_objects_colour_is_judged_where_it_is() -> None:
    case = BY_KIND["move"]
    colour = next(name for name in scenes.PALETTE if name not in (case.before.colour, case.before.ground))
    share = 0.2
    true, other = (torch.tensor(scenes.PALETTE[name]) for name in (case.before.colour, colour))
    tinted = torch.lerp(scenes.draw(case.before), 2 * other[:, None, None] - 1, share * scenes.object_mask(case.before))
    expected = 255 * share * (true - other).abs().mean().item()
    figures = evaluate.measure(images.to_picture(tinted), case)
    assert figures["object_colour"] == pytest.approx(expected, rel=0.1)
    assert figures["object_tint"] == pytest.approx(expected, rel=0.1)


def test_an_object_with_a_hole_keeps_its_tint() -> None:
    case = BY_KIND["move"]
    x, y = case.points(case.before)["centre"]
    hole = scenes.disc(128, x, y, 0.2 * case.before.size * 128)
    holed = torch.lerp(scenes.draw(case.before), scenes.draw_ground(case.before), hole)
    figures = evaluate.measure(images.to_picture(holed), case)
    assert figures["object_colour"] > 10 and figures["object_tint"] < 1


def test_structural_similarity_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(3, 13, 14, generator=generator) * 2 - 1 for _ in range(2))
    offsets = torch.arange(11.0) - 5
    window = torch.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / 4.5).double()
    window /= window.sum()
    values = []
    for x, y in zip((first.double() + 1) / 2, (second.double() + 1) / 2, strict=True):
        for top in range(3):
            for left in range(4):
                a, b = (p[top : top + 11, left : left + 11] for p in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                value = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                values.append(value / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    assert evaluate.ssim(first, second) == pytest.approx(torch.stack(values).mean().item(), abs=1e-7)


def test_a_folder_of_anybodys_results_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for case in (BY_KIND["move"], BY_KIND["resize"]):
        folder = tmp_path / case.name
        folder.mkdir()
        cases.save(case, folder)
        images.save_picture(case.truth, folder / "perfect.png")
        images.save_picture(case.source, folder / "idle.png")
    assert evaluate.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert set(results) == {"perfect", "idle"} and set(results["idle"]) == {"move-00", "resize-00"}
    assert results["idle"]["move-00"]["share"] == pytest.approx(1, abs=0.02)
    again = json.loads(json.dumps(evaluate.measure(BY_KIND["move"].truth, BY_KIND["move"])))
    assert results["perfect"]["move-00"] == again
    assert "| perfect | 2 |" in printed


def test_a_folder_without_results_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(tmp_path)]) == 2
    assert evaluate.main([]) == 2
    assert evaluate.main([str(tmp_path), "--check"]) == 2
    assert capsys.readouterr().err.count("evaluate: error: ") == 3


def test_a_result_of_another_size_is_refused() -> None:
    case = BY_KIND["move"]
    with pytest.raises(ValueError, match="move-00: a result of"):
        evaluate.measure(case.truth.resize((64, 64)), case)


def test_its_own_error_is_counted_by_kind() -> None:
    errors = evaluate.check([BY_KIND["move"], BY_KIND["two"]])
    assert {what: {kind: len(row) for kind, row in by.items()} for what, by in errors.items()} == {
        "source": {"move": 1, "two": 2},
        "truth": {"move": 1, "two": 2},
    }
    assert max(error for by in errors.values() for row in by.values() for error in row) < 0.3
    assert "| truth | all | 3 | 0.0" in evaluate.check_table(errors)

"""The drawn scenes: the truth of an edit must be exact, and what measures it right on pictures that are known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from dragsa.evaluation import fit, quality, scenes

HELD_OUT = [scenes.random_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:60]]
FACES = [scene for scene in HELD_OUT if scene.shape == "face"]


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_areas_are_the_shapes_own(shape: str) -> None:
    corners, inner = {"square": (4, math.sqrt(0.5)), "triangle": (3, 0.5), "star": (5, 0.5)}.get(shape, (0, 0.0))
    radius = 0.2
    area = corners * radius * inner * radius * math.sin(math.pi / corners) if corners else math.pi * radius**2
    scene = scenes.Scene(shape, "white", 0.47, 0.55, 2 * radius, rotation=0.3)
    assert scenes.object_mask(scene, 256).mean().item() == pytest.approx(area, rel=2e-3)


def test_a_picture_is_in_range_and_the_same_every_time() -> None:
    picture = scenes.draw(HELD_OUT[0])
    assert picture.shape == (3, 128, 128)
    assert picture.min() >= -1 and picture.max() <= 1
    assert torch.equal(picture, scenes.draw(HELD_OUT[0]))


def test_a_batch_and_its_crops_are_the_single_pictures() -> None:
    corners = torch.tensor([[3 * i % 64, 7 * i % 64] for i in range(12)])
    batch, crops = scenes.draw_batch(HELD_OUT[:12]), scenes.draw_batch(HELD_OUT[:12], 128, corners, 64)
    for scene, picture, crop, (x, y) in zip(HELD_OUT[:12], batch, crops, corners.tolist(), strict=True):
        torch.testing.assert_close(picture, scenes.draw(scene), atol=1e-5, rtol=0)
        torch.testing.assert_close(crop, picture[:, y : y + 64, x : x + 64], atol=2e-4, rtol=0)


def test_a_larger_picture_is_the_same_scene() -> None:
    for scene in HELD_OUT[:10]:
        halved = torch.nn.functional.avg_pool2d(scenes.draw(scene, 256), 2)
        assert quality.psnr(halved, scenes.draw(scene, 128)) > 34


def test_moving_by_whole_pixels_moves_the_mask_and_leaves_the_ground() -> None:
    for scene in HELD_OUT[:10]:
        scene = replace(scene, x=0.45, y=0.55)
        moved = replace(scene, x=scene.x + 9 / 128, y=scene.y - 4 / 128)
        rolled = scenes.object_mask(scene).roll((-4, 9), dims=(0, 1))
        torch.testing.assert_close(scenes.object_mask(moved), rolled, atol=1e-3, rtol=0)
        untouched = (scenes.object_mask(scene) == 0) & (scenes.object_mask(moved) == 0)
        assert torch.equal(scenes.draw(scene)[:, untouched], scenes.draw(moved)[:, untouched])


def test_objects_are_inside_and_stand_out() -> None:
    for scene in [*HELD_OUT, *(s for seed in range(40) for s in scenes.translation(seed))]:
        assert scene.x - scene.size / 2 >= scenes.MARGIN and scene.x + scene.size / 2 <= 1 - scenes.MARGIN
        assert scene.y - scene.size / 2 >= scenes.MARGIN and scene.y + scene.size / 2 <= 1 - scenes.MARGIN
        colour = torch.tensor(scenes.PALETTE[scene.colour])[:, None, None] * 2 - 1
        assert (colour - scenes.draw_ground(scene)).norm(dim=0).min() > 0.5


def test_objects_are_located_in_their_own_pictures() -> None:
    for scene in HELD_OUT:
        place = fit.locate(scenes.draw(scene), scene)
        assert math.dist(place[:2], scenes.keypoints(scene)["centre"]) < 0.3


def test_an_object_is_located_where_it_was_moved_to_by_the_scene_before() -> None:
    for seed in scenes.HELD_OUT_SEEDS[:40]:
        source, target = scenes.translation(seed)
        place = fit.locate(scenes.draw(target), source)
        assert math.dist(place[:2], scenes.keypoints(target)["centre"]) < 0.5
        distance = math.dist((source.x, source.y), (target.x, target.y))
        assert 0.1 <= distance <= 0.3


def test_locating_bears_noise_and_a_ghost() -> None:
    scene = scenes.Scene("star", "white", 0.25, 0.3, 0.35, ground="green", texture=1)
    truth = replace(scene, x=0.75)
    ghost = torch.lerp(scenes.draw(truth), scenes.draw(scene), 0.4 * scenes.object_mask(scene))
    noise = 0.05 * torch.randn(ghost.shape, generator=torch.Generator().manual_seed(0))
    place = fit.locate(ghost + noise, scene)
    assert math.dist(place[:2], scenes.keypoints(truth)["centre"]) < 0.7


def test_no_object_is_said_to_be_nowhere() -> None:
    place = fit.locate(scenes.draw_ground(HELD_OUT[0]), HELD_OUT[0])
    assert math.isnan(place.x) and math.isnan(place.y) and place.area == 0


def turn(seed: int, least: float = 0.1) -> tuple[scenes.Scene, scenes.Scene]:
    """A face of that seed, and the same turned so that its nose moves by `least` of the width or more."""
    scene = scenes.random_scene(seed, shapes=("face",), neighbour=False)
    rng = random.Random(seed + 1)
    while True:
        yaws = math.radians(rng.uniform(-40, 40)), math.radians(rng.uniform(-40, 40))
        before, after = (replace(scene, yaw=yaw) for yaw in yaws)
        if math.dist(*(scenes.keypoints(face, 1)["nose"] for face in (before, after))) >= least:
            return before, after


def test_noses_are_located_after_a_turn() -> None:
    for seed in range(15):
        before, after = turn(seed)
        noses = [scenes.keypoints(face)["nose"] for face in (before, after)]
        assert math.dist(*noses) >= 12.8
        found = fit.locate_nose(scenes.draw(after), before)
        assert math.dist(found[:2], noses[1]) < 0.5


def test_a_nose_is_two_latent_cells() -> None:
    for face in FACES:
        red = fit.locate_nose(scenes.draw(face), face)
        assert 2 * math.sqrt(red.area / math.pi) > 13


def test_only_faces_have_noses() -> None:
    star = next(scene for scene in HELD_OUT if scene.shape == "star")
    with pytest.raises(ValueError, match="a star has no nose"):
        fit.locate_nose(scenes.draw(star), star)


def test_keypoints_are_on_the_object_and_at_its_outline() -> None:
    for scene in HELD_OUT:
        scene = replace(scene, x=0.5, y=0.5)
        mask, points = scenes.object_mask(scene, 256), scenes.keypoints(scene, 256, reach=0.9)
        beyond = scenes.keypoints(scene, 256, reach=1.15)
        for name in ("top", "right", "bottom", "left"):
            (x, y), (far_x, far_y) = points[name], beyond[name]
            assert mask[round(y), round(x)] > 0.5, (scene, name)
            assert mask[round(far_y), round(far_x)] < 0.5, (scene, name)


def test_keypoints_turn_with_the_object_and_scale_with_the_picture() -> None:
    scene = scenes.Scene("triangle", "red", 0.5, 0.5, 0.4, rotation=math.pi / 2)
    assert scenes.keypoints(scene, 100, reach=1)["top"] == pytest.approx((69.5, 49.5))
    assert scenes.keypoints(scene, 200, reach=1)["top"] == pytest.approx((139.5, 99.5))


def test_the_nose_goes_where_the_face_looks() -> None:
    face = scenes.Scene("face", "yellow", 0.5, 0.5, 0.5, yaw=0.5)
    assert scenes.keypoints(face)["nose"][0] - 63.5 == pytest.approx(0.75 * 32 * math.sin(0.5), abs=1e-6)
    assert scenes.caption(face, looking=True) == "a yellow face looking right on a blue ground"


def test_overlap() -> None:
    for scene in HELD_OUT[:10]:
        scene = replace(scene, x=0.3, y=0.3)
        assert fit.overlap(scenes.draw(scene), scene) > 0.93
        assert fit.overlap(scenes.draw(replace(scene, x=0.7, y=0.7)), scene) < 0.05


def test_colour_errors_tell_object_and_ground_apart() -> None:
    source = scenes.Scene("square", "yellow", 0.3, 0.4, 0.35, ground="blue", texture=5)
    truth = replace(source, x=0.6)
    assert fit.colour_error(scenes.draw(truth), truth, source) == pytest.approx((0, 0), abs=0.2)
    recoloured = fit.colour_error(scenes.draw(replace(truth, colour="white")), truth, source)
    expected = 255 * sum(abs(a - b) for a, b in zip(scenes.PALETTE["white"], scenes.PALETTE["yellow"], strict=True)) / 3
    assert recoloured.object == pytest.approx(expected, rel=0.02) and recoloured.ground == pytest.approx(0, abs=0.01)
    lighter = fit.colour_error((scenes.draw(truth) + 0.04 * (1 - scenes.object_mask(truth))).clamp(-1, 1), truth)
    assert lighter.object == pytest.approx(0, abs=0.2) and lighter.ground == pytest.approx(5.1, rel=0.02)


def test_captions_are_of_the_vocabulary_and_say_what_is_drawn() -> None:
    scene = scenes.Scene("star", "red", 0.25, 0.3, 0.3, ground="green")
    assert scenes.caption(scene) == "a red star on a green ground"
    assert scenes.caption(scene, place=True) == "a red star at the top left on a green ground"
    for seed in range(200):
        assert set(scenes.caption(scenes.random_scene(seed), True, True).split()) <= set(scenes.WORDS)


def test_held_out_scenes_are_not_trained_on() -> None:
    assert not set(scenes.TRAINING_SEEDS) & set(scenes.HELD_OUT_SEEDS)
    assert len({scenes.random_scene(seed) for seed in range(200)}) == 200


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no shape 'cube'; there are disc"):
        scenes.Scene("cube", "red", 0.5, 0.5, 0.3)
    with pytest.raises(ValueError, match="no colour 'beige'; there are red"):
        scenes.Scene("disc", "red", 0.5, 0.5, 0.3, ground="beige")

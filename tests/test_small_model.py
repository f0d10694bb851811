"""The model that ships: its files are whole, and an object that is dragged really moves in the picture."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dragsa
from dragsa import ddim, loading
from dragsa.config import EditConfig
from dragsa.evaluation import cases, fit, quality, scenes
from dragsa.pictures import images

FOLDER = Path(__file__).parents[1] / "weights" / "small"


@pytest.fixture(scope="module")
def sd():
    return dragsa.load(FOLDER)


def test_files_are_those_that_were_measured():
    verified = loading.verify(FOLDER)
    assert len(verified) == 3 and all(one.known for one in verified)


def test_words_that_it_does_not_know_are_told_once(sd):
    with pytest.warns(UserWarning, match="^the model does not know the words: cat, sofa$") as told:
        sd.embed(["A purple cat on a sofa.", "a cat"])
        sd.embed(["", "a sofa, a red disc on blue ground"])
    assert len(told) == 1


def test_reconstruction_of_held_out_scenes(sd):
    pictures = scenes.draw_batch([scenes.random_scene(seed) for seed in scenes.HELD_OUT_SEEDS[:12]])
    again = sd.decode(sd.encode(pictures)).clamp(-1, 1)
    assert quality.psnr(again, pictures).mean() > 33


def test_round_trip(sd):
    drawn = [scenes.random_scene(seed) for seed in scenes.HELD_OUT_SEEDS[12:14]]
    z_0 = sd.encode(scenes.draw_batch(drawn))
    context, schedule = sd.embed([scenes.caption(scene) for scene in drawn]), ddim.Schedule(25)
    z_T = ddim.invert(sd.unet, z_0, context, schedule)[-1]
    again = ddim.sample(sd.unet, z_T, context, schedule)[-1]
    assert quality.psnr(sd.decode(again), sd.decode(z_0)).mean() > 33


def test_a_dragged_disc_moves_and_an_idle_edit_does_not(sd):
    before = scenes.Scene("disc", "red", 0.35, 0.5, 0.36, 0.0, 0.0, "blue", (0.05, 0.05), texture=3)
    after = replace(before, x=0.53)
    start, goal = scenes.keypoints(before), scenes.keypoints(after)
    config = EditConfig.small(steps=10, drag_step=4)
    config = replace(config, drag=replace(config.drag, updates=20))
    picture = images.to_picture(scenes.draw(before))
    source = dragsa.prepare(sd, picture, scenes.caption(before), config=config)
    drags = [(start[name], goal[name]) for name in cases.FIVE]
    mask = cases.Case("move", 0, 0, before, after).mask

    def left(edited):
        place = fit.locate(images.to_tensor(edited.image)[0], after)
        return math.dist(place[:2], goal["centre"])

    asked = math.dist(start["centre"], goal["centre"])
    assert abs(left(dragsa.edit(sd, source, config=config)) - asked) < 1
    assert left(dragsa.edit(sd, source, drags, mask, config=config)) < 0.4 * asked


def test_a_changed_prompt_changes_the_colour(sd):
    scene = scenes.Scene("disc", "red", 0.4, 0.5, 0.4, 0.0, 0.0, "blue", (0.05, 0.05), texture=3)
    config = EditConfig.small(steps=10, drag_step=4, guidance=6.0)
    source = dragsa.prepare(sd, images.to_picture(scenes.draw(scene)), scenes.caption(scene), config=config)
    target = replace(scene, colour="yellow")
    edited = images.to_tensor(dragsa.edit(sd, source, target_prompt=scenes.caption(target), config=config).image)[0]
    middle = edited[:, 56:72, 44:60].mean(dim=(1, 2))
    red, yellow = (2 * torch.tensor(scenes.PALETTE[name]) - 1 for name in ("red", "yellow"))
    assert (middle - yellow).norm() < (middle - red).norm()

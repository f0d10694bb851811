"""The model of weights/artwork: its files are those that were measured, and artists' drawings come back and move."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dragsa
from dragsa import ddim, loading
from dragsa.config import EditConfig
from dragsa.evaluation import lists, quality
from dragsa.pictures import images

FOLDER = Path(__file__).parents[1] / "weights" / "artwork"
CASES = {case.kind: case for case in lists.cases_of("artwork", "settings", limit=1)}


@pytest.fixture(scope="module")
def sd():
    return dragsa.load(FOLDER)


def drawn(*kinds):
    """The sources of some cases, (N, 3, 128, 128), and their captions."""
    cases = [CASES[kind] for kind in kinds]
    return torch.cat([images.to_tensor(case.source) for case in cases]), [case.prompt for case in cases]


def test_files_are_those_that_were_measured():
    verified = loading.verify(FOLDER)
    assert len(verified) == 3 and all((one.known or "").startswith("the artwork model's ") for one in verified)


def test_all_weights_of_the_repository_are_under_40_mb():
    shipped = [file for name in ("small", "artwork") for file in (FOLDER.parent / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in shipped) < 40_000_000  # whatever else lies beside them is its owner's


def test_reconstruction(sd):
    pictures, _ = drawn(*CASES)
    again = sd.decode(sd.encode(pictures)).clamp(-1, 1)
    assert quality.psnr(again, pictures).mean() > 28


def test_round_trip(sd):
    pictures, prompts = drawn("move", "part")
    z_0, context, schedule = sd.encode(pictures), sd.embed(prompts), ddim.Schedule(25)
    z_T = ddim.invert(sd.unet, z_0, context, schedule)[-1]
    again = ddim.sample(sd.unet, z_T, context, schedule)[-1]
    assert quality.psnr(sd.decode(again), sd.decode(z_0)).mean() > 30


def test_a_dragged_thing_moves(sd):
    case = CASES["move"]
    config = EditConfig.artwork(steps=10, drag_step=2, paste=False)
    config = replace(config, drag=replace(config.drag, updates=25))
    source = dragsa.prepare(sd, case.source, case.prompt, config=config)
    with pytest.warns(UserWarning, match="the drag did not arrive"):
        result = dragsa.edit(sd, source, case.drags("five"), case.mask, config=config)
    assert lists.measure(result.image, case)["share"] < 0.5

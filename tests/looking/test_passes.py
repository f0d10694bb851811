"""The passes that are told are those that there are, and telling them changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dragsa
from dragsa import hooks, looking
from dragsa.looking import Pass
from dragsa.looking.passes import spans, words_of

pytestmark = pytest.mark.filterwarnings("ignore:the drag did not arrive")
PICTURE = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
CONFIG = dragsa.EditConfig.paper(
    steps=5, drag_step=2, control_step=3, source_kv="none", drag=dragsa.DragConfig(updates=3, patience=None)
)
DRAG = (((20.0, 20.0), (40.0, 20.0)),)


def edited(sd: Any, **how: Any) -> dragsa.EditResult:
    return dragsa.edit(sd, PICTURE, DRAG, config=CONFIG, prompt="a red dot", **how)


@pytest.fixture
def sd(tiny_folder: Path) -> dragsa.StableDiffusion:
    return dragsa.load(tiny_folder)


def test_an_edits_passes(sd: dragsa.StableDiffusion) -> None:
    told: list[Pass] = []
    made = edited(replace(sd, unet=looking.watched(sd.unet, told.append)))
    assert made.image.tobytes() == edited(sd).image.tobytes()
    timesteps = dragsa.Schedule(5).timesteps.tolist()
    inversion, drag, before, under = told[:5], told[5:8], told[8:8], told[8:]
    assert [one.timestep for one in inversion] == timesteps and not before
    assert all(one == Pass(one.timestep, 1, (), None, False, "eps", False) for one in inversion)
    assert [one.near for one in drag] == [False, True, True]
    assert all(one.gradient and one.end == "block14" and one.timestep == timesteps[2] for one in drag)
    assert [one.timestep for one in under] == timesteps[2::-1]
    assert [one.hook for one in under] == [None, *["the source's K and V in blocks 11-16"] * 2]
    assert [one.names for one in under] == [(), *[("source", "target")] * 2] and {one.rows for one in under} == {2}


def test_a_mask_asks_for_the_whole_network(sd: dragsa.StableDiffusion) -> None:
    told: list[Pass] = []
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    edited(replace(sd, unet=looking.watched(sd.unet, told.append)), mask=mask)
    assert [one.end for one in told if one.gradient] == ["eps"] * 3


def test_networks_made_of_a_watched_one_tell_too(sd: dragsa.StableDiffusion) -> None:
    told: list[Pass] = []
    lora = dragsa.loading.LoRA({}, {})
    other = dragsa.methods.apply_lora(replace(sd, unet=looking.watched(sd.unet, told.append)), lora)
    other.unet(torch.zeros(1, 4, 8, 8), 1, sd.embed([""]))
    assert [one.timestep for one in told] == [1]
    sd.unet(torch.zeros(1, 4, 8, 8), 1, sd.embed([""]))
    assert len(told) == 1
    assert all(
        a is b or a.data_ptr() == b.data_ptr()
        for a, b in zip(sd.unet.parameters(), other.unet.parameters(), strict=True)
    )


def test_passes_in_words() -> None:
    timesteps = [1, 201, 401]
    one = Pass(401, 1, (), None, False, "eps", False)
    run = [one._replace(timestep=t) for t in (401, 201)]
    assert looking.sentence(run, timesteps) == "2 passes at τ_3 to τ_2 (t 401 to 201); 1 row; plain attention"
    assert looking.alike(*run) and not looking.alike(one, one._replace(rows=2))
    dragged = one._replace(gradient=True, end="block14", near=True, names=("target",), hook="something")
    parts = "as far as block14, that at the cells near the handles alone; with the gradient; something"
    assert looking.sentence([dragged], timesteps) == f"1 pass at τ_3 (t 401); target; {parts}"
    assert spans((1, 3, 4, 5, 9, 10)) == "1, 3-5, 9-10"


def test_hooks_in_words() -> None:
    mutual = hooks.MutualSelfAttention((11, 12))
    assert words_of(hooks.Named(mutual, ("source", "target"))) == "the source's K and V in blocks 11-12"
    assert words_of(hooks.ReplayKV({})) == "the source's K and V, kept from an earlier pass, in blocks "
    assert words_of(hooks.compose(mutual, hooks.Maps())) == "the source's K and V in blocks 11-12, then Maps"
    assert words_of(None) is None
    assert Image.fromarray(PICTURE).size == (64, 64)

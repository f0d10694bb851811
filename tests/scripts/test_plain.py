"""The plain script is the method: it gives the picture that `edit` gives, in every byte, and fits on two pages."""

import copy
from dataclasses import replace
from pathlib import Path

import plain
import pytest
import torch

import dragsa
from dragsa import pictures

ROOT = Path(__file__).parents[2]
DRAGS = [((42, 79), (70, 59)), ((28, 77), (56, 57))]
PRINTED = dragsa.DragConfig(updates=4, optimizer="sgd", loss="sum", reference="current")


@pytest.mark.parametrize(
    ("loop", "masked"), [(dragsa.DragConfig(updates=4), True), (PRINTED, False)], ids=["paper", "as printed"]
)
def test_the_plain_edit_gives_edits_bytes(loop: dragsa.DragConfig, masked: bool) -> None:
    """In float64, where the two orders of summing do not differ by anything that a byte could show."""
    sd = dragsa.load(ROOT / "weights" / "small")
    sd = replace(sd, unet=copy.deepcopy(sd.unet).double(), vae=copy.deepcopy(sd.vae).double())
    disc = pictures.open_picture(ROOT / "scripts/demo/disc.png")
    config = dragsa.EditConfig.paper(size=128, steps=8, drag_step=2, control_step=2, drag=loop, paste=False)
    z_0 = sd.encode(disc).double()
    source = dragsa.prepare(sd, disc, config=config)
    source = replace(source, latents=dragsa.invert(sd.unet, z_0, sd.embed([""]), source.schedule))
    mask = pictures.open_picture(ROOT / "scripts/demo/mask.png")
    result = dragsa.edit(sd, source, DRAGS, mask if masked else None, config=config)
    assert len(result.trace.losses) == 4 and result.image.tobytes() != disc.tobytes()

    handles, targets, _ = pictures.drags_to_grid(DRAGS, disc.size, (64, 64))
    frozen = 1 - pictures.open_mask(mask, disc.size, (64, 64))[::4, ::4].double() if masked else 0
    edited = plain.edit(sd, z_0, handles.long().tolist(), targets.tolist(), frozen, config)
    assert pictures.to_picture(sd.decode(edited)).tobytes() == result.image.tobytes()


def test_without_an_update_it_is_the_inversion_and_back() -> None:
    sd = dragsa.load(ROOT / "weights" / "small")
    z_0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule, context = dragsa.Schedule(5), sd.embed([""])
    config = dragsa.EditConfig.paper(steps=5, drag_step=1, drag=dragsa.DragConfig(updates=0))
    down = dragsa.sample(sd.unet, dragsa.invert(sd.unet, z_0, context, schedule)[4], context, schedule, start=4)
    torch.testing.assert_close(plain.edit(sd, z_0, [[3, 3]], [[9.0, 3.0]], 0, config), down[-1])


def test_it_fits_two_pages() -> None:
    assert len((ROOT / "scripts" / "plain.py").read_text(encoding="utf-8").splitlines()) <= 100

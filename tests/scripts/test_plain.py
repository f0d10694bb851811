"""The plain script is the method: it gives the picture that `edit` gives, in every byte, and fits on two pages."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import plain
import pytest
import torch

import dragsa
from dragsa import ddim, drag, hooks, kernels, motion, pictures, schedule, tracking
from dragsa.drag import FirstPass
from dragsa.kernels import patch_loss
from dragsa.kernels import tracking as kernel_of_tracking
from dragsa.passes import optimizers
from dragsa.speed import baseline

ROOT = Path(__file__).parents[2]
DRAGS = [((42, 79), (70, 59)), ((28, 77), (56, 57))]
PAPER = dragsa.DragConfig(updates=3, patience=None, lost_patience=None)
PRINTED = replace(PAPER, optimizer="sgd", loss="sum", reference="current")


@pytest.mark.parametrize(("loop", "masked"), [(PAPER, True), (PRINTED, False)], ids=["paper", "as printed"])
def test_the_plain_edit_gives_edits_bytes(loop: dragsa.DragConfig, masked: bool) -> None:
    """In float64, where the two orders of summing do not differ by anything that a byte could show."""
    sd = dragsa.load(ROOT / "weights" / "small")
    sd = replace(sd, unet=copy.deepcopy(sd.unet).double(), vae=copy.deepcopy(sd.vae).double())
    disc = pictures.open_picture(ROOT / "scripts/demo/disc.png")
    config = dragsa.EditConfig.paper(size=128, steps=5, drag_step=2, control_step=2, drag=loop, paste=False)
    z_0 = sd.encode(disc).double()
    source = dragsa.prepare(sd, disc, config=config)
    source = replace(source, latents=dragsa.invert(sd.unet, z_0, sd.embed([""]), source.schedule))
    mask = pictures.open_picture(ROOT / "scripts/demo/mask.png")
    result = dragsa.edit(sd, source, DRAGS, mask if masked else None, config=config)
    assert len(result.trace.losses) == 3 and result.image.tobytes() != disc.tobytes()

    handles, targets, _ = pictures.drags_to_grid(DRAGS, disc.size, (64, 64))
    frozen = 1 - pictures.open_mask(mask, disc.size, (64, 64))[::4, ::4].double() if masked else 0
    edited = plain.edit(sd, z_0, handles.long().tolist(), targets.tolist(), frozen, config)
    assert pictures.to_picture(sd.decode(edited)).tobytes() == result.image.tobytes()


def test_without_an_update_it_is_the_inversion_and_back() -> None:
    sd = dragsa.load(ROOT / "weights" / "small")
    z_0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule, context = dragsa.Schedule(5), sd.embed([""])
    config = dragsa.EditConfig.paper(steps=5, drag_step=1, control_step=1, drag=replace(PAPER, updates=0))
    down = dragsa.sample(sd.unet, dragsa.invert(sd.unet, z_0, context, schedule)[4], context, schedule, start=4)
    torch.testing.assert_close(plain.edit(sd, z_0, [[3, 3]], [[9.0, 3.0]], 0, config), down[-1])


@pytest.mark.parametrize("handle", [[6.0, 7.0], [0.0, 11.0], [15.0, 0.0]], ids=["within", "left", "corner"])
def test_each_function_is_its_fast_twin_and_the_baselines(handle: list[float]) -> None:
    features, later = (torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(n)).double() for n in (0, 1))
    grid, loop, (target, handles) = (12, 16), dragsa.DragConfig(radius=2), torch.tensor([[9.0, 3.0], handle])[:, None]
    (x, y), F = map(int, handle), plain.on_grid(features)
    torch.testing.assert_close(F[None], motion.upsampled(features, grid))
    off = torch.tensor([[4.3, 5.8], handle], dtype=torch.float64)
    torch.testing.assert_close(plain.bilinear(F, *off.T).T, tracking.sample_points(features, off, grid))

    loss = plain.motion_supervision(F, [x, y], target[0].tolist(), loop)
    torch.testing.assert_close(loss, dragsa.motion_supervision_loss(features, handles, target, 2, grid))
    torch.testing.assert_close(loss, baseline.pull(F[None], handles[0], target[0].double(), 2))

    sought, first = F[:, y, x], FirstPass(F[None], None, handles)
    found = plain.track(plain.on_grid(later), [x, y], 3, sought)
    assert [*found] == dragsa.track_points(later, sought[None], handles, 3, grid)[0].tolist()
    assert [*found] == baseline.tracked(motion.upsampled(later, grid), handles, first, 3)[0].tolist()

    bars, z, eps = dragsa.Schedule(5).alpha_bars, features[:, :4], later[:, :4]
    assert torch.equal(plain.step(z, eps, bars[3], bars[2]), schedule.step_down(z, eps, dragsa.Schedule(5), 3))
    q, k, v = (torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for block, kind in ((14, "self"), (14, "cross"), (10, "self")):
        site = hooks.Site(block, kind, (3, 3))
        assert torch.equal(
            *(one(site, q, k, v, kernels.attend) for one in (plain.control, hooks.MutualSelfAttention()))
        )


TWINS: dict[str, tuple[Any, ...]] = {
    "motion_supervision": (motion.motion_supervision_loss, patch_loss.pull, baseline),
    "track": (tracking.track_points, tracking.track, kernel_of_tracking.search),
    "bilinear": (tracking.sample_points,),
    "on_grid": (motion.upsampled,),
    "step": (schedule.ddim, schedule.step_down),
    "control": (hooks.MutualSelfAttention,),
    "edit": (ddim.invert, ddim.sample_controlled, drag.drag_latent, optimizers),
}


@pytest.mark.parametrize("name", TWINS)
def test_each_fast_function_names_its_plain_twin(name: str) -> None:
    assert callable(getattr(plain, name))
    for one in TWINS[name]:
        assert f"`{name}` in scripts/plain.py" in " ".join((one.__doc__ or "").split()), one


def test_what_it_does_not_do_is_refused() -> None:
    others = replace(PAPER, optimizer="adam-mini", stall=5, anchor=0.35, patience=30)
    config = dragsa.EditConfig.paper(drag=others, guidance=7.5)
    with pytest.raises(ValueError, match=r"^not done here: optimizer, guidance, patience, stall, anchor$"):
        plain.edit(None, torch.zeros(1, 4, 8, 8), [[3, 3]], [[9.0, 3.0]], 0, config)
    here = dragsa.EditConfig.paper(drag=PAPER)
    for changes in ({"control_step": 20}, {"control_step": None}, {"control_blocks": (11,)}, {"lora_steps": 1}):
        with pytest.raises(ValueError, match=rf"^not done here: {next(iter(changes))}$"):
            plain.edit(None, torch.zeros(1, 4, 8, 8), [[3, 3]], [[9.0, 3.0]], 0, replace(here, **changes))


def test_it_fits_two_pages() -> None:
    assert len((ROOT / "scripts" / "plain.py").read_text(encoding="utf-8").splitlines()) <= 100

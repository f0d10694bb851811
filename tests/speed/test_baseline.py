"""The baseline computes DragDiffusion's numbers; times are never asserted."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import golden_cases
import pytest
import torch
from torch import nn

from dragsa import ddim, drag, motion
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.model.layers import GEGLU
from dragsa.speed.baseline import PlainConvolution, PlainGEGLU, as_published, baseline_updates, pull


def golden_problem(case: golden_cases.Case) -> drag.Task:
    settings, (h, w), keep = case.settings, case.latent_hw, None
    if settings["mask_box_y0y1x0x1"] is not None:
        top, bottom, left, right = settings["mask_box_y0y1x0x1"]
        keep = torch.ones(4 * h, 4 * w)
        keep[top:bottom, left:right] = 0
        keep = drag.to_latent_grid(keep, torch.zeros(1, 4, h, w))
    config = DragConfig(
        tap="decoder3",
        lr=settings["lr"],
        radius=settings["r_m"],
        track_radius=settings["r_p"],
        lam=settings["lam"],
    )
    schedule = Schedule(50, "dragdiffusion")
    level = int((schedule.timesteps == settings["timestep"]).nonzero()) + 1
    return drag.Task(
        case.input("z", 1, 4, h, w),
        ddim.noise_at(schedule, level, torch.device("cpu")),
        case.input("text", 1, 77, golden_cases.CONTEXT_DIM),
        case.points("handles"),
        case.points("targets"),
        keep,
        config,
    )


@pytest.mark.parametrize("case", golden_cases.cases("drag"), ids=lambda case: case.tag)
def test_the_baseline_is_the_stored_run(case):
    unet = as_published(golden_cases.golden_unet())
    updates = list(islice(baseline_updates(unet, golden_problem(case)), case.settings["iters"]))
    stored = case.outputs
    losses = torch.tensor([update.lap.loss for update in updates])
    assert torch.equal(torch.stack([update.handles for update in updates])[1:].flip(2), stored["track"])
    torch.testing.assert_close(losses, stored["loss"], rtol=0, atol=1e-4 * stored["loss"].max().item())
    z_out = stored["z_out"]
    torch.testing.assert_close(updates[-1].latent, z_out, rtol=0, atol=1e-4 * z_out.abs().max().item())


def test_at_the_border_the_patch_is_the_references():
    """Patches cut by each side and corner, moved off the map and along it."""
    dense = torch.randn(1, 5, 12, 14, generator=torch.Generator().manual_seed(0))
    for handle in ([0.0, 0.0], [13.0, 11.0], [0.4, 6.0], [13.0, 3.6], [6.0, 0.0], [5.7, 11.0], [6.0, 6.0]):
        for d in ([9.0, 0.0], [-9.0, 4.0], [-3.0, -9.0], [2.0, 9.0]):
            handles = torch.tensor([handle])
            targets = handles + torch.tensor([d])
            expected = motion.motion_supervision_loss_reference(dense, handles, targets, 2)
            torch.testing.assert_close(pull(dense, handles[0], targets[0], 2), expected)


def test_the_baseline_ends_when_every_handle_is_there():
    case = golden_cases.cases("drag")[0]
    at = golden_problem(case)
    far = replace(at.config, reach=1000.0)
    assert list(baseline_updates(golden_cases.golden_unet(), at._replace(config=far))) == []


def test_the_baselines_layers_are_pytorchs_on_the_same_weights(net):
    twin = as_published(net)
    convolutions = {type(layer) for layer in twin.modules() if isinstance(layer, nn.Conv2d)}
    assert convolutions == {nn.Conv2d, PlainConvolution}
    assert {type(layer) for layer in twin.modules() if isinstance(layer, GEGLU)} == {PlainGEGLU}
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()

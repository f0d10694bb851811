"""The loop's passes are cheaper than plain ones and give the same numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from passes.short_drag import CONFIG, HANDLES, SCHEDULE, TARGETS, dragged, inputs

from dragsa import ddim, drag, motion, passes
from dragsa.drag import Task
from dragsa.model import unet as networks
from dragsa.model.unet import UNet
from dragsa.passes import compiling
from dragsa.passes.prepare import checkpointed


def plain_rows(net: UNet, z: torch.Tensor, context: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and ε under guidance, one row after the other."""
    without, under = (net(z, SCHEDULE.timesteps[34], one[None], taps=("block14",)) for one in context)
    shares = (scale - 1) / (2 * scale - 1), scale / (2 * scale - 1)
    features = torch.cat([shares[0] * without.taps["block14"], shares[1] * under.taps["block14"]], dim=1)
    return features, (1 - scale) * without.eps + scale * under.eps


@pytest.mark.parametrize("own", [True, False], ids=["UNet", "any callable"])
def test_guidance_sees_both_rows_side_by_side(net: UNet, own: bool) -> None:
    z, text = inputs()
    context, noise = torch.cat([text.flip(1), text]), ddim.noise_at(SCHEDULE, 35, z.device)
    network: Any = net if own else lambda *given, **told: net(*given, **told)
    run = passes.prepare(network, noise, context, replace(CONFIG, drag_guidance=3.0))
    features, eps = run(z, HANDLES, True)
    torch.testing.assert_close((features, eps), plain_rows(net, z, context, 3.0))
    early = run(z, HANDLES, False, (8, 8))
    assert early.eps is None and early.features.shape == (1, 16, 8, 8)
    torch.testing.assert_close(early.features, features)
    alone = passes.prepare(network, noise, text, CONFIG)(z, HANDLES, True)
    assert torch.equal(alone.features, net(z, noise.timestep, text, taps=("block14",)).taps["block14"])
    for scale, given, rows in ((1.0, context, 1), (3.0, text, 2)):
        with pytest.raises(ValueError, match=f"drag_guidance {scale:g} needs a context of {rows} rows"):
            passes.prepare(network, noise, given, replace(CONFIG, drag_guidance=scale))


def test_a_guided_update_is_a_step_down_the_loss_of_both_rows(net: UNet) -> None:
    z, text = inputs()
    context, config = torch.cat([text.flip(1), text]), replace(CONFIG, updates=1, optimizer="sgd", drag_guidance=3.0)
    came = drag.drag_latent(net, z, 35, context, SCHEDULE, HANDLES, TARGETS, config=config)
    at = z.clone().requires_grad_()
    loss = motion.motion_supervision_loss_reference(plain_rows(net, at, context, 3.0)[0], HANDLES, TARGETS, 1, (32, 32))
    torch.testing.assert_close(came.losses[0], loss.detach())
    torch.testing.assert_close(came.latent, z - config.lr * torch.autograd.grad(loss, at)[0])


def test_the_loop_computes_its_conditioning_once(net: UNet) -> None:
    made: list[torch.Tensor] = []
    counter = net.time_embedding.register_forward_hook(lambda _, given, made_of_it: made.append(made_of_it))
    assert len(dragged(net).losses) == 3
    counter.remove()
    assert len(made) == 1


def test_checkpointing_keeps_less_and_changes_no_number(net: UNet) -> None:
    def kept_and_gradient(run: networks.Run) -> tuple[int, torch.Tensor]:
        z, text = inputs()
        z, kept = z.requires_grad_(), 0

        def keep(x: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = networks.read(net.walk(z, net.condition(401, text), run=run), z.dtype).eps
        assert out is not None
        (gradient,) = torch.autograd.grad(out.square().sum(), z)
        return kept, gradient

    plain, expected = kept_and_gradient(networks.call)
    less, came = kept_and_gradient(partial(checkpointed, networks.call))
    assert less < plain / 2
    assert torch.allclose(came, expected, rtol=1e-5, atol=1e-6)
    whole, again = dragged(net), dragged(net, replace(CONFIG, checkpoint=True))
    assert torch.allclose(again.latent, whole.latent, atol=1e-5)


def test_a_networks_parameters_are_as_they_were(net: UNet) -> None:
    trained = UNet(net.config)
    trained.load_state_dict(net.state_dict())
    trained.conv_in.requires_grad_(False)
    before = [p.requires_grad for p in trained.parameters()]
    z, text = inputs()
    task = Task(z, ddim.noise_at(SCHEDULE, 35, z.device), text, HANDLES, TARGETS, None, CONFIG)
    course = drag.updates(trained, task)
    next(course)  # within the loop, where another thread may be training the same network
    assert [p.requires_grad for p in trained.parameters()] == before
    course.close()
    assert torch.allclose(dragged(trained).latent, dragged(net).latent, atol=1e-5)
    assert [p.requires_grad for p in trained.parameters()] == before and not all(before) and any(before)
    assert all(p.grad is None for p in trained.parameters())


def test_a_drag_works_in_inference_mode(net: UNet) -> None:
    with torch.inference_mode():
        came = dragged(net)
        inside = UNet(net.config)
        with pytest.raises(ValueError, match=r"loaded under torch\.inference_mode"):
            dragged(inside)
    assert torch.equal(came.latent, dragged(net).latent)


def test_regions_and_auto_give_the_eager_numbers(net: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "regions", partial(compiling.regions, "eager"))
    eager = dragged(net)
    assert torch.equal(dragged(net, replace(CONFIG, compile="auto")).latent, eager.latent)
    assert torch.allclose(dragged(net, replace(CONFIG, compile="regions")).latent, eager.latent, atol=1e-5)

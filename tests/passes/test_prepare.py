"""The loop's passes are cheaper than plain ones and give the same numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from dragsa import ddim, drag
from dragsa.config import DragConfig, UNetConfig
from dragsa.model import unet as networks
from dragsa.model.unet import UNet
from dragsa.passes import compiling
from dragsa.passes.prepare import checkpointed

HANDLES, TARGETS = torch.tensor([[5.0, 6.0], [20.0, 12.0]]), torch.tensor([[15.0, 16.0], [10.0, 12.0]])
CONFIG = DragConfig(updates=3, compile="off")
SCHEDULE = ddim.Schedule(50)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig((8, 8, 8, 8), (2, 2, 2, 2), 16, 4)).requires_grad_(False)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)


def dragged(net: UNet, config: DragConfig = CONFIG) -> drag.DragResult:
    z, text = inputs()
    return drag.drag_latent(net, z, 35, text, SCHEDULE, HANDLES, TARGETS, torch.ones(32, 32), config)


def test_the_loop_computes_its_conditioning_once(net: UNet, monkeypatch: pytest.MonkeyPatch) -> None:
    made, condition = [], UNet.condition

    def counted(self: UNet, t: torch.Tensor, context: torch.Tensor) -> networks.Conditioning:
        made.append(t)
        return condition(self, t, context)

    monkeypatch.setattr(UNet, "condition", counted)
    assert len(dragged(net).losses) == 3
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

"""The compiled step and compiled regions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dragsa import ddim, drag, passes
from dragsa.config import DragConfig, UNetConfig
from dragsa.model.unet import UNet

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


def test_the_whole_step_is_one_graph_wherever_the_handles_are(net: UNet) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    (z, text), frozen = inputs(), torch.rand(8, 8).round()
    noise = ddim.noise_at(SCHEDULE, 35, z.device)
    step = passes.whole(drag.motion_supervision_step, z.device.type, backend)
    task = drag.Task(z, noise, text, HANDLES, TARGETS, frozen, CONFIG)
    first_pass = drag.motion_supervision_step(passes.prepare(net, noise, text, CONFIG), task).first_pass
    for n, shift in enumerate((0.0, 1.0, 2.5, -1.0)):
        # Another edit of that size: conditioning, latent, handles and targets are new.
        run = passes.prepare(net, noise, text + shift, CONFIG, "whole")
        other = task._replace(latent=z + 0.1 * shift, handles=HANDLES + shift, targets=TARGETS - shift)
        arguments = run, other, first_pass
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            came, expected = step(*arguments), drag.motion_supervision_step(*arguments)
        assert torch.allclose(came.loss, expected.loss, rtol=1e-4)
        assert torch.equal(came.handles, expected.handles)
        assert torch.allclose(came.gradient, expected.gradient, atol=1e-4 * expected.gradient.abs().max())
    assert len(graphs) == 1


def test_only_dragsas_own_network_is_compiled(net: UNet) -> None:
    z, text = inputs()
    noise = ddim.noise_at(SCHEDULE, 35, z.device)
    with pytest.raises(ValueError, match="compile is for dragsa's own UNet, came function"):
        passes.prepare(lambda *a, **k: net(*a, **k), noise, text, CONFIG, "regions")
    with pytest.raises(ValueError, match="compile must be one of auto, off, whole, regions, came 'on'"):
        dragged(net, replace(CONFIG, compile="on"))

"""A narrow network of our own, and a short drag on it."""

from __future__ import annotations

import torch

from dragsa import ddim, drag
from dragsa.config import DragConfig
from dragsa.model.unet import UNet

HANDLES, TARGETS = torch.tensor([[5.0, 6.0], [20.0, 12.0]]), torch.tensor([[15.0, 16.0], [10.0, 12.0]])
CONFIG = DragConfig(updates=3, compile="off")
SCHEDULE = ddim.Schedule(50)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)


def dragged(net: UNet, config: DragConfig = CONFIG) -> drag.DragResult:
    z, text = inputs()
    return drag.drag_latent(net, z, 35, text, SCHEDULE, HANDLES, TARGETS, torch.ones(32, 32), config)

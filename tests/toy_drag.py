"""A toy network on which a drag takes milliseconds, with a drag and a single step on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa import ddim, drag, passes
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.drag import drag_latent

SCHEDULE = Schedule(50)
CONTEXT = torch.zeros(1, 77, 8)


class Out(NamedTuple):
    eps: Tensor | None
    taps: dict[str, Tensor]


class Toy:
    """A network that is one smooth convolution of the latent, so that a drag takes milliseconds.

    Keeps what it was asked. `spoil` may change the features, given the number of the pass, from 1.
    """

    def __init__(self, channels: int = 12, spoil: Any = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(channels, 4, 5, 5, generator=generator) / 10
        self.asked: list[tuple[int, str | None]] = []
        self.spoil = spoil

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Out:
        self.asked.append((int(t), until))
        features = F.conv2d(z, self.weight, padding=2)
        if self.spoil is not None:
            features = self.spoil(len(self.asked), features)
        return Out(z.tanh() if until is None else None, {taps[0]: features})


def latent(h: int = 16, w: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(1, 4, h, w, generator=torch.Generator().manual_seed(seed))


HANDLES, TARGETS = torch.tensor([[20.0, 20.0]]), torch.tensor([[40.0, 30.0]])


def drag_toy(net: Any = None, z: Tensor | None = None, handles=HANDLES, targets=TARGETS, mask=None, **config):
    settings = DragConfig(**{"tap": "decoder3", "updates": 6, **config})
    net, z = net or Toy(), latent() if z is None else z
    return drag_latent(net, z, 35, CONTEXT, SCHEDULE, handles, targets, mask, settings)


def step(
    net: Any = None, z: Tensor | None = None, handles=HANDLES, targets=TARGETS, first_pass=None, frozen=None, **config
):
    settings = DragConfig(**{"tap": "decoder3", **config})
    noise = ddim.noise_at(SCHEDULE, 35, torch.device("cpu"))
    z = latent() if z is None else z
    net = net or Toy()
    task = drag.Task(z, noise, CONTEXT, handles, targets, frozen, settings)
    return drag.motion_supervision_step(passes.prepare(net, noise, CONTEXT, settings), task, first_pass)

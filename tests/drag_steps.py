"""One step of the drag loop on a network as it is, for tests that look at a single one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dragsa import drag, passes
from dragsa.config import DragConfig
from dragsa.ddim import Noise


def step(
    net: Any,
    z: Tensor,
    noise: Noise,
    context: Tensor,
    handles: Tensor,
    targets: Tensor,
    first_pass: drag.FirstPass | None = None,
    frozen: Tensor | None = None,
    config: DragConfig = DragConfig(),  # noqa: B008 (a frozen value)
) -> drag.Step:
    run = passes.prepare(net, noise, context, config)
    task = drag.Task(z, noise, context, handles, targets, frozen, config)
    return drag.motion_supervision_step(run, task, first_pass)

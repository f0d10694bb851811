"""Source and target denoised side by side, under an attention hook that the caller chooses for every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dragsa import ddim
from dragsa.hooks import AttentionHook

HookAt = Callable[[int], AttentionHook | None]  # the step, counted from 0 at the first one run -> its hook, or none


@torch.no_grad()
def sample(
    unet: ddim.Denoiser,
    z_source: Tensor,
    z_target: Tensor,
    context: Tensor,
    schedule: ddim.Schedule,
    hook_at: HookAt,
    start: int | None = None,
    stop: int = 0,
    guidance: ddim.Guidance = 1.0,
    uncond: Tensor | None = None,
    progress: ddim.Progress | None = None,
) -> Tensor:
    """z_start -> z_stop of both: (start - stop + 1, 2, C, h, w) from the start down, row 0 source, row 1 target.

    As `ddim.sample_controlled`, with any hook: `hook_at` is asked once before each step. z_source and z_target are
    (1, C, h, w) at level `start` (T); context is (2, n, C'), source's and target's. The hook is given a batch of two
    rows, or with guidance of four, the unconditional pair first.
    """
    start = ddim.check_range(schedule, start, stop)
    if z_source.shape != z_target.shape or z_source.shape[0] != 1 or context.shape[0] != 2:
        came = f"{tuple(z_source.shape)}, {tuple(z_target.shape)} and {tuple(context.shape)}"
        raise ValueError(f"source, target and context must be (1, C, h, w) twice and (2, n, C'), came {came}")
    zs = [torch.cat([z_source, z_target])]  # (2, C, h, w)
    for level in range(start, stop, -1):
        hook = hook_at(start - level)
        zs.append(ddim.sample(unet, zs[-1], context, schedule, level, level - 1, guidance, uncond, hook)[-1])
        if progress is not None:
            progress(start - level + 1, start - stop)
    return torch.stack(zs)

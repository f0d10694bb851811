"""DDIM: inversion and sampling, with classifier-free guidance, as functions of tensors.

Sampling goes z_k -> z_{k-1} with ε(z_k, τ_k), inversion z_{k-1} -> z_k with ε(z_{k-1}, τ_k): T steps each, mirrors of
one another. The levels k and one step are `schedule`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dragsa.config import CONTROL_BLOCKS, is_whole
from dragsa.hooks import KV, AttentionHook, MutualSelfAttention, Named
from dragsa.model.blocks import block_name, check_blocks
from dragsa.schedule import TRAINING_STEPS, VARIANTS, Noise, Schedule, ddim, noise_at, step_down, training_alpha_bars

# The schedule's names are ddim's, too.
__all__ = ["TRAINING_STEPS", "VARIANTS", "Noise", "Schedule", "ddim", "noise_at", "step_down", "training_alpha_bars"]

PAIR = "source", "target"  # the rows of an edit's passes
Progress = Callable[[int, int], None]  # steps done, steps in all
Guidance = float | Sequence[float]  # one scale, or one for each row of the latent
# The K/V of self-attention in one latent's pass: (1, heads, n, d), with guidance (2, …), the unconditional row first.
KVByBlock = Mapping[int, KV]
Record = Callable[[int, KVByBlock], None]  # told the level of a pass and its K/V, in copies
HookAt = Callable[[int], AttentionHook | None]  # step, 0 at a sampler's first one run, in `edit` at z_T -> hook or none


class Denoiser(Protocol):
    """The part of a UNet that samplers ask for: noise prediction `.eps` (B, C, h, w) from z, t and context.

    One whose K/V are recorded takes `taps=("block11.kv", …)` as well, and returns them in `.taps`.
    """

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> Any: ...


class Prediction(NamedTuple):
    """ε (B, C, h, w), and by block the K/V of self-attention for all rows of the pass, B or with guidance 2 B."""

    eps: Tensor
    kv: dict[int, KV]


class Guided(NamedTuple):
    """A network under its prompts, with classifier-free guidance: ε_∅ + s (ε - ε_∅).

    context: (B, n, C') or (1, n, C'). uncond: (1, n, C'), that of the empty prompt. scale: one s, or one for each row.
    rows: the names of the B rows that sites tell a hook (`hooks.Site.rows`); without names one row is "latent".
    """

    unet: Denoiser
    context: Tensor
    uncond: Tensor | None = None
    scale: Guidance = 1.0
    rows: tuple[str, ...] = ()

    def __call__(
        self, z: Tensor, t: Tensor, attention: AttentionHook | None = None, blocks: Sequence[int] = ()
    ) -> Prediction:
        """Predict ε of z (B, C, h, w), and read the K/V of `blocks` as they were before the hook.

        Where every scale is 1 there is one pass of B rows; else one of 2 B: the unconditional rows, then the
        conditional ones. Raises ValueError where a scale other than 1 comes without `uncond`, and for wrong shapes.
        """
        rows, context, uncond = z.shape[0], self.context, self.uncond
        scales = [*map(float, self.scale)] if isinstance(self.scale, Sequence) else [float(self.scale)] * rows
        if len(scales) != rows:
            raise ValueError(f"guidance must be one scale, or one for each of the {rows} rows, came {len(scales)}")
        if context.ndim != 3 or context.shape[0] not in (1, rows):
            raise ValueError(f"context must be ({rows}, tokens, C) or (1, tokens, C), came {tuple(context.shape)}")
        context, guided = context.expand(rows, -1, -1), any(scale != 1.0 for scale in scales)
        if guided:
            if uncond is None or uncond.shape != (1, *context.shape[1:]):
                came = None if uncond is None else tuple(uncond.shape)
                raise ValueError(f"guidance other than 1 needs `uncond`, {(1, *context.shape[1:])}, came {came}")
            z, context = torch.cat([z, z]), torch.cat([uncond.expand_as(context), context])  # (2 B, ...)
        told: dict[str, Any] = {"taps": tuple(f"{block_name(block)}.kv" for block in blocks)} if blocks else {}
        if attention is not None:
            if isinstance(self.unet, partial) and "attention" in self.unet.keywords:
                raise ValueError("two hooks, one bound to the network by functools.partial and one given: compose them")
            names = self.rows or ("latent",) * (rows == 1)
            told["attention"] = Named(attention, (*(f"{name} uncond" for name in names if guided), *names))
        out = self.unet(z, t, context, **told)
        kv = {block: out.taps[f"{block_name(block)}.kv"] for block in blocks}
        if not guided:
            return Prediction(out.eps, kv)
        eps_uncond, eps = out.eps.chunk(2)
        scale = torch.tensor(scales, dtype=z.dtype, device=z.device).view(rows, 1, 1, 1)
        return Prediction(eps_uncond + scale * (eps - eps_uncond), kv)


def predict(
    unet: Denoiser,
    z: Tensor,
    t: Tensor,
    context: Tensor,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    attention: AttentionHook | None = None,
) -> Tensor:
    """Return ε of z (B, C, h, w) at timestep t, with guidance as `Guided` has it."""
    return Guided(unet, context, uncond, guidance)(z, t, attention).eps


class Recorder(NamedTuple):
    """A function that is told the K/V of some blocks of a pass's first latent; `always`, or of passes with a hook."""

    record: Record
    blocks: tuple[int, ...]
    always: bool

    def tell(self, level: int, kv: KVByBlock, rows: int) -> None:
        """Pass on copies of the first latent's rows of a pass of `rows` latents: one, or with guidance its two."""

        def copy(x: Tensor) -> Tensor:  # lets go of the other rows, and its heads lie one behind the other
            return x[::rows].clone(memory_format=torch.contiguous_format)  # (1 or 2, heads, n, d)

        self.record(level, {block: KV(copy(key), copy(value)) for block, (key, value) in kv.items()})


def recorder(record: Record | None, blocks: Sequence[int], z: Tensor, always: bool = True) -> Recorder | None:
    """Return the recorder, if there is to be one. Raises ValueError for an unknown block, and for several latents."""
    if record is None:
        return None
    check_blocks(tuple(blocks))
    if z.shape[0] != 1:
        raise ValueError(f"K/V are recorded for one latent at a time, came {z.shape[0]}")
    return Recorder(record, tuple(blocks), always)


def invert(
    unet: Denoiser,
    z0: Tensor,
    context: Tensor,
    schedule: Schedule,
    steps: int | None = None,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    record_blocks: Sequence[int] = CONTROL_BLOCKS,
    *,
    attention: AttentionHook | None = None,
) -> Tensor:
    """Invert by DDIM (section 3.3): z_0 (B, C, h, w) -> z_0 … z_k, (k + 1, B, C, h, w), k = `steps` of the T (all).

    `attention` is given to every pass. `record` is told the K/V of `record_blocks` in the step to z_k, for one latent
    (B = 1). They are those of z_{k-1}, where sampling would have those of z_k at the same timestep: an approximation of
    a sampling pass that costs none. The plain twin is the first loop of `edit` in scripts/plain.py.
    """
    guided, telling = Guided(unet, context, uncond, guidance), recorder(record, record_blocks, z0)
    return _ascend(guided, z0, schedule, steps, telling, progress, attention=attention).latents


class FixedPointInversion(NamedTuple):
    """latents: as `invert` gives. residuals (k,): by step, the last iteration's change over the latent's norm."""

    latents: Tensor
    residuals: Tensor
    converged: bool


def invert_fixed_point(
    unet: Denoiser,
    z0: Tensor,
    context: Tensor,
    schedule: Schedule,
    steps: int | None = None,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    record_blocks: Sequence[int] = CONTROL_BLOCKS,
    *,
    iterations: int = 5,
    tolerance: float = 1e-3,
    attention: AttentionHook | None = None,
) -> FixedPointInversion:
    """Invert with ε(z_k, τ_k), the exact inverse of sampling, found by fixed-point iteration.

    z_k ← the step from z_{k-1} with ε(z_k, τ_k), started at plain inversion's z_k, at most `iterations` times, fewer
    where the change falls under `tolerance`. It need not converge. `record` is told the last iteration's K/V.
    """
    if not is_whole(iterations) or iterations < 1:
        raise ValueError(f"iterations must be a whole number from 1, came {iterations!r}")
    guided, telling = Guided(unet, context, uncond, guidance), recorder(record, record_blocks, z0)
    return _ascend(guided, z0, schedule, steps, telling, progress, (iterations, tolerance), attention)


@torch.no_grad()
def _ascend(
    guided: Guided,
    z0: Tensor,
    schedule: Schedule,
    steps: int | None,
    telling: Recorder | None,
    progress: Progress | None,
    fixed_point: tuple[int, float] = (0, 0.0),
    attention: AttentionHook | None = None,
) -> FixedPointInversion:
    """Invert, by no fixed-point iteration or by so many down to a tolerance."""
    total, (iterations, tolerance) = schedule.steps if steps is None else steps, fixed_point
    schedule.check_level(total, "steps")
    blocks = () if telling is None else telling.blocks
    z, zs, residuals = z0, [z0], []
    for level in range(1, total + 1):
        # "omitted" makes no first step, and each later one goes a level lower than its label says.
        k, residual = level - 1 if schedule.variant == "omitted" else level, 0.0
        if k > 0:
            (alpha_bar, alpha_bar_to), timestep = schedule.alpha_bars[k - 1 : k + 1], schedule.timesteps[level - 1]
            out = guided(z, timestep, attention, blocks)
            z_prev, z = z, ddim(z, out.eps, alpha_bar, alpha_bar_to)
            for _ in range(iterations):
                out = guided(z, timestep, attention, blocks)
                before, z = z, ddim(z_prev, out.eps, alpha_bar, alpha_bar_to)
                residual = ((z - before).norm() / z.norm()).item()
                if residual < tolerance:
                    break
            if telling is not None:
                telling.tell(level, out.kv, rows=1)
        zs.append(z)
        residuals.append(residual)
        if progress is not None:
            progress(level, total)
    converged = all(residual < tolerance for residual in residuals)  # not so where one is NaN
    return FixedPointInversion(torch.stack(zs), torch.tensor(residuals), converged)


@torch.no_grad()
def descend(
    guided: Guided,
    z: Tensor,
    schedule: Schedule,
    levels: range,
    hook_at: HookAt,
    telling: Recorder | None = None,
    blend: Callable[[Tensor, int], Tensor] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Sample level by level, the loop behind all sampling: z (B, C, h, w) -> (levels + 1, B, C, h, w), z the first.

    levels: as `levels_between` gives them. hook_at: asked before each step. blend: given the latent after each step,
    and its level.
    """
    zs = [z]
    for step, level in enumerate(levels):
        hook = hook_at(step)
        told = telling if telling is not None and (telling.always or hook is not None) else None
        out = guided(z, schedule.timesteps[level - 1], hook, () if told is None else told.blocks)
        z = step_down(z, out.eps, schedule, level)
        if blend is not None:
            z = blend(z, level - 1)
        zs.append(z)
        if told is not None:
            told.tell(level, out.kv, rows=len(z))
        if progress is not None:
            progress(step + 1, len(levels))
    return torch.stack(zs)


def levels_between(schedule: Schedule, start: int | None, stop: int) -> range:
    """Return the levels that are stepped down from, start (T) … stop + 1; ValueError unless 0 ≤ stop ≤ start ≤ T."""
    start = schedule.steps if start is None else start
    schedule.check_level(start, "start")
    schedule.check_level(stop, "stop")
    if stop > start:
        raise ValueError(f"sampling goes down: stop {stop} lies above start {start}")
    return range(start, stop, -1)


def sample(
    unet: Denoiser,
    z: Tensor,
    context: Tensor,
    schedule: Schedule,
    start: int | None = None,
    stop: int = 0,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    attention: AttentionHook | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    record_blocks: Sequence[int] = CONTROL_BLOCKS,
    *,
    hook_at: HookAt | None = None,
    rows: Sequence[str] = (),
) -> Tensor:
    """Sample by DDIM from level `start` (T) down to `stop`: (start - stop + 1, B, C, h, w), the start first.

    `attention` is given to every step; `hook_at` in its place is asked before each step, counted from 0 at the first.
    `record` is told the K/V of `record_blocks` in the step from z_k, for one latent (B = 1). rows: the latents' names,
    which a hook's sites tell.
    """
    if attention is not None and hook_at is not None:
        raise ValueError("give one hook for all steps (attention) or one by step (hook_at), not both")
    if rows and len(rows) != z.shape[0]:
        raise ValueError(f"rows: expected a name for each of the {z.shape[0]} latents, came {len(rows)}")
    levels, telling = levels_between(schedule, start, stop), recorder(record, record_blocks, z)
    guided = Guided(unet, context, uncond, guidance, tuple(rows))
    return descend(guided, z, schedule, levels, hook_at or (lambda step: attention), telling, progress=progress)


def sample_controlled(
    unet: Denoiser,
    z_source: Tensor,
    z_target: Tensor,
    context: Tensor,
    schedule: Schedule,
    start: int | None = None,
    stop: int = 0,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    control_step: int | None = 0,
    control_blocks: Sequence[int] = CONTROL_BLOCKS,
    may_move: Tensor | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    hook_at: HookAt | None = None,
) -> Tensor:
    """Denoise source and target side by side, the target's self-attention on the source's K and V (section 3.1).

    The plain twin is the last loop of `edit` in scripts/plain.py.

    z_source and z_target are (1, C, h, w) at level `start`; context (2, n, C') is source's and target's. Control acts
    from the `control_step`-th step run here (counted from 0; None: never) in `control_blocks`. With guidance, the
    unconditional and the conditional half each attend to their own source row. `may_move` (h, w) in [0, 1] blends:
    where it is 0 the target's latent is the source's after every step. `record` is told the source's K/V in every step
    under control. Returns (start - stop + 1, 2, C, h, w) from the start down, row 0 the source, row 1 the target.

    `hook_at` gives any other control: asked once before each step for the hook of two rows, or with guidance of four,
    the unconditional pair first. It says when, too: `control_step` is then not looked at.
    """
    levels = levels_between(schedule, start, stop)
    if z_source.shape != z_target.shape or z_source.shape[0] != 1:
        came = f"{tuple(z_source.shape)} and {tuple(z_target.shape)}"
        raise ValueError(f"source and target latent must both be (1, C, h, w), came {came}")
    if context.shape[0] != 2:
        raise ValueError(f"context must be (2, n, C'), source and target, came {tuple(context.shape)}")
    control = MutualSelfAttention(tuple(control_blocks))

    def mutual_at(step: int) -> AttentionHook | None:
        return control if control_step is not None and step >= control_step else None

    def blended(z: Tensor, level: int) -> Tensor:
        return z if may_move is None else torch.stack([z[0], z[0] + may_move * (z[1] - z[0])])

    guided, z = Guided(unet, context, uncond, guidance, PAIR), torch.cat([z_source, z_target])  # (2, C, h, w)
    telling = recorder(record, control.blocks, z_source, always=False)
    return descend(guided, z, schedule, levels, hook_at or mutual_at, telling, blended, progress)

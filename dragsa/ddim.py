"""DDIM: the schedule, one step each way, inversion and sampling, as functions of tensors.

Levels count noise: z_0 is the clean latent and z_T the noisiest, z_k stands at timestep τ_k with ᾱ_k. Sampling goes
z_k -> z_{k-1} with ε(z_k, τ_k), inversion z_{k-1} -> z_k with ε(z_{k-1}, τ_k): T steps each, mirrors of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from dragsa.config import CONTROL_BLOCKS, Variant, is_whole
from dragsa.hooks import KV, AttentionHook, MutualSelfAttention, block_name, check_blocks
from dragsa.model.noise import TRAINING_STEPS, training_alpha_bars

VARIANTS = get_args(Variant)

Progress = Callable[[int, int], None]  # steps done, steps in all
Guidance = float | Sequence[float]  # one scale, or one for each row of the latent
# The K/V of self-attention in one latent's pass: (1, heads, n, d), with guidance (2, …), the unconditional row first.
KVByBlock = Mapping[int, KV]
Record = Callable[[int, KVByBlock], None]  # told the level of a pass and its K/V, in copies
HookAt = Callable[[int], AttentionHook | None]  # the step, counted from 0 at the first one run -> its hook, or none


class Denoiser(Protocol):
    """The part of a UNet that samplers ask for: noise prediction `.eps` (B, C, h, w) from z, t and context.

    One whose K/V are recorded takes `taps=("block11.kv", …)` as well, and returns them in `.taps`.
    """

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> Any: ...


@dataclass(frozen=True)
class Schedule:
    """T levels of noise above the clean end, and which timestep each stands at.

    `steps` is T; `variant` one of

    - "restored": timesteps 1, 21, …, 981 (for T = 50) and z_0 clean, ᾱ_0 = 1;
    - "even": 19, 39, …, 999, z_0 clean;
    - "dragdiffusion": 1, 21, …, 981, z_0 at the ᾱ of timestep 0, as DragDiffusion's program has it;
    - "masactrl": 0, 20, …, 980, z_0 likewise, so that the first step is none, as MasaCtrl's settings make it;
    - "omitted": as "dragdiffusion", but inversion leaves out z_0 -> z_1 and its labels shift by one: the fault that
      section 3.3 of the paper repairs, kept for comparison.

    Raises ValueError for an unknown variant or a T that does not fit 1000 training steps.
    """

    steps: int = 50
    variant: Variant = "restored"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown schedule variant {self.variant!r}: known are {', '.join(VARIANTS)}")
        if not is_whole(self.steps) or not 1 <= self.steps < TRAINING_STEPS:
            raise ValueError(f"steps must be a whole number from 1 to {TRAINING_STEPS - 1}, came {self.steps!r}")

    @cached_property
    def timesteps(self) -> Tensor:
        """τ_1 … τ_T, ascending, long (T,)."""
        if self.variant == "even":
            return torch.round((torch.arange(self.steps) + 1) * (TRAINING_STEPS / self.steps)).long() - 1
        first = 0 if self.variant == "masactrl" else 1
        return torch.arange(self.steps) * (TRAINING_STEPS // self.steps) + first

    @cached_property
    def alpha_bars(self) -> Tensor:
        """ᾱ_0 … ᾱ_T, the clean end first, float32 (T + 1,)."""
        training = training_alpha_bars()
        clean = torch.ones(1, dtype=torch.float64) if self.variant in ("restored", "even") else training[:1]
        return torch.cat([clean, training[self.timesteps]]).float()

    def check_level(self, level: int, name: str = "level", lowest: int = 0) -> None:
        """Raise a ValueError unless lowest ≤ level ≤ T."""
        if not is_whole(level) or not lowest <= level <= self.steps:
            raise ValueError(f"{name} must be a whole number from {lowest} to T = {self.steps}, came {level!r}")


class Noise(NamedTuple):
    """How noisy a latent z_k is, as 0-dimensional tensors: its timestep, and ᾱ of z_k and of z_{k-1}."""

    timestep: Tensor
    alpha_bar: Tensor
    alpha_bar_prev: Tensor


def noise_at(schedule: Schedule, level: int, device: torch.device) -> Noise:
    """Return the noise of z_k, k = `level` ≥ 1."""
    # Copies: a schedule made under torch.inference_mode has tensors that no gradient's pass may keep.
    prev, here = schedule.alpha_bars[level - 1 : level + 1].to(device, copy=True)
    return Noise(schedule.timesteps[level - 1].to(device, copy=True), here, prev)


def ddim(z: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_to: Tensor) -> Tensor:
    """Take the deterministic DDIM step from ᾱ to ᾱ', up or down (Song et al. 2021, equation 12 with σ = 0).

    z' = √ᾱ' (z - √(1-ᾱ) ε) / √ᾱ + √(1-ᾱ') ε. The ᾱ are scalars (0-dimensional tensors).
    """
    z_0 = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    return alpha_bar_to.sqrt() * z_0 + (1 - alpha_bar_to).sqrt() * eps


def step_down(z: Tensor, eps: Tensor, schedule: Schedule, level: int) -> Tensor:
    """Step down, z_k -> z_{k-1}, with eps = ε(z_k, τ_k) and k = `level` ≥ 1."""
    return ddim(z, eps, schedule.alpha_bars[level], schedule.alpha_bars[level - 1])


class Prediction(NamedTuple):
    """ε (B, C, h, w), and by block the K/V of self-attention for all rows of the pass, B or with guidance 2 B."""

    eps: Tensor
    kv: dict[int, KV]


class Guided(NamedTuple):
    """A network under its prompts, with classifier-free guidance: ε_∅ + s (ε - ε_∅).

    context: (B, n, C') or (1, n, C'). uncond: (1, n, C'), that of the empty prompt. scale: one s, or one for each row.
    """

    unet: Denoiser
    context: Tensor
    uncond: Tensor | None = None
    scale: Guidance = 1.0

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
        taps: dict[str, Any] = {"taps": tuple(f"{block_name(block)}.kv" for block in blocks)} if blocks else {}
        out = self.unet(z, t, context, attention=attention, **taps)
        kv = {block: out.taps[f"{block_name(block)}.kv"] for block in blocks}
        if not guided:
            return Prediction(out.eps, kv)
        eps_uncond, eps = out.eps.chunk(2)
        scale = torch.tensor(scales, dtype=z.dtype, device=z.device).view(rows, 1, 1, 1)
        return Prediction(eps_uncond + scale * (eps - eps_uncond), kv)


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
) -> Tensor:
    """Invert by DDIM (section 3.3): z_0 (B, C, h, w) -> z_0 … z_k, (k + 1, B, C, h, w), k = `steps` of the T (all).

    `record` is told the K/V of `record_blocks` in the step to z_k, for one latent (B = 1). They are those of z_{k-1},
    where sampling would have those of z_k at the same timestep: an approximation of a sampling pass that costs none.
    """
    guided, telling = Guided(unet, context, uncond, guidance), recorder(record, record_blocks, z0)
    return _ascend(guided, z0, schedule, steps, telling, progress).latents


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
) -> FixedPointInversion:
    """Invert with ε(z_k, τ_k), the exact inverse of sampling, found by fixed-point iteration.

    z_k ← the step from z_{k-1} with ε(z_k, τ_k), started at plain inversion's z_k, at most `iterations` times, fewer
    where the change falls under `tolerance`. It need not converge. `record` is told the last iteration's K/V.
    """
    if not is_whole(iterations) or iterations < 1:
        raise ValueError(f"iterations must be a whole number from 1, came {iterations!r}")
    guided, telling = Guided(unet, context, uncond, guidance), recorder(record, record_blocks, z0)
    return _ascend(guided, z0, schedule, steps, telling, progress, (iterations, tolerance))


@torch.no_grad()
def _ascend(
    guided: Guided,
    z0: Tensor,
    schedule: Schedule,
    steps: int | None,
    telling: Recorder | None,
    progress: Progress | None,
    fixed_point: tuple[int, float] = (0, 0.0),
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
            out = guided(z, timestep, blocks=blocks)
            z_prev, z = z, ddim(z, out.eps, alpha_bar, alpha_bar_to)
            for _ in range(iterations):
                out = guided(z, timestep, blocks=blocks)
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
) -> Tensor:
    """Sample by DDIM from level `start` (T) down to `stop`: (start - stop + 1, B, C, h, w), the start first.

    `attention` is given to every step; where it should act at some steps only, call once for each stretch of levels.
    `record` is told the K/V of `record_blocks` in the step from z_k, for one latent (B = 1).
    """
    levels, telling = levels_between(schedule, start, stop), recorder(record, record_blocks, z)
    guided = Guided(unet, context, uncond, guidance)
    return descend(guided, z, schedule, levels, lambda step: attention, telling, progress=progress)


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

    guided, z = Guided(unet, context, uncond, guidance), torch.cat([z_source, z_target])  # (2, C, h, w)
    telling = recorder(record, control.blocks, z_source, always=False)
    return descend(guided, z, schedule, levels, hook_at or mutual_at, telling, blended, progress)

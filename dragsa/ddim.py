"""DDIM: the schedule, one step each way, inversion and sampling, as functions of tensors.

Levels count noise: z_0 is the clean latent and z_T the noisiest, z_k stands at timestep τ_k with ᾱ_k. Sampling goes
z_k -> z_{k-1} with ε(z_k, τ_k), inversion z_{k-1} -> z_k with ε(z_{k-1}, τ_k): T steps each, mirrors of one another.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from dragsa.config import CONTROL_BLOCKS, Variant
from dragsa.hooks import KV, AttentionHook, MutualSelfAttention, ReplayKV, block_name, check_blocks

TRAINING_STEPS = 1000
VARIANTS = get_args(Variant)

Progress = Callable[[int, int], None]  # steps done, steps in all
Guidance = float | Sequence[float]  # one scale, or one for each row of the latent
# The K/V of self-attention in one latent's pass: (1, heads, n, d), with guidance (2, …), the unconditional row first.
KVByBlock = Mapping[int, KV]
Record = Callable[[int, KVByBlock], None]  # told the level of a pass and its K/V, in copies
HookAt = Callable[[int], AttentionHook | None]  # the step, counted from 0 at the first one run -> its hook, or none


class Denoiser(Protocol):
    """What the samplers ask of a UNet: noise prediction `.eps` (B, C, h, w) from z, t and context.

    One whose K/V are recorded takes `taps=("block11.kv", …)` as well, and returns them in `.taps`.
    """

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> Any: ...


def training_alpha_bars() -> Tensor:
    """ᾱ of timesteps 0 … 999, float64 (1000,): β scaled-linear from 0.00085 to 0.012."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - beta, dim=0)


def is_whole(value: Any) -> bool:
    """An integer of Python's or NumPy's, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


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


def ddim(z: Tensor, eps: Tensor, alpha_bar: Tensor, alpha_bar_to: Tensor) -> Tensor:
    """The deterministic DDIM step from ᾱ to ᾱ', up or down (Song et al. 2021, equation 12 with σ = 0).

    z' = √ᾱ' (z - √(1-ᾱ) ε) / √ᾱ + √(1-ᾱ') ε. The ᾱ are scalars (0-dimensional tensors).
    """
    z_0 = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    return alpha_bar_to.sqrt() * z_0 + (1 - alpha_bar_to).sqrt() * eps


def step_down(z: Tensor, eps: Tensor, schedule: Schedule, level: int) -> Tensor:
    """z_k -> z_{k-1}, with eps = ε(z_k, τ_k) and k = `level` ≥ 1."""
    return ddim(z, eps, schedule.alpha_bars[level], schedule.alpha_bars[level - 1])


def predict(
    unet: Denoiser,
    z: Tensor,
    t: Tensor,
    context: Tensor,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    attention: AttentionHook | None = None,
) -> Tensor:
    """ε of z (B, C, h, w), with classifier-free guidance: ε_∅ + s (ε - ε_∅).

    context is (B, n, C') or (1, n, C'), `uncond` (1, n, C') that of the empty prompt. One scale s, or one a row. Where
    every scale is 1 there is one pass of B rows; else one of 2 B: the unconditional rows, then the conditional ones.
    Raises ValueError where a scale other than 1 comes without `uncond`.
    """
    return predict_and_read(unet, z, t, context, guidance, uncond, attention).eps


class Prediction(NamedTuple):
    """ε (B, C, h, w), and by block the K/V of self-attention for all rows of the pass, B or with guidance 2 B."""

    eps: Tensor
    kv: dict[int, KV]


def predict_and_read(
    unet: Denoiser,
    z: Tensor,
    t: Tensor,
    context: Tensor,
    guidance: Guidance = 1.0,
    uncond: Tensor | None = None,
    attention: AttentionHook | None = None,
    blocks: Sequence[int] = (),
) -> Prediction:
    """`predict`, and the K/V of `blocks` as they were before the hook."""
    rows = z.shape[0]
    scales = [float(s) for s in guidance] if isinstance(guidance, Sequence) else [float(guidance)] * rows
    if len(scales) != rows:
        raise ValueError(f"guidance must be one scale, or one for each of the {rows} rows, came {len(scales)}")
    if context.ndim != 3 or context.shape[0] not in (1, rows):
        raise ValueError(f"context must be ({rows}, tokens, C) or (1, tokens, C), came {tuple(context.shape)}")
    context = context.expand(rows, -1, -1)
    taps: dict[str, Any] = {"taps": tuple(f"{block_name(block)}.kv" for block in blocks)} if blocks else {}

    def read(out: Any) -> dict[int, KV]:
        return {block: out.taps[f"{block_name(block)}.kv"] for block in blocks}

    if all(scale == 1.0 for scale in scales):
        out = unet(z, t, context, attention=attention, **taps)
        return Prediction(out.eps, read(out))
    if uncond is None:
        raise ValueError("guidance other than 1 needs `uncond`, the embedding of the empty prompt")
    if uncond.shape != (1, *context.shape[1:]):
        raise ValueError(f"uncond must be {(1, *context.shape[1:])}, came {tuple(uncond.shape)}")
    both = torch.cat([uncond.expand_as(context), context])  # (2 B, n, C')
    out = unet(torch.cat([z, z]), t, both, attention=attention, **taps)
    eps_uncond, eps = out.eps.chunk(2)
    scale = torch.tensor(scales, dtype=z.dtype, device=z.device).view(rows, 1, 1, 1)
    return Prediction(eps_uncond + scale * (eps - eps_uncond), read(out))


def first_rows(kv: KVByBlock, rows: int) -> dict[int, KV]:
    """Of K/V read in a pass of `rows` latents, the first latent's: its row, or with guidance its two; in copies.

    A copy lets go of the other rows, and its heads lie one behind the other, as a file has them.
    """

    def copy(x: Tensor) -> Tensor:
        return x[::rows].clone(memory_format=torch.contiguous_format)  # (1 or 2, heads, n, d)

    return {block: KV(copy(key), copy(value)) for block, (key, value) in kv.items()}


def replay(source_kv: Callable[[int], KVByBlock], level: int, blocks: Sequence[int], rows: int) -> ReplayKV:
    """The hook that gives recorded K/V to a pass of one latent: of `rows` 1, or 2 where there is guidance.

    Raises ValueError where the level or a block was not recorded, or the unconditional row is wanted and was not.
    """
    try:
        kv = source_kv(level)
        chosen = {block: kv[block] for block in blocks}
    except KeyError:
        raise ValueError(f"level {level}: the source's K/V of blocks {list(blocks)} were not all recorded") from None
    if any(key.shape[0] < rows for key, _ in chosen.values()):
        raise ValueError(f"level {level}: the source's K/V were recorded without guidance, and the edit has it")
    return ReplayKV({block: KV(key[-rows:], value[-rows:]) for block, (key, value) in chosen.items()})


class InversionStep(NamedTuple):
    """One noising step: from which ᾱ to which, and the timestep the network is told."""

    alpha_bar: Tensor
    alpha_bar_to: Tensor
    timestep: Tensor


def inversion_step(schedule: Schedule, level: int) -> InversionStep | None:
    """The step that gives z_k from z_{k-1}, k = `level` ≥ 1; None where the variant makes none and z_k is z_{k-1}.

    "omitted" makes no first step, and every later one goes a level lower than its label: what is called z_k, and told
    to the network as such, stands at ᾱ_{k-1}.
    """
    k = level - 1 if schedule.variant == "omitted" else level
    if k == 0:
        return None
    return InversionStep(schedule.alpha_bars[k - 1], schedule.alpha_bars[k], schedule.timesteps[level - 1])


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
    """DDIM inversion (section 3.3): z_0 (B, C, h, w) -> z_0 … z_k, (k + 1, B, C, h, w), k = `steps` of the T (all).

    `record` is told the K/V of `record_blocks` in the step to z_k, for one latent (B = 1). They are those of z_{k-1},
    where sampling would have those of z_k at the same timestep: an approximation of a sampling pass that costs none.
    """
    return _inversion(
        unet, z0, context, schedule, steps, guidance, uncond, progress, record, record_blocks, iterations=0
    ).latents


class FixedPointInversion(NamedTuple):
    """latents: as `invert` gives. residuals (k,): the last iteration's change, relative to the latent's norm, by step.
    converged: every residual is under the tolerance."""

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
    """Inversion with ε(z_k, τ_k), the exact inverse of sampling, found by fixed-point iteration.

    z_k ← the step from z_{k-1} with ε(z_k, τ_k), started at plain inversion's z_k, at most `iterations` times, fewer
    where the change falls under `tolerance`. Says whether it converged; it need not. `record` as for `invert`, told
    the last iteration's K/V.
    """
    if not is_whole(iterations) or iterations < 1:
        raise ValueError(f"iterations must be a whole number from 1, came {iterations!r}")
    return _inversion(
        unet, z0, context, schedule, steps, guidance, uncond, progress, record, record_blocks, iterations, tolerance
    )


@torch.no_grad()
def _inversion(
    unet: Denoiser,
    z0: Tensor,
    context: Tensor,
    schedule: Schedule,
    steps: int | None,
    guidance: Guidance,
    uncond: Tensor | None,
    progress: Progress | None,
    record: Record | None,
    record_blocks: Sequence[int],
    iterations: int,
    tolerance: float = 0.0,
) -> FixedPointInversion:
    """Both inversions; the plain one has no iterations."""
    total = schedule.steps if steps is None else steps
    schedule.check_level(total, "steps")
    blocks = check_record(record, record_blocks, z0)
    z, zs, residuals = z0, [z0], []
    for level in range(1, total + 1):
        step, residual = inversion_step(schedule, level), 0.0
        if step is not None:
            alpha_bar, alpha_bar_to, timestep = step
            out = predict_and_read(unet, z, timestep, context, guidance, uncond, blocks=blocks)
            below, z = z, ddim(z, out.eps, alpha_bar, alpha_bar_to)
            for _ in range(iterations):
                out = predict_and_read(unet, z, timestep, context, guidance, uncond, blocks=blocks)
                before, z = z, ddim(below, out.eps, alpha_bar, alpha_bar_to)
                residual = ((z - before).norm() / z.norm()).item()
                if residual < tolerance:
                    break
            if record is not None:
                record(level, first_rows(out.kv, rows=1))
        zs.append(z)
        residuals.append(residual)
        if progress is not None:
            progress(level, total)
    converged = all(residual < tolerance for residual in residuals)  # not so where one is NaN
    return FixedPointInversion(torch.stack(zs), torch.tensor(residuals), converged)


def check_record(record: Record | None, blocks: Sequence[int], z: Tensor) -> tuple[int, ...]:
    """The blocks to read: none without `record`. Raises ValueError for an unknown one, and for several latents."""
    if record is None:
        return ()
    check_blocks(tuple(blocks))
    if z.shape[0] != 1:
        raise ValueError(f"K/V are recorded for one latent at a time, came {z.shape[0]}")
    return tuple(blocks)


def check_range(schedule: Schedule, start: int | None, stop: int) -> int:
    """The level that sampling starts from. Raises ValueError unless 0 ≤ stop ≤ start ≤ T."""
    start = schedule.steps if start is None else start
    schedule.check_level(start, "start")
    schedule.check_level(stop, "stop")
    if stop > start:
        raise ValueError(f"sampling goes down: stop {stop} lies above start {start}")
    return start


@torch.no_grad()
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
    """DDIM sampling from level `start` (T) down to `stop`: (start - stop + 1, B, C, h, w), the start first.

    `attention` is given to every step; where it should act at some steps only, call once for each stretch of levels.
    `record` is told the K/V of `record_blocks` in the step from z_k, for one latent (B = 1).
    """
    start = check_range(schedule, start, stop)
    blocks = check_record(record, record_blocks, z)
    zs = [z]
    for level in range(start, stop, -1):
        timestep = schedule.timesteps[level - 1]
        out = predict_and_read(unet, z, timestep, context, guidance, uncond, attention, blocks)
        z = step_down(z, out.eps, schedule, level)
        zs.append(z)
        if record is not None:
            record(level, first_rows(out.kv, rows=1))
        if progress is not None:
            progress(start - level + 1, start - stop)
    return torch.stack(zs)


@torch.no_grad()
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
    """Source and target denoised side by side, the target's self-attention on the source's K and V (section 3.4).

    z_source and z_target are (1, C, h, w) at level `start`; context (2, n, C') is source's and target's. Control acts
    from the `control_step`-th step run here (counted from 0; None: never) in `control_blocks`. With guidance, the
    unconditional and the conditional half each attend to their own source row. `may_move` (h, w) in [0, 1] blends:
    where it is 0 the target's latent is the source's after every step. `record` is told the source's K/V in every step
    under control. Returns (start - stop + 1, 2, C, h, w) from the start down, row 0 the source, row 1 the target.

    `hook_at` gives any other control: asked once before each step for the hook of two rows, or with guidance of four,
    the unconditional pair first. It says when, too: `control_step` is then not looked at.
    """
    start = check_range(schedule, start, stop)
    if z_source.shape != z_target.shape or z_source.shape[0] != 1:
        came = f"{tuple(z_source.shape)} and {tuple(z_target.shape)}"
        raise ValueError(f"source and target latent must both be (1, C, h, w), came {came}")
    if context.shape[0] != 2:
        raise ValueError(f"context must be (2, n, C'), source and target, came {tuple(context.shape)}")
    control = MutualSelfAttention(tuple(control_blocks))

    def mutual_at(step: int) -> AttentionHook | None:
        return control if control_step is not None and step >= control_step else None

    z = torch.cat([z_source, z_target])  # (2, C, h, w)
    zs = [z]
    for level in range(start, stop, -1):
        hook = (mutual_at if hook_at is None else hook_at)(start - level)
        timestep = schedule.timesteps[level - 1]
        blocks = () if record is None or hook is None else control.blocks
        out = predict_and_read(unet, z, timestep, context, guidance, uncond, hook, blocks)
        z = step_down(z, out.eps, schedule, level)
        if may_move is not None:
            z = torch.stack([z[0], z[0] + may_move * (z[1] - z[0])])
        zs.append(z)
        if record is not None and hook is not None:
            record(level, first_rows(out.kv, rows=2))
        if progress is not None:
            progress(start - level + 1, start - stop)
    return torch.stack(zs)


@torch.no_grad()
def sample_replayed(
    unet: Denoiser,
    z_target: Tensor,
    context: Tensor,
    schedule: Schedule,
    source_kv: Callable[[int], KVByBlock],
    start: int | None = None,
    stop: int = 0,
    guidance: float = 1.0,
    uncond: Tensor | None = None,
    control_step: int | None = 0,
    control_blocks: Sequence[int] = CONTROL_BLOCKS,
    may_move: Tensor | None = None,
    source_latents: Mapping[int, Tensor] | Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The target's rows of `sample_controlled`, the source's K and V taken from an earlier pass of it: half the work.

    Of the source its target needs K and V alone, and these depend on no target. `source_kv` gives them by level, as
    `record` was told them: `kept.__getitem__` after `record=kept.__setitem__`. z_target is (1, C, h, w) at level
    `start`, context (1, n, C') and the guidance scale are the target's. Blending takes the source's z_k from
    `source_latents[k]`, (1, C, h, w). Returns (start - stop + 1, 1, C, h, w) from the start down.

    Raises ValueError where what is needed was not recorded.
    """
    start = check_range(schedule, start, stop)
    if z_target.shape[0] != 1:
        raise ValueError(f"target latent must be (1, C, h, w), came {tuple(z_target.shape)}")
    if may_move is not None and source_latents is None:
        raise ValueError("blending needs the source's latents at every level")
    z, zs, rows = z_target, [z_target], 1 if guidance == 1.0 else 2
    for level in range(start, stop, -1):
        controlled = control_step is not None and start - level >= control_step
        hook = replay(source_kv, level, control_blocks, rows) if controlled else None
        eps = predict(unet, z, schedule.timesteps[level - 1], context, guidance, uncond, hook)
        z = step_down(z, eps, schedule, level)
        if may_move is not None and source_latents is not None:
            z_source = source_latents[level - 1]
            z = z_source + may_move * (z - z_source)
        zs.append(z)
        if progress is not None:
            progress(start - level + 1, start - stop)
    return torch.stack(zs)

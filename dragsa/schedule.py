"""The schedule of noise, and one DDIM step along it.

Levels count noise: z_0 is the clean latent and z_T the noisiest, z_k stands at timestep τ_k with ᾱ_k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dragsa.config import Variant, is_whole
from dragsa.model.unet import TRAINING_STEPS, training_alpha_bars

VARIANTS = get_args(Variant)


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

    Timesteps but those of "even" are ⌊1000 / T⌋ apart: z_T stands at 981 for T = 50, but at 600 for T = 600, far from
    noise. Raises ValueError for an unknown variant, or a T that is not from 1 to 999.
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
    """The noise level of a latent z_k, as 0-dimensional tensors: its timestep, and ᾱ of z_k and of z_{k-1}."""

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

    z' = √ᾱ' (z - √(1-ᾱ) ε) / √ᾱ + √(1-ᾱ') ε. The ᾱ are scalars (0-dimensional tensors). The plain twin is `step` in
    scripts/plain.py.
    """
    z_0 = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
    return alpha_bar_to.sqrt() * z_0 + (1 - alpha_bar_to).sqrt() * eps


def step_down(
    z: Tensor, eps: Tensor, schedule: Schedule, level: int, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Step down, z_k -> z_{k-1}, with eps = ε(z_k, τ_k) and k = `level` ≥ 1. Plain: `step` in scripts/plain.py.

    eta: η of Song et al.'s equation 16; over 0 the step is stochastic and takes `noise`, standard normal, of z's shape.
    """
    alpha_bar, alpha_bar_prev = schedule.alpha_bars[level], schedule.alpha_bars[level - 1]
    z_prev = ddim(z, eps, alpha_bar, alpha_bar_prev)
    if eta == 0:
        return z_prev
    if noise is None:
        raise ValueError("a step with η over 0 takes `noise`, standard normal, of the latent's shape")
    sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()
    return z_prev + ((1 - alpha_bar_prev - sigma**2).sqrt() - (1 - alpha_bar_prev).sqrt()) * eps + sigma * noise

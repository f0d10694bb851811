"""A tiny network twice, ours and diffusers' with the same values, and the comparison of a method with its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import golden_cases
import torch
from torch import Tensor

from dragsa import ddim
from dragsa.model.unet import UNet


def ours() -> UNet:
    return golden_cases.golden_unet()


def theirs() -> Any:
    """diffusers' UNet, a new one at each call, so that a test may change it."""
    from diffusers import UNet2DConditionModel

    config = ours().config
    unet: Any = UNet2DConditionModel(
        block_out_channels=config.widths, cross_attention_dim=config.context_dim, attention_head_dim=config.heads[0]
    )
    unet.load_state_dict(ours().state_dict())
    return unet.eval().requires_grad_(False)


def inputs(rows: int, height: int = 16, width: int = 16, tokens: int = 11) -> tuple[Tensor, int, Tensor]:
    """Latents, a timestep, contexts."""
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(rows, 4, height, width, generator=generator)
    return z, 401, torch.randn(rows, tokens, golden_cases.CONTEXT_DIM, generator=generator)


def agrees(came: Tensor, expected: Tensor, without: Tensor, bound: float = 1e-5) -> None:
    """A method is as near to its reference as `bound`, relative, and what it changes is ten times that or more."""
    off, changed = golden_cases.relative(came, expected), golden_cases.relative(without, expected)
    print(f"off by {off:.1e}, without the method by {changed:.1e}")
    assert off < bound and changed > 10 * bound


def twenty_steps() -> tuple[ddim.Schedule, Tensor]:
    """The steps as the small model's scheduler has them, and noise to begin with."""
    return ddim.Schedule(20, "dragdiffusion"), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(9))


def processor(attention: Callable[..., Tensor]) -> Any:
    """An attention processor of diffusers' that has the projections, and calls attention(q, k, v), (B, heads, n, d)."""

    def process(attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        return attn.to_out[0](attention(q, k, v).transpose(1, 2).flatten(2))

    return process

"""An attention hook in diffusers' UNet: one attention processor for each layer, which knows where its layer stands."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dragsa.kernels import attend
from dragsa.model.blocks import ACTIVATIONS, TRANSFORMERS, block_name
from dragsa.model.sites import AttentionHook, Site
from dragsa.stock.combined import has_region


def as_processors(
    hook: AttentionHook, pipe: Any, grid: tuple[int, int] | None = None, rows: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Make diffusers' attention processors of a hook: `pipe.unet.set_attn_processor(as_processors(hook, pipe))`.

    pipe: a diffusers pipeline with SD 1.5's UNet, or that UNet. grid: (h, w) of the latent, by default square, since
    diffusers tells a processor the number of tokens alone. rows: as `Site.rows` is to tell them. A region hook has no
    place there. Raises ValueError for a hook that has one, and for layers that are not SD 1.5's.
    """
    if has_region(hook):
        raise ValueError(f"diffusers has no place for a region hook, came {hook!r}")
    blocks, found = {names.diffusers: block for block, names in TRANSFORMERS.items()}, {}
    for name in getattr(pipe, "unet", pipe).attn_processors:
        parts = re.fullmatch(r"(.*)\.transformer_blocks\.0\.attn([12])\.processor", name)
        if parts is None or parts[1] not in blocks:
            raise ValueError(f"{name}: expected the attention layers of SD 1.5's UNet")
        kind = "self" if parts[2] == "1" else "cross"
        found[name] = Processor(hook, blocks[parts[1]], kind, grid, rows)
    return found


@dataclass(frozen=True)
class Processor:
    """Calls a hook in place of one layer's attention. grid: the latent's (h, w), None for a square."""

    hook: AttentionHook
    block: int
    kind: str
    grid: tuple[int, int] | None
    rows: tuple[str, ...]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """(B, n, C) -> the same. Raises ValueError for an attention mask, and tokens that are not the grid's."""
        if attention_mask is not None:
            raise ValueError(f"{block_name(self.block)}: a hook takes no attention mask of diffusers'")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            linear(x).unflatten(2, (attn.heads, -1)).transpose(1, 2)  # (B, heads, n, d)
            for linear, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        out = self.hook(Site(self.block, self.kind, self._cells(q.shape[2]), self.rows), q, k, v, attend)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))

    def _cells(self, tokens: int) -> tuple[int, int]:
        """Return the block's grid (h, w), h w = tokens."""
        if self.grid is None:
            h = w = math.isqrt(tokens)
        else:
            level = ACTIVATIONS[block_name(self.block)][1]
            h, w = (-(-side // 2**level) for side in self.grid)
        if h * w != tokens:
            grid = "a square grid" if self.grid is None else f"a grid of {h}×{w}"
            raise ValueError(f"{block_name(self.block)}: expected {grid}, came {tokens} tokens: give the latent's grid")
        return h, w

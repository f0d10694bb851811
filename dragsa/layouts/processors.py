"""An attention hook in diffusers' UNet: one attention processor for each layer, which knows where its layer stands."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dragsa.kernels import attend
from dragsa.model.blocks import ACTIVATIONS, TRANSFORMERS, block_name

Site = Callable[[int, str, tuple[int, int]], Any]


def processors(unet: Any, hook: Callable[..., Tensor], site: Site, grid: tuple[int, int] | None) -> dict[str, Any]:
    """Return a processor for every attention layer of diffusers' UNet, by its name there.

    site: makes what the hook is told of a block, a kind and a grid. Raises ValueError for a layer that SD 1.5 has not.
    """
    blocks, found = {names.diffusers: block for block, names in TRANSFORMERS.items()}, {}
    for name in unet.attn_processors:
        parts = re.fullmatch(r"(.*)\.transformer_blocks\.0\.attn([12])\.processor", name)
        if parts is None or parts[1] not in blocks:
            raise ValueError(f"{name}: expected the attention layers of SD 1.5's UNet")
        found[name] = Processor(hook, site, blocks[parts[1]], "self" if parts[2] == "1" else "cross", grid)
    return found


@dataclass(frozen=True)
class Processor:
    """Calls a hook in place of one layer's attention. grid: the latent's (h, w), None for a square."""

    hook: Callable[..., Tensor]
    site: Site
    block: int
    kind: str
    grid: tuple[int, int] | None

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
        out = self.hook(self.site(self.block, self.kind, self._cells(q.shape[2])), q, k, v, attend)
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

"""Taps and hooks: reading a UNet's pass, and changing it.

A *tap* reads. It is a name given to the forward pass, and the activation comes back with the result, still attached to
the graph. A *hook* writes. It is one callable that every attention layer calls in place of its plain attention; where
it has a method `region`, every ResBlock and transformer is called through that. Both are arguments: nothing is
registered on a module, and nothing counts calls. The site says where the hook is and what the batch's rows are; the
caller, who owns the loop over timesteps, says when, by passing a hook or none.

A hook enters an edit by `edit(control=hook_at)`, a function from the denoising step, counted from z_T, to the hook of
that step or None; a pass by `unet(z, t, context, attention=hook)`; `sample`, `invert` and the drag by their argument
`attention`, `sample_controlled` by `hook_at`. A tap is added by yielding its name and value in `UNet.walk` and listing
it in `model.blocks.ACTIVATIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange, repeat
from torch import Tensor

from dragsa.config import CONTROL_BLOCKS
from dragsa.model.blocks import check_blocks
from dragsa.model.sites import KV, Attend, AttentionHook, RegionHook, Site
from dragsa.stock import AtRegions, Map, Maps, Named, ReplayKV, as_processors, attention_map, compose

# What a hook is (`model.sites`) and the hooks for other uses than the paper's (`stock`) are this module's names, too.
__all__ = ["KV", "Attend", "AttentionHook", "RegionHook", "Site"]
__all__ += ["AtRegions", "Map", "Maps", "Named", "ReplayKV", "as_processors", "attention_map", "compose"]
__all__ += ["MutualSelfAttention", "check_pairs", "from_source"]

# The stock hooks are frozen dataclasses: they print what they do, and a compiled pass guards on what they hold, so that
# an equal hook, or the same hook with new K/V of the same shape, costs no recompile.


@dataclass(frozen=True)
class MutualSelfAttention:
    """MasaCtrl's mutual self-attention for source and target side by side.

    The batch is pairs of rows (source, target), or with guidance (source, target) unconditional and then (source,
    target) conditional. In the self-attention of `blocks` both rows of a pair take Key and Value from its source row:
    softmax(Q_target K_sourceᵀ / √d) V_source. The source row is thereby unchanged. The plain twin is `control` in
    scripts/plain.py.
    """

    blocks: tuple[int, ...] = CONTROL_BLOCKS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        check_pairs(site, k.shape[0])
        return attend(q, from_source(k), from_source(v))


def check_pairs(site: Site, batch: int) -> None:
    """Raise a ValueError that names the site unless its rows are pairs (source, target), or may be."""
    rows = site.rows
    paired = zip(rows[::2], rows[1::2], strict=False)
    if batch % 2 or not all(one.startswith("source") and two == "target" + one[6:] for one, two in paired):
        came = f"rows {', '.join(rows)}" if rows else f"a batch of {batch}"
        raise ValueError(f"{site.name}: expected pairs of rows (source, target), came {came}")


def from_source(x: Tensor) -> Tensor:
    """Return each pair's source row (the even ones) given to both of its rows: (2 p, heads, m, d), the same shape."""
    source = rearrange(x, "(p pair) h m d -> p pair h m d", pair=2)[:, 0]  # (p, heads, m, d)
    return repeat(source, "p h m d -> (p pair) h m d", pair=2)

"""MasaCtrl's further forms of mutual self-attention (Cao et al. 2023): the union, and guided by object masks.

The plain form is `hooks.MutualSelfAttention`. The batch is the same as there: pairs of rows (source, target), with
guidance the unconditional pair first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa import hooks
from dragsa.config import CONTROL_BLOCKS, EditConfig
from dragsa.hooks import Attend, AttentionHook, Map, Site, check_blocks, check_pairs

MASK_BLOCKS, THRESHOLD = EditConfig.mask_blocks, EditConfig.mask_threshold


def split_pairs(site: Site, *tensors: Tensor) -> list[Tensor]:
    """Split each (2 p, …) of pairs into the source's rows (p, …) and the target's, flat: [q_s, q_t, k_s, k_t, …]."""
    check_pairs(site, tensors[0].shape[0])
    return [x[which::2] for x in tensors for which in (0, 1)]


def join_pairs(source: Tensor, target: Tensor) -> Tensor:
    """Join the rows (p, …) of source and target to (2 p, …), in turn."""
    return torch.stack([source, target], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class UnionSelfAttention:
    """The target attends to the source's tokens and its own: softmax(Q_t [K_s; K_t]ᵀ / √d) [V_s; V_t].

    The source attends to itself, unchanged.
    """

    blocks: tuple[int, ...] = CONTROL_BLOCKS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        q_s, q_t, k_s, k_t, v_s, v_t = split_pairs(site, q, k, v)  # (p, heads, n, d) each
        target = attend(q_t, torch.cat([k_s, k_t], dim=2), torch.cat([v_s, v_t], dim=2))  # to (p, heads, 2 n, d)
        return join_pairs(attend(q_s, k_s, v_s), target)


@dataclass(frozen=True, eq=False)
class MaskedSelfAttention:
    """Mutual self-attention that does not mix object and background (section 3.3 of MasaCtrl's paper).

    The target attends to the source's object alone, f_o, and to its background alone, f_b; f_o is taken where the
    target's object is, f_b elsewhere. The masks are (h, w) of any size, 1 (or true) on the object, brought to the
    layer's grid by the nearest cell. Where a mask has no cell of a kind, all are attended to.
    """

    source_mask: Tensor
    target_mask: Tensor
    blocks: tuple[int, ...] = CONTROL_BLOCKS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        for mask in (self.source_mask, self.target_mask):
            if mask.ndim != 2:
                raise ValueError(f"an object mask must be (h, w), came {tuple(mask.shape)}")

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        q_s, q_t, k_s, _, v_s, _ = split_pairs(site, q, k, v)
        among = on_grid(self.source_mask, site).to(k.device)  # (n,) source tokens
        at = on_grid(self.target_mask, site).to(k.device)[:, None]  # (n, 1) target tokens
        target = torch.where(at, attend_among(q_t, k_s, v_s, among), attend_among(q_t, k_s, v_s, ~among))
        return join_pairs(attend(q_s, k_s, v_s), target)


def on_grid(mask: Tensor, site: Site) -> Tensor:
    """Return a mask (h, w) at the site's tokens, bool (n,): the nearest cell's."""
    return F.interpolate(mask[None, None].float(), size=site.grid, mode="nearest").flatten() >= 0.5


def attend_among(q: Tensor, k: Tensor, v: Tensor, among: Tensor) -> Tensor:
    """Attend to the tokens with `among` (m,) only; to all of them where there is none."""
    allowed = among | ~among.any()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[None])  # (1, m), for all n queries


# Masks from the prompt: where cross-attention looks for the object's words.


def object_mask(maps: list[Tensor], tokens: tuple[int, ...], threshold: float = THRESHOLD) -> Tensor:
    """Return the cells whose maps look at the tokens, bool (B, h, w).

    The tokens' maps are summed, averaged over layers and scaled to 0 … 1 in each row, and compared with the threshold.
    maps: as `hooks.Maps` gives them, of one grid. Raises ValueError for different grids, and a token that is not there.
    """
    if len({m.shape for m in maps}) != 1:
        came = ", ".join(f"{h}×{w}" for _, h, w, _ in (m.shape for m in maps)) or "none"
        raise ValueError(f"cross-attention maps of one grid are needed, came {came}: choose blocks of equal size")
    if not tokens or not all(0 <= token < maps[0].shape[-1] for token in tokens):
        raise ValueError(f"an object's tokens are numbers from 0 to {maps[0].shape[-1] - 1}, came {tokens}")
    looked_at = torch.stack(maps).mean(dim=0)[..., list(tokens)].sum(dim=-1)  # (B, h, w)
    low, high = looked_at.amin(dim=(1, 2), keepdim=True), looked_at.amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
    return (looked_at - low) >= threshold * (high - low)


@dataclass(frozen=True, eq=False)
class PromptMaskedSelfAttention:
    """Mutual self-attention guided by the masks of the tokens, from the maps that this pass has put into `maps`.

    Both masks are the last pair's: with guidance the conditional one. Before the first map it is the plain form.
    """

    maps: list[Map] = field(repr=False)
    source_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    blocks: tuple[int, ...] = CONTROL_BLOCKS
    threshold: float = THRESHOLD

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        if not self.maps:
            return hooks.MutualSelfAttention(self.blocks)(site, q, k, v, attend)
        source, target = (
            object_mask([m.weights[row, None] for m in self.maps], tokens, self.threshold)[0]  # (h, w)
            for row, tokens in ((-2, self.source_tokens), (-1, self.target_tokens))
        )
        return MaskedSelfAttention(source, target, self.blocks)(site, q, k, v, attend)


def masked_by_prompt(
    source_tokens: tuple[int, ...],
    target_tokens: tuple[int, ...],
    blocks: tuple[int, ...] = CONTROL_BLOCKS,
    mask_blocks: tuple[int, ...] = MASK_BLOCKS,
    threshold: float = THRESHOLD,
) -> AttentionHook:
    """Return MasaCtrl's hook with masks from cross-attention, for one pass: ask for a new one at every step.

    The tokens are positions in the context, 0 the start token, of the object's words in each prompt. `mask_blocks` are
    of one grid; on pictures smaller than 512 px, blocks nearer to the UNet's ends give masks as fine.
    """
    check_blocks(blocks)
    maps: list[Map] = []
    masked = PromptMaskedSelfAttention(maps, source_tokens, target_tokens, blocks, threshold)
    return hooks.compose(hooks.Maps(maps, "cross", mask_blocks), masked)

"""MasaCtrl's further forms of mutual self-attention (Cao et al. 2023): the union, and guided by object masks.

The plain form is `hooks.MutualSelfAttention`. The batch is the same as there: pairs of rows (source, target), with
guidance the unconditional pair first.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa.config import CONTROL_BLOCKS, EditConfig
from dragsa.ddim import HookAt
from dragsa.hooks import Attend, AttentionHook, Map, Maps, MutualSelfAttention, Site, check_pairs
from dragsa.methods import prompt_to_prompt
from dragsa.model.blocks import check_blocks
from dragsa.model.text import TextEncoder

NewHook = Callable[[], AttentionHook]


def mutual(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> NewHook:
    """Return a function that makes a step's hook: the target attends to the source."""
    return partial(MutualSelfAttention, config.control_blocks)


def union(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> NewHook:
    """Return the same for a target that attends to the source and to itself."""
    return partial(UnionSelfAttention, config.control_blocks)


def masked(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> NewHook:
    """Return the same for object and ground apart. Raises ValueError if a prompt has none of the object's words."""
    check_object_words(config, prompt, target_prompt)
    wanted = {plain(word) for word in config.object_words} - {""}
    tokens = []  # for each prompt the positions in the context of those of the object's words that it has
    for one in (prompt, target_prompt):
        words = prompt_to_prompt.words(text, one)
        tokens.append(tuple(at for word, positions in words if plain(word) in wanted for at in positions))
    blocks, mask_blocks = config.control_blocks, config.mask_blocks
    return partial(PromptMaskedSelfAttention, tokens[0], tokens[1], blocks, mask_blocks, config.mask_threshold)


# The controls that an edit names: given config, text encoder and both prompts, each makes the hooks of the steps.
CONTROLS: dict[str, Callable[[EditConfig, TextEncoder, str, str], NewHook]] = {
    "mutual": mutual,
    "union": union,
    "masked": masked,
}


def control_at(config: EditConfig, text: TextEncoder, prompt: str, target_prompt: str) -> HookAt:
    """Return the hook of each denoising step, counted from z_T: from the A-th on a new one of the control named.

    Raises ValueError for a "masked" control if a prompt has none of the object's words.
    """
    return partial(_from_step, config.control_step, CONTROLS[config.control](config, text, prompt, target_prompt))


def _from_step(first: int | None, new_hook: NewHook, step: int) -> AttentionHook | None:
    return new_hook() if first is not None and step >= first else None


def check_object_words(config: EditConfig, *prompts: str) -> None:
    """Raise a ValueError if one of the prompts has none of the object's words that a "masked" control tells it by."""
    wanted = {plain(word) for word in config.object_words} - {""}
    for prompt in prompts if config.control == "masked" else ():
        if not wanted & {plain(word) for word in prompt.split()}:
            named = ", ".join(config.object_words)
            raise ValueError(f"masked control: the prompt {prompt!r} has none of the object's words {named}")


def plain(word: str) -> str:
    """Return a word without case and without the punctuation round it."""
    return word.strip(string.punctuation + "“”„‘’«»…").casefold()


def split_pairs(site: Site, *tensors: Tensor) -> list[Tensor]:
    """Split each (2 p, …) of pairs into the source's rows (p, …) and the target's, flat: [q_s, q_t, k_s, k_t, …]."""
    check_pairs(site, tensors[0].shape[0])
    return [x[which::2] for x in tensors for which in (0, 1)]


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
        return torch.stack([attend(q_s, k_s, v_s), target], dim=1).flatten(0, 1)  # (2 p, heads, n, d)


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
        among, at = (  # (n,) each: which source tokens, and which target tokens, are the object's
            F.interpolate(mask[None, None].float(), size=site.grid, mode="nearest").flatten().to(k.device) >= 0.5
            for mask in (self.source_mask, self.target_mask)
        )
        f_o, f_b = (
            attend(q_t, k_s, v_s, bias=torch.where(kind | ~kind.any(), 0.0, -torch.inf)[None])  # (1, n), for all
            for kind in (among, ~among)
        )
        return torch.stack([attend(q_s, k_s, v_s), torch.where(at[:, None], f_o, f_b)], dim=1).flatten(0, 1)


def object_mask(maps: list[Tensor], tokens: tuple[int, ...], threshold: float = EditConfig.mask_threshold) -> Tensor:
    """Return the cells whose cross-attention maps (B, h, w, tokens) look at the tokens, bool (B, h, w).

    The tokens' maps are summed, averaged over layers and scaled to 0 … 1 in each row, and compared with the threshold.
    Raises ValueError for maps of different grids, and for a token that is not there.
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
    """MasaCtrl's hook with masks from where cross-attention looks for the object's words; a new one for every pass.

    The tokens are positions in the context, 0 the start token, of the object's words in each prompt. `mask_blocks` are
    of one grid; on pictures smaller than 512 px, blocks nearer to the UNet's ends give masks as fine. Both masks are of
    the last pair: with guidance the conditional one. Before the first map it is the plain form.
    """

    source_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    blocks: tuple[int, ...] = CONTROL_BLOCKS
    mask_blocks: tuple[int, ...] = EditConfig.mask_blocks
    threshold: float = EditConfig.mask_threshold
    maps: list[Map] = field(default_factory=list, init=False, repr=False)  # the pass's so far

    def __post_init__(self) -> None:
        check_blocks(self.blocks + self.mask_blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind == "cross":
            return Maps(self.maps, "cross", self.mask_blocks)(site, q, k, v, attend)
        if site.block not in self.blocks:
            return attend(q, k, v)
        if not self.maps:
            return MutualSelfAttention(self.blocks)(site, q, k, v, attend)
        source, target = (
            object_mask([m.weights[row, None] for m in self.maps], tokens, self.threshold)[0]  # (h, w)
            for row, tokens in ((-2, self.source_tokens), (-1, self.target_tokens))
        )
        return MaskedSelfAttention(source, target, self.blocks)(site, q, k, v, attend)

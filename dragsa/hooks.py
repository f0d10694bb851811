"""What can be read from the UNet and what can be written into it: names, sites, and the attention hook.

A *tap* reads. It is a name given to the forward pass, and the activation comes back with the result, still attached to
the graph. An *attention hook* writes. It is one callable that every attention layer calls in place of its plain
attention. Both are arguments: nothing is registered on a module, and nothing counts calls. The site says where the hook
is; the caller, who owns the loop over timesteps, says when, by passing a hook or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from einops import rearrange, repeat
from torch import Tensor

from dragsa.config import BLOCKS, CONTROL_BLOCKS

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # plain attention: q, k, v -> (B, heads, n, d)


class KV(NamedTuple):
    """The heads' key and value of one attention layer, each (B, heads, tokens, d)."""

    key: Tensor
    value: Tensor


class Site(NamedTuple):
    """Where an attention layer stands: a transformer block (1 … 16), its self- or cross-attention, and its grid."""

    block: int
    kind: str  # "self" or "cross"
    grid: tuple[int, int]  # (h, w) of the query's tokens, n = h w

    @property
    def name(self) -> str:
        return f"{block_name(self.block)} {self.kind}-attention"


class AttentionHook(Protocol):
    """Called by every attention layer in place of plain attention.

    `q` is (B, heads, n, d); `k` and `v` are (B, heads, m, d). The result must be (B, heads, n, d). `attend(q, k, v)` is
    the plain attention, softmax(q kᵀ / √d) v: a hook that returns it changes no bit.
    """

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor: ...


def block_name(block: int) -> str:
    """The tap of transformer block 1 … 16: `block01` … `block16`."""
    return f"block{block:02d}"


def check_blocks(blocks: tuple[int, ...]) -> None:
    """Raise a ValueError unless every number names a transformer block."""
    wrong = [block for block in blocks if not 1 <= block <= BLOCKS]
    if wrong:
        raise ValueError(f"no transformer block {wrong[0]}: blocks are numbered 1 … {BLOCKS}")


# The stock hooks are frozen dataclasses: they print what they do, and a compiled pass guards on what they hold, so that
# an equal hook, or the same hook with new K/V of the same shape, costs no recompile.


@dataclass(frozen=True)
class MutualSelfAttention:
    """MasaCtrl's mutual self-attention for source and target side by side.

    The batch is pairs of rows (source, target), or with guidance (source, target) unconditional and then (source,
    target) conditional. In the self-attention of `blocks` both rows of a pair take Key and Value from its source row:
    softmax(Q_target K_sourceᵀ / √d) V_source. The source row is thereby unchanged.
    """

    blocks: tuple[int, ...] = CONTROL_BLOCKS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        if k.shape[0] % 2:
            raise ValueError(f"{site.name}: expected pairs of rows (source, target), came a batch of {k.shape[0]}")
        return attend(q, from_source(k), from_source(v))


def from_source(x: Tensor) -> Tensor:
    """Each pair's source row (the even ones) given to both of its rows: (2 p, heads, m, d), the same shape."""
    source = rearrange(x, "(p pair) h m d -> p pair h m d", pair=2)[:, 0]  # (p, heads, m, d)
    return repeat(source, "p h m d -> (p pair) h m d", pair=2)


@dataclass(frozen=True, eq=False)
class ReplayKV:
    """Self-attention with K/V recorded earlier, by block: `{11: out.taps["block11.kv"], …}`.

    The recorded batch must be the batch of the pass, or 1 to serve all its rows.
    """

    recorded: Mapping[int, KV]

    def __post_init__(self) -> None:
        check_blocks(tuple(self.recorded))

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.recorded:
            return attend(q, k, v)
        key, value = self.recorded[site.block]
        for came in (key, value):
            if came.shape[1:] != k.shape[1:] or came.shape[0] not in (1, k.shape[0]):
                raise ValueError(f"{site.name}: recorded K/V must be {tuple(k.shape)}, came {tuple(came.shape)}")
        return attend(q, key.expand_as(k), value.expand_as(v))


@dataclass(frozen=True)
class Composed:
    """Hooks applied from the outside in: each one's plain attention is the next one, the last one's the layer's own."""

    hooks: tuple[AttentionHook, ...]

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        for hook in reversed(self.hooks):
            attend = partial(_call, hook, site, attend)
        return attend(q, k, v)


def _call(hook: AttentionHook, site: Site, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hook(site, q, k, v, attend)


def compose(*hooks: AttentionHook) -> AttentionHook:
    """One hook of several; the first is the outermost, and sees the layer's q, k and v as they are."""
    return Composed(hooks)

"""Sites at which the UNet calls a hook, of attention and of regions, and the forms of what is called there.

What hooks there are, and how one is written, is told in `dragsa.hooks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from dragsa.model.blocks import block_name


class Attend(Protocol):
    """Plain attention, softmax(q kᵀ / √d + bias) v, or the next hook: q (B, heads, n, d) -> the same.

    bias: added to the scores, of a shape that can be expanded to (B, heads, n, m); -∞ shuts a key out.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, /, bias: Tensor | None = None) -> Tensor: ...


class KV(NamedTuple):
    """The heads' key and value of one attention layer, each (B, heads, tokens, d)."""

    key: Tensor
    value: Tensor


class Site(NamedTuple):
    """The place of an attention layer: a transformer block (1 … 16), its self- or cross-attention, and its grid."""

    block: int
    kind: str  # "self" or "cross"
    grid: tuple[int, int]  # (h, w) of the query's tokens, n = h w
    # What the batch's rows are, as far as the caller says: ("source", "target"), with guidance ("source uncond",
    # "target uncond", "source", "target"); in a drag ("target",) or ("target uncond", "target"); of another pass on
    # one latent ("latent",). Samplers and the drag say it, a bare pass does not.
    rows: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{block_name(self.block)} {self.kind}-attention"


class AttentionHook(Protocol):
    """Called by every attention layer in place of plain attention.

    `q` is (B, heads, n, d); `k` and `v` are (B, heads, m, d). The result must be (B, heads, n, d). `attend(q, k, v)` is
    the plain attention, softmax(q kᵀ / √d) v: a hook that returns it changes no bit. Its parameters may have any names.
    """

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend, /) -> Tensor: ...


# A region hook is called by every ResBlock and transformer of `blocks.REGIONS` in place of its own computing: given the
# region's name, `call` and the inputs, it returns what `call(*inputs)` would, a map (B, C, h, w); one that returns just
# that changes no bit. The inputs are one map, of the decoder's ResBlocks two: the backbone's and the skip's, which
# `call` concatenates. What else a region is given (time embedding, context) is in `call`.
RegionHook = Callable[..., Tensor]

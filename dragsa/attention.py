"""Self- and cross-attention with the one place where a hook acts, and the transformer block round them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dragsa.hooks import KV, AttentionHook, Site


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention softmax(q kᵀ / √d) v: q (B, heads, n, d), k and v (B, heads, m, d) -> (B, heads, n, d)."""
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head attention of x to `context` (to itself where that is None)."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor | None, site: Site, hook: AttentionHook | None) -> tuple[Tensor, KV]:
        """(B, n, width) -> the same, and the heads' own key and value, as they were before the hook."""
        context = x if context is None else context
        # torch's own reshapes: tracing einops, layer after layer, is most of what compiling the UNet takes to begin.
        q, k, v = (
            tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, n or m, heads d) -> (B, heads, n or m, d)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        if hook is None:
            out = attend(q, k, v)
        else:
            out = hook(site, q, k, v, attend)
            if out.shape != q.shape:
                raise ValueError(f"{site.name}: the hook must return {tuple(q.shape)}, came {tuple(out.shape)}")
        return self.to_out[0](out.transpose(1, 2).flatten(2)), KV(k, v)  # (B, n, heads d)


class GEGLU(nn.Module):
    """Gated linear unit x₁ · gelu(x₂) of one projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """width -> 4 width, gated, -> width. The identity stands where the published names count a dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward on tokens, each behind a layer norm and a residual."""

    def __init__(self, width: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_dim, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Tensor, context: Tensor, block: int, grid: tuple[int, int], hook: AttentionHook | None
    ) -> tuple[Tensor, KV]:
        attended, kv = self.attn1(self.norm1(x), None, Site(block, "self", grid), hook)
        x = x + attended
        x = x + self.attn2(self.norm2(x), context, Site(block, "cross", grid), hook)[0]
        return x + self.ff(self.norm3(x)), kv


class Transformer(nn.Module):
    """The paper's block: a transformer layer over the cells of a feature map, with 1×1 convolutions round it."""

    def __init__(self, width: int, context_dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerLayer(width, context_dim, heads)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor, block: int, hook: AttentionHook | None) -> tuple[Tensor, KV]:
        """(B, width, h, w) -> the same, and the self-attention's key and value."""
        h, w = x.shape[-2:]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h w, width)
        tokens, kv = self.transformer_blocks[0](tokens, context, block, (h, w), hook)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, (h, w))), kv  # (B, width, h, w)

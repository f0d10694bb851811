"""Self- and cross-attention with the one place where a hook acts, and the transformer block round them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragsa.hooks import KV, AttentionHook, Site
from dragsa.kernels import cells, cpu_attention
from dragsa.kernels.convolution import Convolution


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention softmax(q kᵀ / √d) v: q (B, heads, n, d), k and v (B, heads, m, d) -> (B, heads, n, d)."""
    wanted = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if cpu_attention.has_faster_forward(q, k) or (wanted and cpu_attention.has_faster_gradient(q, k)):
        return cpu_attention.attend(q, k, v)
    if q.device.type == "cpu":  # whose kernel is up to a fifth slower on heads that lie between one another
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v)


class GroupNorm(nn.GroupNorm):
    """With statistics in float32, whatever the type of activations and weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, _for_norm(self.weight, x), _for_norm(self.bias, x), self.eps)


class LayerNorm(nn.LayerNorm):
    """With statistics in float32, whatever the type of activations and weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, _for_norm(self.weight, x), _for_norm(self.bias, x), self.eps)


def _for_norm(weight: Tensor, x: Tensor) -> Tensor:
    """On the CPU the norms' kernels keep mean and deviation for the gradient in the type of the weights."""
    return weight.float() if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else weight


class Placed(NamedTuple):
    """A hook, and where it is about to act."""

    hook: AttentionHook
    site: Site


class Attention(nn.Module):
    """Multi-head attention of x to given K/V, such as those of a context, or to itself."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split(self, tokens: Tensor) -> Tensor:
        """(B, n, heads d) -> (B, heads, n, d)."""
        # torch's own reshapes: tracing einops, layer after layer, is most of what compiling the UNet takes to begin.
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def key_value(self, context: Tensor) -> KV:
        """The heads' key and value of (B, m, context_width)."""
        return KV(self.split(self.to_k(context)), self.split(self.to_v(context)))

    def forward(self, x: Tensor, kv: KV | None, placed: Placed | None, at: Tensor | None = None) -> tuple[Tensor, KV]:
        """(B, n, width) -> the same, and the key and value attended to, as they were before the hook.

        kv: (B, heads, m, d) each; None for x's own. at: (a,), the tokens that ask; by default all of them do.
        """
        q = self.split(self.to_q(tokens_at(x, at)))  # (B, heads, n or a, d)
        k, v = self.key_value(x) if kv is None else kv
        if placed is None:
            out = attend(q, k, v)
        else:
            hook, site = placed
            out = hook(site, q, k, v, attend)
            if out.shape != q.shape:
                raise ValueError(f"{site.name}: the hook must return {tuple(q.shape)}, came {tuple(out.shape)}")
        return self.to_out[0](out.transpose(1, 2).flatten(2)), KV(k, v)  # (B, n, heads d)


def tokens_at(x: Tensor, at: Tensor | None) -> Tensor:
    """(B, n, width) -> (B, a, width), the tokens at (a,); None for all of them."""
    return x if at is None else cells.take(x.transpose(1, 2), at).transpose(1, 2)


class _Gated(torch.autograd.Function):
    """x₁ · gelu(x₂) of (…, 2 c), which is all that is kept: gelu is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        x, gate = both.chunk(2, dim=-1)
        return x * F.gelu(gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        x, gate = both.chunk(2, dim=-1)
        to_gate = torch.ops.aten.gelu_backward(gradient * x, gate)
        return torch.cat([gradient * F.gelu(gate), to_gate], dim=-1)


class GEGLU(nn.Module):
    """Gated linear unit x₁ · gelu(x₂) of one projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return _Gated.apply(self.proj(x))


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
        self.norm1 = LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = LayerNorm(width)
        self.attn2 = Attention(width, context_dim, heads)
        self.norm3 = LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self,
        x: Tensor,
        cross: KV,
        block: int,
        grid: tuple[int, int],
        hook: AttentionHook | None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, KV]:
        """(B, n, width) -> the same, or of the tokens at (a,) alone, and the self-attention's key and value."""
        # Without a hook the block's number plays no part, so that blocks of one shape are compiled as one.
        here, there = (None if hook is None else Placed(hook, Site(block, kind, grid)) for kind in ("self", "cross"))
        attended, kv = self.attn1(self.norm1(x), None, here, at)
        x = tokens_at(x, at) + attended
        x = x + self.attn2(self.norm2(x), cross, there)[0]
        return x + self.ff(self.norm3(x)), kv


class Transformer(nn.Module):
    """The paper's block: a transformer layer over the cells of a feature map, with 1×1 convolutions round it."""

    transformer_blocks: Sequence[TransformerLayer]

    def __init__(self, width: int, context_dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width, eps=1e-6)
        self.proj_in = Convolution(width, width, 1)
        self.transformer_blocks = nn.ModuleList(  # type: ignore[assignment]
            [TransformerLayer(width, context_dim, heads)]
        )
        self.proj_out = Convolution(width, width, 1)

    def key_value(self, context: Tensor) -> KV:
        """Cross-attention's key and value of a context (B, tokens, context_dim)."""
        return self.transformer_blocks[0].attn2.key_value(context)

    def forward(
        self, x: Tensor, cross: KV, block: int, hook: AttentionHook | None, at: Tensor | None = None
    ) -> tuple[Tensor, KV]:
        """(B, width, h, w) -> the same, and the self-attention's key and value. cross: `key_value` of the context.

        at: (a,), the cells of the flattened map that are wanted; the others are then zero, and nothing is computed of
        them but what these attend to.
        """
        h, w = x.shape[-2:]
        tokens = self.proj_in.to_tokens(self.norm(x))  # (B, h w, width)
        tokens, kv = self.transformer_blocks[0](tokens, cross, block, (h, w), hook, at)
        if at is None:
            return x + self.proj_out.from_tokens(tokens, (h, w)), kv  # (B, width, h, w)
        some = self.proj_out.from_tokens(tokens, (len(at), 1))[..., 0]  # (B, width, a)
        return cells.put(cells.take(x.flatten(2), at) + some, at, (h, w)), kv

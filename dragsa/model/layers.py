"""The UNet's layers: attention with the one place where a hook acts, transformers, ResBlocks, changes of resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragsa.kernels import Convolution, attend, gated
from dragsa.model.sites import KV, Attend, AttentionHook, Site


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


def hooked(hook: AttentionHook, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Call the hook in place of plain attention. Raises ValueError where it does not return q's shape."""
    out, expected = hook(site, q, k, v, attend), tuple(q.shape)
    if (came := tuple(out.shape) if isinstance(out, Tensor) else out) != expected:
        raise ValueError(f"{site.name}: the hook must return {expected}, came {came}")
    return out


class Attention(nn.Module):
    """Multi-head attention of x to given K/V: those of a context, or of x itself."""

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

    def query(self, x: Tensor) -> Tensor:
        """Return the heads' query of (B, n, width)."""
        return self.split(self.to_q(x))

    def key_value(self, context: Tensor) -> KV:
        """Return the heads' key and value of (B, m, context_width)."""
        return KV(self.split(self.to_k(context)), self.split(self.to_v(context)))

    def forward(self, q: Tensor, kv: KV, attend: Attend) -> Tensor:
        """(B, heads, n, d) -> (B, n, width). kv: (B, heads, m, d) each. attend: plain attention, or a hook for it."""
        out = attend(q, *kv)  # (B, heads, n, d)
        return self.to_out[0](out.transpose(1, 2).flatten(2))  # (B, n, heads d)


class GEGLU(nn.Module):
    """Gated linear unit x₁ · gelu(x₂) of one projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return gated(self.proj(x))


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

    def forward(self, x: Tensor, q: Tensor, kv: KV, cross: KV, attends: tuple[Attend, Attend]) -> Tensor:
        """(B, n, width) -> the same: tokens x that attend to `kv`, then to `cross`.

        q: the query of `norm1` of x. kv: the self-attention's, of all tokens. cross: the context's. attends: plain
        attention or a hook in its place, for self- and cross-attention.
        """
        x = x + self.attn1(q, kv, attends[0])
        x = x + self.attn2(self.attn2.query(self.norm2(x)), cross, attends[1])
        return x + self.ff(self.norm3(x))


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
        """Return cross-attention's key and value of a context (B, tokens, context_dim)."""
        return self.transformer_blocks[0].attn2.key_value(context)

    def forward(self, x: Tensor, cross: KV, block: int, hook: AttentionHook | None) -> tuple[Tensor, KV]:
        """(B, width, h, w) -> the same, and the self-attention's key and value as they were before the hook.

        cross: `key_value` of the context. block: its number, 1 … 16, which the hook is told.
        """
        layer, (h, w) = self.transformer_blocks[0], x.shape[-2:]
        tokens = self.proj_in.to_tokens(self.norm(x))  # (B, h w, width)
        normed = layer.norm1(tokens)
        q, kv = layer.attn1.query(normed), layer.attn1.key_value(normed)  # (B, heads, h w, d) each
        tokens = layer(tokens, q, kv, cross, attends(block, (h, w), hook))
        return x + self.proj_out.from_tokens(tokens, (h, w)), kv  # (B, width, h, w)


def attends(block: int, grid: tuple[int, int], hook: AttentionHook | None) -> tuple[Attend, Attend]:
    """Return the attention of a block's self- and cross-attention: plain, or through the hook."""
    # Without a hook the block's number plays no part, so that blocks of one shape are compiled as one.
    if hook is None:
        return attend, attend
    return partial(hooked, hook, Site(block, "self", grid)), partial(hooked, hook, Site(block, "cross", grid))


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added between them, and a residual."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.channels = c_out
        self.norm1 = GroupNorm(groups, c_in, eps=1e-5)
        self.conv1 = Convolution(c_in, c_out)
        self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = GroupNorm(groups, c_out, eps=1e-5)
        self.conv2 = Convolution(c_out, c_out)
        self.conv_shortcut = Convolution(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, c_in, h, w), time (B, c_out), what `time_emb_proj` makes of the embedding -> (B, c_out, h, w)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + time[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, ⌈h/2⌉, ⌈w/2⌉)."""
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Convolution(width, width)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, C, h, w) -> (B, C, *grid), the size of the skip that comes next, which is not always twice the size."""
        return self.conv(F.interpolate(x, size=grid, mode="nearest"))


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps (B,) -> (B, 4 width): cosines then sines at frequencies 1 … 1/10000, through two layers."""
        half = self.width // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angle = t.float()[:, None] * frequency  # (B, width / 2)
        sinusoid = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.linear_1.weight.dtype)  # (B, width)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))

"""StyleAligned: six rows against an attention processor that follows the authors' program."""

import gallery_peers as peers
import torch
from gallery.style_aligned import style_aligned
from torch.nn import functional as F

from dragsa.hooks import Named

ROWS = "style uncond", "a uncond", "b uncond", "style", "a", "b"


def as_published(q, k, v):
    """Heads' q, k, v of three pictures unconditional and three conditional, the style's first in each half."""

    def of_style(x):
        return torch.stack([x[0], x[3]]).repeat_interleave(3, dim=0)

    def moments(x):
        return x.mean(dim=-2, keepdim=True), (x.var(dim=-2, keepdim=True) + 1e-5).sqrt()

    def adain(x):
        (mean, deviation), (style_mean, style_deviation) = moments(x), moments(of_style(x))
        return (x - mean) / deviation * style_deviation + style_mean

    q, k = adain(q), adain(k)
    k, v = torch.cat([k, of_style(k)], dim=-2), torch.cat([v, of_style(v)], dim=-2)
    return F.scaled_dot_product_attention(q, k, v)


def test_six_rows():
    unet, z = peers.theirs(), peers.inputs(6)
    plain = unet(*z).sample
    names = [name for name in unet.attn_processors if "attn1" in name]
    unet.set_attn_processor(unet.attn_processors | dict.fromkeys(names, peers.processor(as_published)))
    peers.agrees(peers.ours()(*z, attention=Named(style_aligned, ROWS)).eps, unet(*z).sample, plain)

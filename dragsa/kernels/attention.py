"""Plain attention, by whichever kernel is the fastest for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa.kernels import cpu_attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q kᵀ / √d + bias) v: q (B, heads, n, d), k and v (B, heads, m, d) -> (B, heads, n, d).

    bias: of a shape that can be expanded to (B, heads, n, m); None adds nothing.
    """
    if bias is not None:
        bias = bias.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with_gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if cpu_attention.has_faster_forward(q, k) or (with_gradient and cpu_attention.has_faster_gradient(q, k)):
        return cpu_attention.attend(q, k, v)
    if q.device.type == "cpu":  # whose kernel is up to a fifth slower on heads that lie between one another
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v)

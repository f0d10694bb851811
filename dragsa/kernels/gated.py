"""The transformers' gated unit, of which the gradient keeps nothing but the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def gated(both: Tensor) -> Tensor:
    """Return x₁ · gelu(x₂) of (…, 2 c): (…, c). gelu is computed again for the gradient."""
    return _Gated.apply(both)


class _Gated(torch.autograd.Function):
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

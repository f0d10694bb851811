"""A convolution that keeps the grid, in the ways that cost a frozen network least on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad


class Convolution(nn.Conv2d):
    """3 × 3 cells or 1 × 1, the grid kept."""

    bias: nn.Parameter

    def __init__(self, c_in: int, c_out: int, cells: int = 3) -> None:
        super().__init__(c_in, c_out, cells, padding=cells // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h, w)."""
        frozen = not (self.weight.requires_grad or self.bias.requires_grad)
        if frozen and self.is_mostly_weights(x):
            columns, weight = F.unfold(x, 3, padding=1), self.weight.flatten(1)  # (B, 9 c_in, h w), (c_out, 9 c_in)
            out = torch.stack([torch.addmm(self.bias[:, None], weight, c) for c in columns])  # (B, c_out, h w)
            return out.unflatten(2, x.shape[-2:])
        if frozen and torch.is_grad_enabled():
            return _Frozen.apply(x, self.weight, self.bias, self.kernel_size[0] // 2)
        return super().forward(x)

    def to_tokens(self, x: Tensor) -> Tensor:
        """A 1 × 1 one of (B, c_in, h, w), its cells as tokens: (B, h w, c_out).

        A token's channels come out of the product side by side, as layer norms and further products are fastest on.
        """
        x, weight = x.flatten(2).transpose(1, 2), self.weight.flatten(1).t()  # (B, h w, c_in), (c_in, c_out)
        return torch.baddbmm(self.bias, x, weight.expand(len(x), -1, -1))

    def from_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """A 1 × 1 one of tokens (B, h w, c_in), as a map on their grid: (B, c_out, h, w)."""
        tokens, weight = tokens.transpose(1, 2), self.weight.flatten(1)  # (B, c_in, h w), (c_out, c_in)
        return torch.baddbmm(self.bias[:, None], weight.expand(len(tokens), -1, -1), tokens).unflatten(2, grid)

    def is_mostly_weights(self, x: Tensor) -> bool:
        """Tell whether a matrix product is faster than the convolution of x (B, C, h, w).

        On the CPU a convolution first reorders its weights, in every pass. Where they outnumber the cells, at 16 × 16
        and less in SD 1.5, that takes as long as the convolution. In bfloat16 it tells at 8 × 8, most with 2560
        channels: 112 ms forward and back on one core of Zen 4, and 51 as a product; and at 16 × 16 a little where
        there are more of them than 1280: 198 and 171 ms. Training would keep the unfolded cells: not then.
        """
        (h, w), weight = x.shape[-2:], self.weight
        if self.kernel_size != (3, 3) or x.device.type != "cpu" or not weight.is_contiguous() or weight.requires_grad:
            return False
        most = {torch.float32: self.out_channels, torch.bfloat16: self.in_channels // 7}
        return h * w <= most.get(x.dtype, 0)


class _Frozen(torch.autograd.Function):
    """A convolution whose input alone wants a gradient. PyTorch's own keeps the input, for its weights'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.padding = x.shape, padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return grad.conv2d_input(ctx.shape, weight, gradient, padding=ctx.padding), None, None, None

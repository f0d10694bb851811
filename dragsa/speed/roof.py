"""The roof: the operations that an update takes, and the best rates at which this machine does any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dragsa import motion
from dragsa.config import DragConfig, UNetConfig
from dragsa.model.unet import UNet, call, read
from dragsa.passes import near
from dragsa.speed.baseline import as_published, plain_attention
from dragsa.speed.laps import Flops, again


def count_flops(config: UNetConfig, size: int, tap: str, masked: bool, baseline: bool) -> Flops:
    """Count the operations of one update of one handle, backward to the latent alone.

    They are counted in a pass on the meta device, where every attention is its two matrix products. What is computed
    twice (by checkpointing, or by attention that keeps no weights) counts once.
    """
    with torch.device("meta"):
        unet = as_published(UNet(config).requires_grad_(False))  # whose products of batches are attention's alone
        z = torch.empty(1, config.latent_channels, size // 8, size // 8).requires_grad_()
        t, context = torch.tensor(1), torch.empty(1, 77, config.context_dim)
        until, run = None if masked or baseline else tap, call
        if until is not None:  # the last layers are computed for the cells that are looked at
            h, w = unet(z, t, context, taps=(tap,), until=tap).taps[tap].shape[-2:]
            config_drag, grid = DragConfig(tap=tap), (motion.CELLS * z.shape[2], motion.CELLS * z.shape[3])
            radii = config_drag.radius, config_drag.track_radius
            run = near.run_near(call, tap, near.looked_at(torch.empty(1, 2), (h, w), grid, *radii))
        with torch.enable_grad():
            with FlopCounterMode(display=False) as forward:
                out = read(unet.walk(z, unet.condition(t, context), plain_attention, run), z.dtype, (tap,), until)
            loss = out.taps[tap].sum() + (out.eps.sum() if masked and out.eps is not None else 0)
            with FlopCounterMode(display=False) as backward:
                torch.autograd.grad(loss, z)
    of_attention = [one.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0) for one in (forward, backward)]
    return Flops(forward.get_total_flops(), backward.get_total_flops(), *of_attention)


class Roof(NamedTuple):
    """The best rates of a type, FLOP a second."""

    matmul: float
    convolution: float
    attention: float  # scaled-dot-product attention, forward and backward

    def least(self, flops: Flops) -> float:
        """Return the seconds that an update cannot go under at these rates."""
        return (flops.total - flops.attention) / max(self.matmul, self.convolution) + flops.attention / self.attention


def best_rates(dtype: torch.dtype, device: torch.device, config: UNetConfig, repeats: int) -> Roof:
    """Time matrix products and convolutions of the UNet's shapes at 512 px, and its largest attention."""
    narrow, wide, widest = config.widths[:3]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def best(flops: int, action: Callable[[], Any]) -> float:
        laps = again(action, device)
        next(laps)
        return flops / min(next(laps).total for _ in range(repeats))

    def product(m: int, k: int, n: int) -> float:
        a, b = draw(m, k), draw(n, k)
        return best(2 * m * k * n, lambda: F.linear(a, b))

    def convolution(c: int, side: int) -> float:
        x, weight = draw(1, c, side, side), draw(c, c, 3, 3)
        return best(2 * 9 * c * c * side * side, lambda: F.conv2d(x, weight, padding=1))

    q, k, v = (draw(1, config.heads[0], 4096, narrow // config.heads[0]).requires_grad_() for _ in range(3))

    def attend() -> None:
        out = F.scaled_dot_product_attention(q, k, v)
        torch.autograd.grad(out, (q, k, v), out)

    with torch.no_grad():
        products = [product(4096, narrow, 8 * narrow), product(1024, wide, 8 * wide), product(2048, 2048, 2048)]
        convolutions = [convolution(narrow, 64), convolution(wide, 64), convolution(widest, 16)]
    with torch.enable_grad():
        return Roof(max(products), max(convolutions), best(6 * 2 * 4096 * 4096 * narrow, attend))

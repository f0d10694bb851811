"""The machine that is measured on: its processor, how busy it is, the memory of this process, and its roof.

The roof is what an update's operations take at the best rates at which this machine does any.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dragsa import passes
from dragsa.config import UNetConfig
from dragsa.model.unet import UNet
from dragsa.speed.baseline import as_published
from dragsa.speed.laps import Flops, again
from dragsa.speed.problems import problem

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # that these kernels are faster with


def machine_of(device: torch.device, threads: int) -> dict[str, Any]:
    """Return the processor and its instructions, the device, the system, and how busy it is."""
    cpus = Path("/proc/cpuinfo")  # of Linux
    told = dict(re.findall(r"^(.+?)\s*: (.+)$", cpus.read_text(), re.MULTILINE)) if cpus.exists() else {}
    flags = told.get("flags", "").split()
    return {
        "processor": told.get("model name") or platform.processor() or platform.machine(),
        "instructions": [one for one in INSTRUCTIONS if one in flags],
        "cores": cores(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": platform.platform(),
        "load": load(),
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Return how many processes ran or waited in the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has held, on a GPU those of its tensors."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux counts a parent's peak into what getrusage says of its child
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


# --- the roof


def count_flops(config: UNetConfig, size: int, masked: bool, baseline: bool) -> Flops:
    """Count the operations of one update of one handle, backward to the latent alone.

    They are counted in a pass on the meta device, where every attention is its two matrix products. What is computed
    twice (by checkpointing, or by attention that keeps no weights) counts once.
    """
    at, whole = problem(config, size, "meta", masked), masked or baseline
    with torch.device("meta"), torch.enable_grad():
        unet = as_published(UNet(config).requires_grad_(False))  # whose products of batches are attention's alone
        z, grid = at.latent.requires_grad_(), None
        if not whole:  # the last layers are computed for the cells that are looked at
            h, w = passes.prepare(unet, at.noise, at.context, at.config)(z, at.handles, whole).features.shape[2:]
            grid = h, w
        with FlopCounterMode(display=False) as forward:
            features, eps = passes.prepare(unet, at.noise, at.context, at.config)(z, at.handles, whole, grid)
        loss = features.sum() + (eps.sum() if masked and eps is not None else 0)
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

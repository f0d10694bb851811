"""The settings of a benchmark, and the seeded networks and drags that it measures.

No weights are needed: without a path the networks have SD 1.5's widths and seeded values, on which time and memory do
not depend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dragsa import ddim, loading, motion
from dragsa.config import DragConfig, UNetConfig, VAEConfig, is_whole
from dragsa.ddim import Schedule
from dragsa.drag import Task
from dragsa.model.unet import UNet

PARTS = ("roof", "update", "memory", "fused", "tracking", "handles", "denoise", "recompiles", "compile", "whole")
DEFAULT_PARTS = PARTS[:-2]  # the last two take the compiler's minutes, and a whole edit's
LEVEL = 35  # of the 50: z_35, where DragDiffusion drags
UPDATES = 20  # in which no recompile may be

TINY = UNetConfig((32, 32, 64, 64), context_dim=48), VAEConfig((32, 32, 32, 64))
WIDTHS = {"sd15": (UNetConfig(), VAEConfig()), "tiny": TINY}

M = TypeVar("M", bound=nn.Module)
Network = Callable[[torch.dtype], UNet]


class Mode(NamedTuple):
    """One way to do an update."""

    dtype: torch.dtype
    baseline: bool = False
    checkpoint: bool = False

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


MODES = {
    "baseline": Mode(torch.float32, baseline=True),
    "float32": Mode(torch.float32),
    "bfloat16": Mode(torch.bfloat16),
    "float32-checkpoint": Mode(torch.float32, checkpoint=True),
    "bfloat16-checkpoint": Mode(torch.bfloat16, checkpoint=True),
}


@dataclass(frozen=True)
class Settings:
    """The parts to measure, and on what. Raises ValueError for a value that is not possible."""

    only: tuple[str, ...] = DEFAULT_PARTS
    sizes: tuple[int, ...] = (512,)  # of square pictures, pixels
    width: str = "sd15"
    weights: str | None = None
    modes: tuple[str, ...] = ("baseline", "float32", "bfloat16")  # of updates; peak memory is measured of all
    handles: tuple[int, ...] = (1, 20)
    repeats: int = 5
    steps: int = 2  # denoising steps that are timed, and T of a whole edit
    updates: int = 2  # of a whole edit
    threads: int | None = None  # None: all cores that the process may use
    device: str = "cpu"

    def __post_init__(self) -> None:
        known = {"only": (self.only, PARTS), "width": ((self.width,), WIDTHS), "modes": (self.modes, MODES)}
        for name, (came, names) in known.items():
            for one in came:
                if one not in names:
                    raise ValueError(f"{name}: {one!r} is none of {', '.join(names)}")
        for size in self.sizes:
            if size < 64 or size % 8:
                raise ValueError(f"sizes are multiples of 8 from 64, came {size}")
        for name, value in (("repeats", self.repeats), ("steps", self.steps), *(("handles", n) for n in self.handles)):
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, came {value!r}")


# --- networks


def network(settings: Settings, dtype: torch.dtype) -> UNet:
    """Return the UNet that is measured: read from `settings.weights`, or seeded."""
    device = torch.device(settings.device)
    if settings.weights is not None:
        return loading.load(settings.weights, device, dtype).unet
    return seeded(UNet, WIDTHS[settings.width][0], dtype, device)


def seeded(kind: Callable[[Any], M], config: Any, dtype: torch.dtype, device: torch.device) -> M:
    """Build a network with matrices of unit gain and norms about one, with which activations stay finite."""
    with torch.device("meta"):
        module = kind(config)
    module = module.to(dtype).to_empty(device=device)
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))  # prime: no two rows are the same
    for name, weight in module.named_parameters():
        flat, matrix = weight.detach().view(-1), weight.ndim > 1
        scale = weight[0].numel() ** -0.5 if matrix else 0.1
        shift = 1.0 if name.endswith("weight") and not matrix else 0.0
        for first in range(0, len(flat), len(pool)):
            piece = flat[first : first + len(pool)]
            piece.copy_(pool[: len(piece)] * scale + shift)
    return module.requires_grad_(False).eval()


# --- drags


def problem(config: UNetConfig, size: int, device: str, masked: bool, handles: int = 1, **changes: Any) -> Task:
    """Return a drag of `handles` points by a quarter of a picture of noise, where no handle ever arrives.

    size: of the picture, pixels. changes: values of the `DragConfig`.
    """
    there, side = torch.device(device), size // 8
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, config.latent_channels, side, side, generator=generator).to(there)
    context = torch.randn(1, 77, config.context_dim, generator=generator).to(there)
    frozen = None
    if masked:
        frozen = torch.ones(side, side, device=there)
        frozen[side // 4 : -(side // 4), side // 8 :] = 0
    first, last = lattice(handles, motion.CELLS * side)
    noise = ddim.noise_at(Schedule(50, "dragdiffusion"), LEVEL, there)
    drag_config = DragConfig(**{"tap": "decoder3", "reach": 0.0, **changes})
    return Task(latent, noise, context, first.to(there), last.to(there), frozen, drag_config)


def lattice(n: int, side: int) -> tuple[Tensor, Tensor]:
    """Return n handles in the left half of a square grid, and targets a quarter of it to the right, an eighth down."""
    across = math.ceil(n**0.5)
    cells = torch.tensor([[i % across, i // across] for i in range(n)])
    handles = (side * (0.2 + 0.45 * (cells + 0.5) / across)).floor()  # (n, 2)
    return handles, handles + torch.tensor([side // 4, side // 8])

"""How fast the drag loop is and what it holds in memory: by parts, against its roof, and against DragDiffusion's way.

`baseline_updates` is the loop as DragDiffusion's program does it, on this package's UNet with PyTorch's own
convolutions and attention: every update is a whole pass, the feature map is brought to the supervision grid whole,
patches and windows are sliced from it handle by handle, everything is float32 and eager. `drag_updates` is the loop of
`drag.drag_latent`, taken apart so that its parts can be timed. What is compared is measured in turns (A B A B …), so
that other work on the machine meets both, and updates, losses and trackings of each way are a process's own, so that
none finds the memory as another has left it; every figure is the median of the repeats after one round that is not
counted. Peak memory is that of a process which does one update and nothing else.

No weights are needed: without a path the networks have SD 1.5's widths and seeded values, on which time and memory do
not depend.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dragsa import ddim, drag, loading, tracking
from dragsa.config import DragConfig, UNetConfig, VAEConfig
from dragsa.ddim import Schedule
from dragsa.drag import Noise
from dragsa.hooks import Attend, Site
from dragsa.kernels import heap, patch_loss
from dragsa.kernels.convolution import Convolution
from dragsa.model import fitting
from dragsa.model.attention import GEGLU
from dragsa.model.unet import UNet, UNetOutput
from dragsa.model.vae import VAE
from dragsa.passes import compiling
from dragsa.pictures import trace

PARTS = ("roof", "update", "memory", "fused", "tracking", "handles", "denoise", "recompiles", "compile", "whole")
DEFAULT_PARTS = PARTS[:-2]  # the last two take the compiler's minutes, and a whole edit's
LEVEL = 35  # of the 50: z_35, where DragDiffusion drags
UPDATES = 20  # in which no recompile may be

SD15 = UNetConfig(), VAEConfig()
TINY = UNetConfig((32, 32, 64, 64), context_dim=48), VAEConfig((32, 32, 32, 64))
WIDTHS = {"sd15": SD15, "tiny": TINY}

M = TypeVar("M", bound=nn.Module)
Say = Callable[[str], None]


class Mode(NamedTuple):
    """A way to do an update."""

    dtype: torch.dtype
    baseline: bool = False
    checkpoint: bool = False


MODES = {
    "baseline": Mode(torch.float32, baseline=True),
    "float32": Mode(torch.float32),
    "bfloat16": Mode(torch.bfloat16),
    "float32-checkpoint": Mode(torch.float32, checkpoint=True),
    "bfloat16-checkpoint": Mode(torch.bfloat16, checkpoint=True),
}


@dataclass(frozen=True)
class Settings:
    """What is measured. `sizes`: of square pictures, pixels. `modes`: of updates; peak memory is measured of all."""

    only: tuple[str, ...] = DEFAULT_PARTS
    sizes: tuple[int, ...] = (512,)
    width: str = "sd15"
    weights: str | None = None
    modes: tuple[str, ...] = ("baseline", "float32", "bfloat16")
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
            if not ddim.is_whole(value) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, came {value!r}")


class Lap(NamedTuple):
    """One update, or one of whatever is measured: seconds by part, and the loss that it saw."""

    seconds: dict[str, float]
    loss: float | None = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Measurement:
    """One case of a part, such as ("update", "bfloat16, mask"): every repeat of it, and what it consists of."""

    part: str
    case: str
    size: int  # of the picture, pixels
    values: tuple[float, ...]  # one a repeat; none where it failed, and `note` says why
    unit: str = "seconds"
    parts: dict[str, tuple[float, ...]] = field(default_factory=dict)  # seconds by part of the same repeats
    losses: tuple[float, ...] = ()
    flops: Flops | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def measured(part: str, case: str, size: int, laps: Sequence[Lap], flops: Flops | None = None) -> Measurement:
    """A measurement in seconds of these repeats."""
    parts = {name: tuple(lap.seconds[name] for lap in laps) for name in laps[0].seconds} if laps else {}
    losses = tuple(lap.loss for lap in laps if lap.loss is not None)
    return Measurement(part, case, size, tuple(lap.total for lap in laps), parts=parts, losses=losses, flops=flops)


class Clock:
    """Seconds by part: each lap ends the one before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        self._since = self._now()

    def lap(self, part: str) -> None:
        now = self._now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def significant(value: float) -> str:
    """Three digits, and no exponent for large numbers."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interleaved(cases: Mapping[str, Iterator[Lap]], repeats: int, say: Say, label: str) -> dict[str, list[Lap]]:
    """One of each case that is not counted, then one of each in turn, `repeats` times."""
    laps: dict[str, list[Lap]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            say(f"{label}: {name}, {f'repeat {turn} of {repeats}' if turn else 'warming up'}")
            lap = next(case)
            if turn:
                laps[name].append(lap)
    return laps


def again(action: Callable[[], Any], device: torch.device, times: int = 1, part: str = "seconds") -> Iterator[Lap]:
    """The action, over and over; a lap is the mean of so many `times`."""
    while True:
        clock = Clock(device)
        for _ in range(times):
            action()
        clock.lap(part)
        yield Lap({part: clock.seconds[part] / times})


# --- networks and what is asked of them -------------------------------------------------------------------------------


def seeded(module: M, dtype: torch.dtype, device: torch.device) -> M:
    """A module built on the meta device, with values: matrices of unit gain and norms about one stay finite."""
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


def network(settings: Settings, dtype: torch.dtype) -> UNet:
    """The UNet that is measured: read from `settings.weights`, or seeded."""
    device = torch.device(settings.device)
    if settings.weights is not None:
        return loading.load(settings.weights, device, dtype).unet
    with torch.device("meta"):
        unet = UNet(WIDTHS[settings.width][0])
    return seeded(unet, dtype, device)


class PlainConvolution(Convolution):
    """As PyTorch has it, and the cells of its map as tokens, which lie as they do in the map."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x)

    def to_tokens(self, x: Tensor) -> Tensor:
        return self(x).flatten(2).transpose(1, 2)

    def from_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self(tokens.transpose(1, 2).unflatten(2, grid))


class PlainGEGLU(GEGLU):
    """As diffusers has it: all that autograd keeps of it is kept."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


def as_published(unet: UNet) -> UNet:
    """The network on the same weights with PyTorch's own convolutions and gated units, as diffusers' has."""
    with torch.device("meta"):
        twin = UNet(unet.config)
        for module in list(twin.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, Convolution):
                    setattr(module, name, PlainConvolution(layer.in_channels, layer.out_channels, layer.kernel_size[0]))
                elif isinstance(layer, GEGLU):
                    setattr(module, name, PlainGEGLU(layer.proj.in_features, layer.proj.out_features // 2))
    return fitting.adopt(twin, unet.state_dict())


class Problem(NamedTuple):
    """What an update is done on."""

    z: Tensor  # (1, 4, h, w) float32
    noise: Noise
    context: Tensor  # (1, 77, C')
    handles: Tensor  # (n, 2) on the supervision grid
    targets: Tensor
    keep: Tensor | None  # (h, w), 1 - mask
    config: DragConfig

    @property
    def grid(self) -> tuple[int, int]:
        return drag.CELLS * self.z.shape[2], drag.CELLS * self.z.shape[3]


def problem(config: UNetConfig, size: int, device: str, masked: bool, handles: int = 1, **changes: Any) -> Problem:
    """A drag of `handles` points by a quarter of a picture of noise, for ever (no handle arrives)."""
    there, side = torch.device(device), size // 8
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, config.latent_channels, side, side, generator=generator).to(there)
    context = torch.randn(1, 77, config.context_dim, generator=generator).to(there)
    keep = None
    if masked:
        keep = torch.ones(side, side, device=there)
        keep[side // 4 : -(side // 4), side // 8 :] = 0
    first, last = lattice(handles, drag.CELLS * side)
    noise = drag.noise_at(Schedule(50, "dragdiffusion"), LEVEL, there)
    drag_config = DragConfig(**{"tap": "decoder3", "reach": 0.0, **changes})
    return Problem(z, noise, context, first.to(there), last.to(there), keep, drag_config)


def lattice(n: int, side: int) -> tuple[Tensor, Tensor]:
    """n handles in the left half of a square grid, and their targets a quarter of it to the right, an eighth down."""
    across = math.ceil(n**0.5)
    cells = torch.tensor([[i % across, i // across] for i in range(n)])
    handles = (side * (0.2 + 0.45 * (cells + 0.5) / across)).floor()  # (n, 2)
    return handles, handles + torch.tensor([side // 4, side // 8])


# --- the loop as DragDiffusion's program does it ----------------------------------------------------------------------


class DenseOrigin(NamedTuple):
    """What later updates are compared with: the first latent's map on the grid, z⁰_{k-1}, and the first handles."""

    dense: Tensor  # (1, C, H, W)
    below: Tensor  # (1, 4, h, w)
    handles: Tensor  # (n, 2)


class BaselineStep(NamedTuple):
    """One pass; `gradient` is None where every handle has arrived."""

    loss: Tensor
    gradient: Tensor | None
    handles: Tensor
    origin: DenseOrigin


class BaselineUpdate(NamedTuple):
    loss: float
    handles: Tensor  # (n, 2), those that the update used
    latent: Tensor  # (1, 4, h, w) after it
    seconds: dict[str, float]


def baseline_updates(unet: UNet, at: Problem) -> Iterator[BaselineUpdate]:
    """DragDiffusion's loop, until every handle is nearer than `reach` to its target.

    One whole pass an update, from the latent and the text alone; from the second on the handles are tracked first. The
    program makes one pass more before the loop, for the first latent's map; here the first update's serves. Nor does it
    freeze the network, so that its backward pass computes gradients of all weights too, which nobody uses: left out.
    """
    latent = at.z.clone().requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=at.config.lr)
    handles, origin = at.handles, None
    while True:
        clock = Clock(latent.device)
        step = baseline_step(unet, latent, at, handles, origin, clock)
        if step.gradient is None:
            return
        handles, origin = step.handles, origin or step.origin
        latent.grad = step.gradient
        optimizer.step()
        clock.lap("optimiser")
        yield BaselineUpdate(float(step.loss), handles, latent.detach().clone(), clock.seconds)


def baseline_step(
    unet: UNet, latent: Tensor, at: Problem, handles: Tensor, origin: DenseOrigin | None, clock: Clock
) -> BaselineStep:
    """A whole pass, the map on the grid, tracking, the loss with its mask term, and the gradient."""
    tap = at.config.tap
    with torch.enable_grad():
        out = unet(latent, at.noise.timestep, at.context, attention=plain_attention, taps=(tap,))
        below = ddim.ddim(latent, out.eps, at.noise.alpha_bar, at.noise.alpha_bar_below)  # z_{k-1}
        clock.lap("forward")
        dense = patch_loss.upsampled(out.taps[tap], at.grid)  # (1, C, H, W)
        clock.lap("loss")
        if origin is None:
            origin = DenseOrigin(dense.detach(), below.detach(), handles)
        else:
            handles = tracked(dense.detach(), handles, origin, at.config.track_radius)
            clock.lap("tracking")
        loss, arrived = latent.new_zeros(()), (at.targets - handles).norm(dim=1) < at.config.reach
        if arrived.all():
            return BaselineStep(loss, None, handles, origin)
        for handle, target in zip(handles[~arrived], at.targets[~arrived], strict=True):
            loss = loss + pull(dense, handle, target, at.config.radius)
        if at.keep is not None:
            loss = loss + at.config.lam * ((below - origin.below).abs() * at.keep).sum()
        clock.lap("loss")
        (gradient,) = torch.autograd.grad(loss, latent)
        clock.lap("backward")
    return BaselineStep(loss.detach(), gradient, handles, origin)


def plain_attention(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """PyTorch's own, whatever this package's is."""
    return F.scaled_dot_product_attention(q, k, v)


class Square(NamedTuple):
    """The part of the grid within a radius of int(point): rows top … bottom - 1 and columns left … right - 1."""

    top: int
    bottom: int
    left: int
    right: int


def square_about(point: Tensor, radius: int, dense: Tensor) -> Square:
    (height, width), x, y = dense.shape[2:], int(point[0]), int(point[1])
    return Square(max(0, y - radius), min(height, y + radius + 1), max(0, x - radius), min(width, x + radius + 1))


def tracked(dense: Tensor, handles: Tensor, origin: DenseOrigin, radius: int) -> Tensor:
    """For each handle the cell of its square whose features are nearest to the first handle's on the first map."""
    found = []
    for handle, first in zip(handles, origin.handles, strict=True):
        sought = origin.dense[0, :, int(first[1]), int(first[0])]  # (C,)
        top, bottom, left, right = square_about(handle, radius, dense)
        distance = (dense[0, :, top:bottom, left:right] - sought[:, None, None]).abs().sum(dim=0)
        best = int(distance.argmin())
        found.append([left + best % (right - left), top + best // (right - left)])
    return torch.tensor(found, dtype=handles.dtype, device=handles.device)


def pull(dense: Tensor, handle: Tensor, target: Tensor, radius: int) -> Tensor:
    """(2 r₁ + 1)² times the mean |patch moved by the unit vector to the target - patch|, sliced from the map."""
    d = (target - handle) / (target - handle).norm()
    top, bottom, left, right = square_about(handle, radius, dense)
    stays = dense[:, :, top:bottom, left:right].detach()
    y, x = math.floor(top + float(d[1])), math.floor(left + float(d[0]))  # of the first sample's upper left neighbour
    fraction_y, fraction_x = top + d[1] - y, left + d[0] - x
    height, width = stays.shape[2] + 1, stays.shape[3] + 1  # of the neighbours
    above, before = max(0, -y), max(0, -x)
    below, behind = max(0, y + height - dense.shape[2]), max(0, x + width - dense.shape[3])
    corners = dense[:, :, y + above : y + height - below, x + before : x + width - behind]
    corners = F.pad(corners, (before, behind, above, below), mode="replicate")
    moved = patch_loss.between(corners, fraction_x.expand(1, width - 1), fraction_y.expand(1, height - 1))
    return (2 * radius + 1) ** 2 * F.l1_loss(moved, stays)


# --- the loop as it is here -------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Between two updates."""

    latent: Tensor
    handles: Tensor
    origin: drag.Origin | None = None
    adam: drag.AdamState | None = None


def drag_updates(unet: UNet, at: Problem, compile: str = "off") -> Iterator[Lap]:
    """The loop of `drag.drag_latent`, for ever. With `compile` the first update is eager, and the second compiles."""
    state, extract = State(at.z, at.handles), drag.extractor(unet, at.noise, at.context, at.config)
    with heap.kept(at.z.device):
        if compile != "off":
            clock = Clock(at.z.device)
            state, loss = drag_update(extract, state, at, clock)
            yield Lap(clock.seconds, loss)
            extract = drag.extractor(unet, at.noise, at.context, at.config, compile)
        step = None if compile == "off" else drag.stepper(compile, at.z.device)
        while True:
            clock = Clock(at.z.device)
            state, loss = drag_update(extract, state, at, clock, step)
            yield Lap(clock.seconds, loss)


def drag_update(
    extract: drag.FeatureExtractor,
    state: State,
    at: Problem,
    clock: Clock,
    step: Callable[..., drag.Step] | None = None,
) -> tuple[State, float]:
    """One update by parts, or by `step` in one; the state after it, and the loss."""
    found: Any
    if step is not None:
        found = step(
            extract, state.latent, at.noise, at.context, state.handles, at.targets, state.origin, at.keep, at.config
        )
        gradient = found.gradient
        clock.lap("step")
    else:
        with torch.enable_grad():
            z = state.latent.detach().requires_grad_()
            masked = at.keep is not None
            out = drag.network_pass(extract, z, at.noise, at.context, state.handles, state.origin, masked, at.config)
            clock.lap("forward")
            found = supervised(out, z, state, at)
            clock.lap("loss")
            (gradient,) = torch.autograd.grad(found.loss, z)
            clock.lap("backward")
    latent, adam = drag.adam(state.latent, gradient, state.adam, at.config.lr)
    loss = float(found.loss.detach())
    clock.lap("optimiser")
    if step is None and state.origin is not None:  # it was a part of the loss's lap: done once more to be told apart
        track(found.origin.features, state, at)
        clock.lap("tracking")
        clock.seconds["loss"] -= clock.seconds["tracking"]
    return State(latent, found.handles, state.origin or found.origin, adam), loss


def supervised(out: UNetOutput, z: Tensor, state: State, at: Problem) -> drag.Supervision:
    """Tracking and the loss on a pass that is done."""

    def done(*_: Any, **__: Any) -> UNetOutput:
        return out

    return drag.motion_supervision(
        done, z, at.noise, at.context, state.handles, at.targets, state.origin, at.keep, at.config
    )


@torch.no_grad()
def track(features: Tensor, state: State, at: Problem) -> None:
    """The tracking of `drag.motion_supervision`, for its time."""
    assert state.origin is not None
    reference = tracking.sample_points(state.origin.features, state.origin.handles.trunc(), at.grid)
    tracking.track(features, reference, state.handles, at.config.track_radius, at.grid)
    tracking.chance(features, reference)


def baseline_laps(unet: UNet, at: Problem) -> Iterator[Lap]:
    for update in baseline_updates(unet, at):
        yield Lap(update.seconds, update.loss)


def updates_of(settings: Settings, task: Mapping[str, Any]) -> Iterator[Lap]:
    """In the child: updates of a mode, with a mask or without."""
    mode = MODES[task["mode"]]
    unet = network(settings, mode.dtype)
    at = problem(unet.config, task["size"], settings.device, task["masked"], checkpoint=mode.checkpoint)
    return baseline_laps(as_published(unet), at) if mode.baseline else drag_updates(unet, at)


# --- what an update takes at least ------------------------------------------------------------------------------------


class Flops(NamedTuple):
    """Floating-point operations of one update; those of attention (its products with K and V) apart, and among them."""

    forward: int
    backward: int
    attention_forward: int
    attention_backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward

    @property
    def attention(self) -> int:
        return self.attention_forward + self.attention_backward


def count_flops(config: UNetConfig, size: int, tap: str, masked: bool, baseline: bool) -> Flops:
    """Counted in a pass on the meta device, where every attention is its two matrix products, for one handle.

    Backward to the latent alone. What is computed twice (by checkpointing, or by attention that keeps no weights)
    counts once.
    """
    with torch.device("meta"):
        unet = as_published(UNet(config).requires_grad_(False))  # whose products of batches are attention's alone
        z = torch.empty(1, config.latent_channels, size // 8, size // 8).requires_grad_()
        context = torch.empty(1, 77, config.context_dim)
        until, wanted = None if masked or baseline else tap, None
        if until is not None:
            features = unet(z, torch.tensor(1), context, taps=(tap,), until=tap).taps[tap]
            grid = drag.CELLS * z.shape[2], drag.CELLS * z.shape[3]
            wanted = drag.looked_at(torch.empty(1, 2), features, grid, DragConfig(tap=tap))
        with torch.enable_grad():
            with FlopCounterMode(display=False) as forward:
                out = unet(
                    z, torch.tensor(1), context, attention=plain_attention, taps=(tap,), until=until, wanted=wanted
                )
            loss = out.taps[tap].sum() + (out.eps.sum() if masked else 0)
            with FlopCounterMode(display=False) as backward:
                torch.autograd.grad(loss, z)

    def attention(counted: FlopCounterMode) -> int:
        return counted.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)

    return Flops(
        forward.get_total_flops(), backward.get_total_flops(), attention(forward), attention(backward)
    )  # fmt: skip


class Roof(NamedTuple):
    """The best rates of a type, FLOP a second."""

    matmul: float
    convolution: float
    attention: float  # scaled-dot-product attention, forward and backward

    def least(self, flops: Flops) -> float:
        """Seconds that an update cannot go under at these rates."""
        return (flops.total - flops.attention) / max(self.matmul, self.convolution) + flops.attention / self.attention


def roof(dtype: torch.dtype, device: torch.device, config: UNetConfig, repeats: int) -> Roof:
    """The best of matrix products and convolutions of the UNet's shapes at 512 px, and of its largest attention."""
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


# --- what is measured -------------------------------------------------------------------------------------------------

Network = Callable[[torch.dtype], UNet]


def case_name(mode: str, masked: bool) -> str:
    return f"{mode}, mask" if masked else mode


def in_turns(
    part: str, settings: Settings, size: int, say: Say, tasks: Mapping[str, Mapping[str, Any]], repeats: int
) -> list[Measurement]:
    """The laps of each task, in turns."""
    try:
        with processes(tasks, settings) as cases:
            laps = interleaved(cases, repeats, say, f"{part} at {size} px")
    except ChildError as error:
        return [Measurement(part, case, size, (), note=str(error)) for case in tasks]
    return [measured(part, case, size, laps[case]) for case in tasks]


def measure_update(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Updates of each mode, without and with a mask, by parts."""
    config, rows = unet(torch.float32).config if settings.weights else WIDTHS[settings.width][0], []
    count = cache(count_flops)  # modes differ in type alone, but for the baseline
    for masked in (False, True):
        tasks = {
            case_name(name, masked): {"task": "update", "size": size, "mode": name, "masked": masked}
            for name in settings.modes
        }
        found = in_turns("update", settings, size, say, tasks, settings.repeats)
        say("counting operations")
        for row, name in zip(found, settings.modes, strict=True):
            rows.append(replace(row, flops=count(config, size, "decoder3", masked, MODES[name].baseline)))
    return rows


def measure_memory(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Peak memory of one update of each mode, each in a process of its own; and of the weights, and of nothing."""
    tasks: dict[str, dict[str, Any]] = {
        "interpreter": {"mode": None},
        "weights, float32": {"mode": None, "dtype": "float32"},
        "weights, bfloat16": {"mode": None, "dtype": "bfloat16"},
    }
    for masked in (False, True):
        for name in MODES:
            if settings.modes == ("baseline",) and name != "baseline":
                continue
            tasks[case_name(name, masked)] = {"mode": name, "masked": masked}
    rows = []
    for case, task in tasks.items():
        say(f"memory at {size} px: {case}")
        try:
            found = in_child({"task": "memory", "size": size, **task}, settings)
            rows.append(Measurement("memory", case, size, (found["bytes"],), "bytes"))
        except ChildError as error:
            rows.append(Measurement("memory", case, size, (), "bytes", note=str(error)))
    return rows


def memory_task(settings: Settings, task: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: one update as it is from the second one on, when there is a first latent to compare with."""
    if task["mode"] is None:
        if "dtype" in task:
            network(settings, getattr(torch, task["dtype"]))
        return {"bytes": peak_memory(settings.device)}
    mode = MODES[task["mode"]]
    unet = network(settings, mode.dtype)
    at = problem(unet.config, task["size"], settings.device, task["masked"], checkpoint=mode.checkpoint)
    channels, side = unet.config.widths[1], at.z.shape[2]
    clock, below = Clock(at.z.device), at.z if task["masked"] or mode.baseline else None
    if mode.baseline:
        assert below is not None
        unet = as_published(unet)
        dense = at.z.new_zeros(1, channels, *at.grid)
        latent = at.z.clone().requires_grad_()
        step = baseline_step(unet, latent, at, at.handles, DenseOrigin(dense, below, at.handles), clock)
        latent.grad = step.gradient
        torch.optim.Adam([latent], lr=at.config.lr).step()
    else:
        origin = drag.Origin(at.z.new_zeros(1, channels, side, side).to(mode.dtype), below, at.handles)
        extract = drag.extractor(unet, at.noise, at.context, at.config)
        with heap.kept(at.z.device):
            drag_update(extract, State(at.z, at.handles, origin), at, clock)
    return {"bytes": peak_memory(settings.device)}


def measure_fused(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """The patch loss and its gradient on features of `decoder3`: from the whole map, and fused."""
    return against_dense("fused", settings, size, say)


def measure_tracking(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Point tracking of one handle on features of `decoder3`: on the whole map, and in the window alone."""
    return against_dense("tracking", settings, size, say)


def against_dense(part: str, settings: Settings, size: int, say: Say) -> list[Measurement]:
    tasks = {case: {"task": part, "size": size, "dense": case == "dense"} for case in ("dense", "fused")}
    return in_turns(part, settings, size, say, tasks, max(settings.repeats, 7))


def losses_of(settings: Settings, task: Mapping[str, Any]) -> Iterator[Lap]:
    """In the child: the patch loss and its gradient."""
    at, features = features_of(settings, task["size"])
    loss = patch_loss.motion_supervision_loss_reference if task["dense"] else patch_loss.motion_supervision_loss
    leaf = features.requires_grad_()

    def loss_and_gradient() -> None:
        with torch.enable_grad():
            found = loss(leaf, at.handles, at.targets, at.config.radius, at.grid)
            torch.autograd.grad(found, leaf)

    return again(loss_and_gradient, at.z.device, runs_of_a_lap(task))


def trackings_of(settings: Settings, task: Mapping[str, Any]) -> Iterator[Lap]:
    """In the child: point tracking."""
    at, features = features_of(settings, task["size"])
    reference = tracking.sample_points(features, at.handles, at.grid)
    track_points = tracking.track_points_reference if task["dense"] else tracking.track_points
    arguments = features, reference, at.handles, at.config.track_radius, at.grid
    return again(partial(track_points, *arguments), at.z.device, runs_of_a_lap(task))


def runs_of_a_lap(task: Mapping[str, Any]) -> int:
    """How often the work is done for one lap: one of the fused ones is too short for the clock."""
    return 1 if task["dense"] else 20


def features_of(settings: Settings, size: int) -> tuple[Problem, Tensor]:
    """A map as `decoder3` has it, 640×64×64 at SD 1.5's width and 512 px, and the drag of one handle."""
    config = WIDTHS[settings.width][0]
    at = problem(config, size, settings.device, masked=False)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, config.widths[1], *at.z.shape[2:], generator=generator)
    return at, features.to(at.z.device)


def measure_handles(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """An update with each number of handles."""
    net = unet(torch.float32)
    problems = {handles_name(n): problem(net.config, size, settings.device, False, n) for n in settings.handles}
    cases = {name: drag_updates(net, at) for name, at in problems.items()}
    laps = interleaved(cases, settings.repeats, say, f"handles at {size} px")
    return [measured("handles", name, size, laps[name]) for name in cases]


def handles_name(n: int) -> str:
    return f"{n} handle{'s' if n > 1 else ''}"


def measure_denoise(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Denoising of a picture's first edit, beside its source, and of a later one on the source's recorded K/V."""
    net, schedule = unet(torch.float32), Schedule(50)
    at = problem(net.config, size, settings.device, masked=False)
    target, stop = at.z + 0.01, LEVEL - min(settings.steps, LEVEL)
    kept: dict[int, Any] = {}

    def first() -> None:
        context = at.context.expand(2, -1, -1)
        ddim.sample_controlled(net, at.z, target, context, schedule, LEVEL, stop, record=kept.__setitem__)

    def second() -> None:
        ddim.sample_replayed(net, target, at.context, schedule, kept.__getitem__, LEVEL, stop)

    cases = {"first edit": again(first, at.z.device), "second edit": again(second, at.z.device)}
    laps = interleaved(cases, settings.repeats, say, f"denoising at {size} px, {LEVEL - stop} steps")
    return [measured("denoise", case, size, laps[case]) for case in cases]


def measure_recompiles(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """How often the compiled step is compiled again while the handles move, without and with a mask.

    On a tiny network: what a graph is guarded by does not depend on the width.
    """
    with torch.device("meta"):
        net = UNet(TINY[0])
    net, recompiles, notes = seeded(net, torch.float32, torch.device("cpu")), 0, []
    for masked in (False, True):
        say(f"recompiles in {UPDATES} updates")
        traced = traced_updates(net, problem(net.config, 64, "cpu", masked))
        recompiles += traced.graphs - 1
        kind = "with a mask" if masked else "without"
        notes.append(f"{kind} {traced.graphs} graph for {traced.places} places of the handle")
    return [Measurement("recompiles", "whole", size, (float(recompiles),), "recompiles", note="; ".join(notes))]


class Traced(NamedTuple):
    """How many graphs served, and from how many different places the handles started."""

    graphs: int
    places: int


def traced_updates(net: drag.FeatureExtractor, at: Problem) -> Traced:
    """`UPDATES` compiled updates after an eager one; the backend only counts what it is given to compile."""
    graphs: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    extract = drag.extractor(net, at.noise, at.context, at.config)
    step = drag.stepper("whole", at.z.device, counting)
    state, places = State(at.z, at.handles), set()
    for update in range(1 + UPDATES):
        state, _ = drag_update(extract, state, at, Clock(at.z.device), step if update else None)
        state = state._replace(handles=state.handles + 0.25 * (update % 3))  # moved, whatever tracking has found
        places.add(tuple(state.handles.flatten().tolist()))
    return Traced(len(graphs), len(places))


def measure_compile(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """The compiled update against the eager one, and what it takes to begin: cold, and from the compiler's cache.

    Each in a fresh process. What was measured is recorded for `compile="auto"` to decide by.
    """
    rows = []
    for name in settings.modes:
        if MODES[name].baseline:
            continue
        for how in compiling.MODES:
            with tempfile.TemporaryDirectory() as folder:
                task = {"task": "compile", "size": size, "mode": name, "compile": how}
                try:
                    say(f"compile at {size} px: {name}, {how}, cold")
                    cold = in_child({**task, "repeats": 0}, settings, TORCHINDUCTOR_CACHE_DIR=folder)["first"]
                    say(f"compile at {size} px: {name}, {how}, warm")
                    warm = in_child({**task, "cold": cold}, settings, TORCHINDUCTOR_CACHE_DIR=folder)
                except ChildError as error:
                    rows.append(Measurement("compile", f"{name}, {how}", size, (), note=str(error)))
                    continue
            rows += [
                Measurement("compile", f"{name}, eager beside {how}", size, tuple(warm["eager"])),
                Measurement("compile", f"{name}, {how}", size, tuple(warm["compiled"])),
                Measurement("compile", f"{name}, {how}: first update, cold", size, (cold,)),
                Measurement("compile", f"{name}, {how}: first update, warm", size, (warm["first"],)),
            ]
    return rows


def compile_task(settings: Settings, task: Mapping[str, Any]) -> dict[str, Any]:
    """In the child: the first compiled update, and later ones in turns with eager ones."""
    mode = MODES[task["mode"]]
    unet = network(settings, mode.dtype)
    at = problem(unet.config, task["size"], settings.device, False, checkpoint=mode.checkpoint)
    cases = {"eager": drag_updates(unet, at), "compiled": drag_updates(unet, at, task["compile"])}
    for case in cases.values():
        next(case)  # for the compiled one too an eager update
    first, repeats = next(cases["compiled"]).total, task.get("repeats", settings.repeats)
    found: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(repeats):
        for name, case in cases.items():
            found[name].append(next(case).total)
    if "cold" in task:
        eager, compiled = (statistics.median(values) for values in found.values())
        seconds = compiling.Seconds(eager=eager, compiled=compiled, cold=task["cold"], warm=first)
        compiling.record(compiling.case(unet, at.z, at.config, mask=False), task["compile"], seconds)
    return {"first": first, **found}


def measure_whole(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """A whole edit by stages, once, with few steps; and a second one of the same picture.

    Before each mode's a small picture is edited, which is not counted.
    """
    schedule, rows = Schedule(max(2, settings.steps)), []
    for name in settings.modes:
        mode = MODES[name]
        net, vae = unet(mode.dtype), autoencoder(settings, mode.dtype)
        net = as_published(net) if mode.baseline else net
        say(f"whole edit at {size} px: {name}")
        for side in (64, size):
            at = problem(net.config, side, settings.device, masked=False, checkpoint=mode.checkpoint)
            at = at._replace(noise=drag.noise_at(schedule, schedule.steps - 1, at.z.device))
            first, second = whole_edit(net, vae, at, schedule, mode, settings.updates)
        note = (
            f"once: T = {schedule.steps}, S = 1, {settings.updates} updates; the paper's 50, 10 and 80 at these rates "
        )
        for case, lap in ((name, first), (f"{name}, second edit", second)):
            seconds = paper_seconds(lap.seconds, schedule.steps, settings.updates)
            rows.append(replace(measured("whole", case, size, [lap]), note=f"{note}{significant(seconds)} s"))
    return rows


@torch.no_grad()
def whole_edit(unet: UNet, vae: VAE, at: Problem, schedule: Schedule, mode: Mode, updates: int) -> tuple[Lap, Lap]:
    """Encode, invert, drag at z_{T-1}, denoise, decode; and once more, without the stages that a source needs once."""
    level, clock = schedule.steps - 1, Clock(at.z.device)
    kept: dict[int, Any] = {}
    context, laps = at.context.expand(2, -1, -1), []
    picture = at.z.new_zeros(1, 3, 8 * at.z.shape[2], 8 * at.z.shape[3])
    z_0 = vae.encode(picture)
    clock.lap("encode")
    source = ddim.invert(unet, z_0, at.context, schedule)[level]  # (1, 4, h, w)
    clock.lap("inversion")
    for replayed in (False, True):
        if mode.baseline:
            target = source
            for update in islice(baseline_updates(unet, at._replace(z=source)), updates):
                target = update.latent
        else:
            config = replace(at.config, updates=updates, patience=None, lost_patience=None)
            target = drag.drag_latent(
                unet, source, level, at.context, schedule, at.handles, at.targets, config=config
            ).latent  # fmt: skip
        clock.lap("drag")
        if replayed and not mode.baseline:
            z = ddim.sample_replayed(unet, target, at.context, schedule, kept.__getitem__, level)[-1]
        else:
            record = None if mode.baseline else kept.__setitem__
            z = ddim.sample_controlled(unet, source, target, context, schedule, level, record=record)[-1, 1:]
        clock.lap("denoising")
        vae.decode(z)
        clock.lap("decode")
        laps.append(Lap(clock.seconds))
        clock = Clock(at.z.device)
    return laps[0], laps[1]


def paper_seconds(seconds: Mapping[str, float], steps: int, updates: int) -> float:
    """What the paper's T = 50, S = 10 and 80 updates take at the rates of a shorter edit with S = 1."""
    times = {"inversion": 50 / steps, "drag": 80 / max(1, updates), "denoising": 40 / (steps - 1)}
    return sum(value * times.get(stage, 1.0) for stage, value in seconds.items())


def autoencoder(settings: Settings, dtype: torch.dtype) -> VAE:
    device = torch.device(settings.device)
    if settings.weights is not None:
        return loading.load(settings.weights, device, dtype).vae
    with torch.device("meta"):
        vae = VAE(WIDTHS[settings.width][1])
    return seeded(vae, dtype, device)


MEASURES: dict[str, Callable[[Settings, Network, int, Say], list[Measurement]]] = {
    "memory": measure_memory,  # the first, while this process holds little
    "recompiles": measure_recompiles,
    "fused": measure_fused,
    "tracking": measure_tracking,
    "update": measure_update,
    "handles": measure_handles,
    "denoise": measure_denoise,
    "compile": measure_compile,
    "whole": measure_whole,
}


# --- processes of their own -------------------------------------------------------------------------------------------


class ChildError(RuntimeError):
    """A process that measures has failed; the message is how it ended."""


def start(
    task: Mapping[str, Any], settings: Settings, complaints: IO[str], **environment: str
) -> subprocess.Popen[str]:
    """A fresh process for a task, which does nothing else."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    command = [sys.executable, "-m", "dragsa.speed.bench", json.dumps({**task, "settings": asdict(settings)})]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, env=variables)


def answer(process: subprocess.Popen[str], complaints: IO[str]) -> Any:
    """What a process prints next. Raises ChildError where it ends instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if line:
        return json.loads(line)
    code = process.wait()
    complaints.seek(0)
    last = (complaints.read().strip().splitlines() or [""])[-1]
    raise ChildError(f"ended with code {code}{last and f': {last}'}")


def complaints_file() -> IO[str]:
    """For what a process writes to its standard error."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def in_child(task: Mapping[str, Any], settings: Settings, **environment: str) -> dict[str, Any]:
    """The result of one of `TASKS` in a process of its own."""
    with complaints_file() as complaints, start(task, settings, complaints, **environment) as process:
        return answer(process, complaints)


@contextmanager
def processes(tasks: Mapping[str, Mapping[str, Any]], settings: Settings) -> Iterator[dict[str, Iterator[Lap]]]:
    """The laps of each of several tasks of `LAPS`, in processes of their own, which wait while another is asked."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(laps_of(name, task, settings)) for name, task in tasks.items()}


@contextmanager
def laps_of(name: str, task: Mapping[str, Any], settings: Settings) -> Iterator[Iterator[Lap]]:
    with complaints_file() as complaints, start(task, settings, complaints) as process:
        assert process.stdin is not None
        asks = process.stdin.fileno()

        def laps() -> Iterator[Lap]:
            while True:
                with suppress(OSError):  # of a pipe whose other end is closed: then the process has said why
                    os.write(asks, b"\n")
                try:
                    yield Lap(**answer(process, complaints))
                except ChildError as error:
                    raise ChildError(f"{name} {error}") from None

        yield laps()


TASKS: dict[str, Callable[[Settings, Mapping[str, Any]], dict[str, Any]]] = {
    "memory": memory_task,
    "compile": compile_task,
}
LAPS: dict[str, Callable[[Settings, Mapping[str, Any]], Iterator[Lap]]] = {
    "update": updates_of,
    "fused": losses_of,
    "tracking": trackings_of,
}


def child(argument: str) -> int:
    """The other side of `start`: prints the result of a task, or for each line that it is sent a lap; nothing else."""
    task, answers = json.loads(argument), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too
    settings = Settings(**task["settings"])
    torch.set_num_threads(settings.threads or cores())
    if task["task"] in TASKS:
        print(json.dumps(TASKS[task["task"]](settings, task)), file=answers, flush=True)
    else:
        laps = LAPS[task["task"]](settings, task)
        for _ in sys.stdin:
            print(json.dumps(next(laps)._asdict()), file=answers, flush=True)
    return 0


def peak_memory(device: str) -> int:
    """The most bytes that this process has held, on a GPU those of its tensors."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux counts a parent's peak into what getrusage says of its child
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- the run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Everything that was measured, and where."""

    settings: Settings
    machine: dict[str, Any]
    versions: dict[str, str]
    roofs: dict[str, Roof]  # by type
    rows: tuple[Measurement, ...]
    seconds: float

    @property
    def size(self) -> int:
        """Of the picture that the goals are about: 512, or the largest where that was not measured."""
        return 512 if 512 in self.settings.sizes else max(self.settings.sizes)

    def of(self, part: str, size: int) -> list[Measurement]:
        return [row for row in self.rows if row.part == part and row.size == size]


def run(settings: Settings, say: Say = lambda text: None) -> Report:
    """Measure what the settings say. Raises ValueError for a device or weights that cannot be used."""
    loading.usable(settings.device, torch.float32)
    if settings.weights is not None and not Path(settings.weights).exists():
        raise loading.WeightsError(f"{settings.weights}: there is no such file or folder")
    begin, threads = time.perf_counter(), settings.threads or cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        machine, unet = machine_of(settings, threads), cache(partial(network, settings))
        roofs, rows = {}, []
        for name, measure in MEASURES.items():
            if name in settings.only:
                for size in settings.sizes:
                    rows += measure(settings, unet, size, say)
        if "roof" in settings.only:
            for dtype in dict.fromkeys(MODES[mode].dtype for mode in settings.modes):
                say(f"roof of {type_name(dtype)}")
                config, device = WIDTHS[settings.width][0], torch.device(settings.device)
                roofs[type_name(dtype)] = roof(dtype, device, config, settings.repeats)
    finally:
        torch.set_num_threads(before)
    machine["load"] = [machine["load"], load()]
    return Report(settings, machine, trace.versions(), roofs, tuple(rows), time.perf_counter() - begin)


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def machine_of(settings: Settings, threads: int) -> dict[str, Any]:
    """The processor, the instructions that matter here, and how busy it is."""
    model = platform.processor() or platform.machine()
    flags: set[str] = set()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            model = value.strip() if key.strip() == "model name" else model
            flags = flags or (set(value.split()) if key.strip() == "flags" else set())
    instructions = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    device = torch.device(settings.device)
    return {
        "processor": model,
        "instructions": [one for one in instructions if one in flags],
        "cores": cores(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": platform.platform(),
        "load": load(),
    }


def load() -> float | None:
    """Processes that ran or waited in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    sys.exit(child(sys.argv[1]))

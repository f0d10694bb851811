"""Dragging: one latent z_k optimised until the features under the handles have come to the targets (section 3.2).

Each update is one pass of the UNet. It tracks the handles in the current features, and pulls the patch about each one
cell further: z_k ← z_k - η ∂L/∂z_k with

    L = Σ_handles motion supervision + λ Σ |(z_{k-1} - z⁰_{k-1}) (1 - mask)|,

z_{k-1} being the DDIM step down from the current latent and z⁰_{k-1} that from the first. The patch that is pulled
towards can be anchored: a share of it, `DragConfig.anchor`, is then the first latent's about the first handle, so that
what one update blurs is not all that the next one asks for. `motion_supervision_step` is
that pass and its gradient, a pure function of tensors that never waits for the device; the optimiser, the rules for
stopping and the observer are the loop's, in `drag_latent`, which waits for the device once an update.

Points are (x, y) on the supervision grid, four cells for each of the latent's in each direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragsa import ddim, hooks, tracking
from dragsa.config import DragConfig
from dragsa.ddim import Schedule
from dragsa.kernels import heap, patch_loss
from dragsa.kernels.cells import Cells
from dragsa.model.unet import ACTIVATIONS, Conditioning, Run, UNet, UNetOutput, call, checkpointed
from dragsa.passes import compiling

CELLS = 4  # of the supervision grid for one of the latent


class FeatureExtractor(Protocol):
    """What the drag asks of a UNet: taps, and an early end of the pass."""

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Any: ...


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A UNet with all that does not change from update to update computed, and how its regions are run."""

    unet: UNet
    conditioning: Conditioning
    run: Run

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        taps: tuple[str, ...],
        until: str | None,
        wanted: Cells | None = None,
    ) -> UNetOutput:
        conditioning, run = self.conditioning, self.run
        return self.unet(z, t, context, taps=taps, until=until, conditioning=conditioning, run=run, wanted=wanted)


class Noise(NamedTuple):
    """How noisy the latent is, as 0-dimensional tensors: the timestep of z_k, and ᾱ of z_k and of z_{k-1}."""

    timestep: Tensor
    alpha_bar: Tensor
    alpha_bar_below: Tensor


class Origin(NamedTuple):
    """What every later update is compared with, from the pass on the first latent."""

    features: Tensor  # (1, C, h', w') at the tap
    below: Tensor | None  # z⁰_{k-1} (1, 4, h, w); None without the mask term
    handles: Tensor  # (n, 2), the first ones


class Supervision(NamedTuple):
    """One pass on the latent: what is to be minimised, and where the handles are."""

    loss: Tensor  # scalar
    handles: Tensor  # (n, 2), tracked in this pass's features
    distances: Tensor  # (n,) to the targets, in cells
    lost: Tensor  # (n,) bool: nothing in the window is nearer to what is looked for than the average cell of its map
    origin: Origin  # of this latent, detached


class Step(NamedTuple):
    """A pass and its gradient with respect to the latent (1, 4, h, w). `finite`: loss and gradient are, 0-dim. bool."""

    loss: Tensor
    gradient: Tensor
    handles: Tensor
    distances: Tensor
    lost: Tensor
    finite: Tensor
    origin: Origin


@dataclass(frozen=True)
class Update:
    """What an observer sees of one update, when it is done."""

    update: int  # from 1
    total: int  # at most so many
    loss: float
    handles: Tensor  # (n, 2) float32 on the CPU, those that the update used
    distances: Tensor  # (n,) from them to the targets, in cells
    latent: Tensor  # (1, 4, h, w) after it


class DragResult(NamedTuple):
    """The dragged latent, and the course of the loop on the CPU, float32.

    `final_handles` is where tracking found the handles last, or with `DragConfig.stall` nearest. Where the loop ended
    on what it had found ("reached", "not moving", "tracking lost") that is in the returned latent; where the budget
    ended it, in the latent before the last update, since to look once more would cost a pass.
    """

    latent: Tensor  # (1, 4, h, w)
    losses: Tensor  # (updates,)
    handles: Tensor  # (updates, n, 2), those that each update used
    distances: Tensor  # (updates, n), from them to the targets in cells
    final_handles: Tensor  # (n, 2)
    reason: str  # "reached", "budget", "not moving", "tracking lost", "no nearer", "not finite"


class Nearest(NamedTuple):
    """Where the handles have been nearest to their targets so far."""

    distance: float  # mean over the handles, in cells
    latent: Tensor  # (1, 4, h, w)
    handles: Tensor  # (n, 2)
    updates: int  # that led there


def motion_supervision(
    unet: FeatureExtractor,
    latent: Tensor,
    noise: Noise,
    context: Tensor,
    handles: Tensor,
    targets: Tensor,
    origin: Origin | None = None,
    keep: Tensor | None = None,
    config: DragConfig = DragConfig(),  # noqa: B008 (a frozen value)
) -> Supervision:
    """One pass of the UNet and the loss of the module's first lines, differentiable in the latent (1, 4, h, w).

    handles, targets: (n, 2). origin: that of the first latent, whose features are looked for; None on the first latent
    itself, where the handles stand as they are given. keep: (h, w), 1 - mask on the latent's grid; None leaves out the
    mask term, and the pass ends at the tap. Handles nearer than `config.reach` to their target are not pulled.
    """
    grid = CELLS * latent.shape[2], CELLS * latent.shape[3]
    out = network_pass(unet, latent, noise, context, handles, origin, keep is not None, config)
    features = reduce(torch.add, [out.taps[name] for name in taps_of(config)])  # (1, C, h', w')
    lost, stays = torch.zeros_like(handles[:, 0], dtype=torch.bool), None
    if origin is not None:
        sought = handles if config.reference == "current" else origin.handles
        reference = tracking.sample_points(origin.features, sought.trunc(), grid)  # (n, C)
        handles, match = tracking.track(features, reference, handles, config.track_radius, grid)
        lost = match >= tracking.chance(origin.features, reference)
        if config.anchor > 0:
            stays, first = (
                patch_loss.patches(at, points, config.radius, grid)  # (n, C, P, P)
                for at, points in ((features, handles), (origin.features, origin.handles))
            )
            stays = torch.lerp(stays, first, config.anchor)
    distances = (targets - handles).norm(dim=1)
    active = distances >= config.reach
    loss = patch_loss.motion_supervision_loss(features, handles, targets, config.radius, grid, active, stays)
    below = None
    if keep is not None:
        below = ddim.ddim(latent, out.eps, noise.alpha_bar, noise.alpha_bar_below)  # z_{k-1}
        first = below.detach() if origin is None or origin.below is None else origin.below
        loss = loss + config.lam * ((below - first).abs() * keep).sum()
        below = below.detach()
    # A copy of the handles: a compiled pass guards on which of its arguments are one tensor.
    return Supervision(loss, handles, distances, lost, Origin(features.detach(), below, handles.clone()))


def network_pass(
    unet: FeatureExtractor,
    latent: Tensor,
    noise: Noise,
    context: Tensor,
    handles: Tensor,
    origin: Origin | None,
    masked: bool,
    config: DragConfig,
) -> Any:
    """The pass of one update: as far as the tap, or with the mask term the whole.

    One that ends at a single tap computes its last layers for the cells that the update may look at, and no others: all
    but the first latent's pass, whose features are every later one's reference.
    """
    taps, near = taps_of(config), {}
    if not masked and origin is not None and isinstance(unet, Conditioned) and len(taps) == 1:
        grid = CELLS * latent.shape[2], CELLS * latent.shape[3]
        near["wanted"] = looked_at(handles, origin.features, grid, config)
    return unet(latent, noise.timestep, context, taps=taps, until=None if masked else taps[-1], **near)


def taps_of(config: DragConfig) -> tuple[str, ...]:
    """The activations whose sum the features are, in forward order."""
    return tuple(sorted(config.tap.split("+"), key=list(ACTIVATIONS).index))


def looked_at(handles: Tensor, features: Tensor, grid: tuple[int, int], config: DragConfig) -> Cells:
    """The cells of a map like the features (1, C, h', w') that an update with these handles (n, 2) may look at.

    Tracking looks r_2 cells of the grid round the handles; motion supervision r_1 round what it finds, and two beyond.
    """
    (height, width), (h, w) = grid, features.shape[-2:]
    window = patch_loss.window_about(handles, config.track_radius + config.radius, grid)
    rows = patch_loss.cells_under(window.y, 2, h, height)  # (n, K)
    return Cells(rows, patch_loss.cells_under(window.x, 2, w, width))


def motion_supervision_step(
    unet: FeatureExtractor,
    latent: Tensor,
    noise: Noise,
    context: Tensor,
    handles: Tensor,
    targets: Tensor,
    origin: Origin | None = None,
    keep: Tensor | None = None,
    config: DragConfig = DragConfig(),  # noqa: B008 (a frozen value)
) -> Step:
    """`motion_supervision` and the gradient of its loss with respect to the latent."""
    with torch.enable_grad():
        latent = latent.detach().requires_grad_()
        at = motion_supervision(unet, latent, noise, context, handles, targets, origin, keep, config)
        (gradient,) = torch.autograd.grad(at.loss, latent)
    loss = at.loss.detach()
    finite = loss.isfinite() & gradient.isfinite().all()
    return Step(loss, gradient, at.handles, at.distances, at.lost, finite, at.origin)


@torch.no_grad()
def extractor(
    unet: FeatureExtractor, noise: Noise, context: Tensor, config: DragConfig, mode: str = "off"
) -> FeatureExtractor:
    """The network as the loop calls it: time embedding and cross-attention's K/V computed once, for all updates.

    mode: "off", "whole" or "regions", of which the last compiles here. A callable that is not a UNet comes back as it
    is; a ValueError where it is to be compiled or checkpointed.
    """
    if not isinstance(unet, UNet):
        if config.checkpoint or mode != "off":
            what = "checkpoint" if config.checkpoint else "compile"
            raise ValueError(f"drag: {what} is for dragsa's own UNet, came {type(unet).__name__}")
        return unet
    run = compiling.regions() if mode == "regions" else call
    if config.checkpoint:
        run = partial(checkpointed, run=run)
    return Conditioned(unet, unet.condition(noise.timestep, context), run)


def stepper(mode: str, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> Callable[..., Step]:
    """`motion_supervision_step`, compiled where the mode is "whole".

    That one is a single graph, for updates that have an origin to be compared with: the first of an edit, which has
    none, is run as it is. Called with other handles, targets, latents and conditioning, it is not compiled again.
    """
    if mode == "whole":
        return compiling.whole(motion_supervision_step, device.type, backend)
    return motion_supervision_step


@contextmanager
def frozen(unet: FeatureExtractor) -> Iterator[None]:
    """A module's parameters without gradient inside, so that nothing is kept for it, and as they were afterwards."""
    trained = [p for p in unet.parameters() if p.requires_grad] if isinstance(unet, nn.Module) else []
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.inference_mode(False)
def drag_latent(
    unet: FeatureExtractor,
    z: Tensor,
    level: int,
    context: Tensor,
    schedule: Schedule,
    handles: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    config: DragConfig = DragConfig(),  # noqa: B008 (a frozen value)
    observe: Callable[[Update], None] | None = None,
) -> DragResult:
    """Optimise z_k until the features under the handles have come to the targets.

    z: (1, 4, h, w) at `level` k, 1 … T; it is left as it is. context: (1, tokens, C'). handles, targets: (n, 2) on the
    supervision grid (4h, 4w). mask: (4h, 4w) in [0, 1], 1 may move; None, or all black, switches its term off. observe:
    called after every update. Latent, optimiser and loss are float32 (float64 for a float64 latent), whatever the
    network's type. It may be called under `torch.no_grad` and `torch.inference_mode`, and of a module whose parameters
    want a gradient: none is taken for them.

    The loop ends, and `.reason` says so, when

    - "reached": every handle is nearer than `config.reach` to its target (before the first pass: no update);
    - "budget": `config.updates` updates are done;
    - "not moving": through `config.patience` updates tracking has found every handle, but for those that have arrived,
      where it was;
    - "tracking lost": through `config.lost_patience` updates nothing in the window of a handle that has not arrived is
      nearer to what is looked for than the average cell of the whole map, so that the match means nothing;
    - "no nearer": through `config.stall` updates the handles' mean distance has not come below its least;
    - "not finite": loss, gradient or latent is not. The update that led there is undone and not counted.

    With `config.stall` a loop that has not reached the targets gives back the latent in which they were nearest.

    Raises ValueError for a wrong shape, points outside of the grid, an unknown tap, a level or setting out of range, a
    network whose weights were made under `torch.inference_mode`.
    """
    schedule.check_level(level, lowest=1)
    check_config(config)
    check_differentiable(unet)
    if z.ndim != 4 or z.shape[0] != 1:
        raise ValueError(f"one latent is dragged at a time: expected (1, 4, h, w), came {tuple(z.shape)}")
    grid = CELLS * z.shape[2], CELLS * z.shape[3]
    handles, targets = (check_points(points, name, grid) for points, name in ((handles, "handle"), (targets, "target")))
    if handles.shape != targets.shape:
        raise ValueError(f"as many targets as handles are needed, came {len(handles)} handles, {len(targets)} targets")

    keep = None
    if mask is not None:
        mask = check_mask(mask, grid)
        if config.lam > 0 and mask.any():
            keep = 1 - to_latent_grid(mask, z)  # (h, w)

    latent = before = z.detach().to(torch.promote_types(z.dtype, torch.float32), copy=True)
    noise, targets_there = noise_at(schedule, level, z.device), targets.to(z.device)
    context = context.clone() if context.is_inference() else context
    descend, state = OPTIMIZERS[config.optimizer], None
    losses: list[float] = []
    used: list[Tensor] = []  # the handles of each update, (n, 2)
    origin: Origin | None = None
    distances = (targets - handles).norm(dim=1)
    unmoved, lost = 0, torch.zeros(len(handles), dtype=torch.long)  # for so many updates in succession
    nearest = Nearest(math.inf, latent, handles, 0)
    reason = "reached" if bool((distances < config.reach).all()) else None
    if reason is None:
        mode = compile_mode(unet, latent, distances, keep is not None, config)
        extract, supervise = extractor(unet, noise, context, config, mode), motion_supervision_step
    with frozen(unet), heap.kept(z.device):
        while reason is None and len(losses) < config.updates:
            step = supervise(extract, latent, noise, context, handles.to(z.device), targets_there, origin, keep, config)
            if not step.finite:  # here the update waits for the device
                reason = "not finite"
                break
            found, pulled = step.handles.cpu(), distances >= config.reach
            unmoved = 0 if origin is None or bool((found != handles.trunc())[pulled].any()) else unmoved + 1
            handles, distances = found, step.distances.cpu()
            active = distances >= config.reach
            lost = torch.where(step.lost.cpu() & active, lost + 1, 0)
            if origin is None:
                origin, supervise = step.origin, stepper(mode, z.device)
            elif isinstance(unet, UNet) and mode != "off" and len(losses) == 1:  # it has been compiled just now
                compiling.started(compiling.case(unet, latent, config, keep is not None), mode, len(handles))
            if distances.mean() < nearest.distance:
                nearest = Nearest(distances.mean().item(), latent, handles, len(losses))
            reason = why_stop(active, unmoved, lost, len(losses) - nearest.updates, config)
            if reason is None:
                before, (latent, state) = latent, descend(latent, step.gradient, state, config.lr)
                losses.append(float(step.loss))
                used.append(handles)
                if observe is not None:
                    observe(Update(len(losses), config.updates, losses[-1], handles, distances, latent))

    if used and not latent.isfinite().all():
        reason = "not finite"
    if used and reason == "not finite":
        latent, handles = before, used.pop()
        losses.pop()
    if used and config.stall is not None and reason != "reached":
        latent, handles = nearest.latent, nearest.handles
    course = torch.stack(used) if used else handles.new_zeros(0, *handles.shape)  # (updates, n, 2)
    return DragResult(
        latent=latent,
        losses=torch.tensor(losses, dtype=torch.float32),
        handles=course,
        distances=(targets - course).norm(dim=2),
        final_handles=handles,
        reason=reason or "budget",
    )


def why_stop(active: Tensor, unmoved: int, lost: Tensor, stalled: int, config: DragConfig) -> str | None:
    """The reason to end the loop before another update, or None.

    active: (n,) bool, the handles that have not arrived. unmoved, lost (n,), stalled: updates in succession without a
    move of any handle, without a match for each, and without coming nearer.
    """
    if not active.any():
        return "reached"
    if config.lost_patience is not None and bool((lost >= config.lost_patience).any()):
        return "tracking lost"
    if config.patience is not None and unmoved >= config.patience:
        return "not moving"
    if config.stall is not None and stalled >= config.stall:
        return "no nearer"
    return None


class AdamState(NamedTuple):
    mean: Tensor  # of the gradient, decayed
    square: Tensor  # of its square
    steps: int


def adam(
    latent: Tensor,
    gradient: Tensor,
    state: AdamState | None,
    lr: float,
    squared: Callable[[Tensor], Tensor] = torch.square,
) -> tuple[Tensor, AdamState]:
    """One step of Adam (Kingma and Ba 2015, algorithm 1) with β = 0.9, 0.999 and ε = 1e-8.

    squared: of the gradient, its square by elements or what stands for that.
    """
    if state is None:
        state = AdamState(torch.zeros_like(gradient), torch.zeros_like(gradient), 0)
    steps = state.steps + 1
    mean = torch.lerp(state.mean, gradient, 1 - 0.9)
    square = 0.999 * state.square + (1 - 0.999) * squared(gradient)
    deviation = square.sqrt() / math.sqrt(1 - 0.999**steps) + 1e-8
    return latent - lr / (1 - 0.9**steps) * mean / deviation, AdamState(mean, square, steps)


def mean_square(gradient: Tensor) -> Tensor:
    """One value for the whole latent: with it Adam is Adam-mini (Zhang et al. 2024) of a single block.

    Adam moves every element by about η, however small its gradient: far from the handles too, where that is noise. By
    one common scale a latent changes where the loss depends on it, and is kept elsewhere.
    """
    return gradient.square().mean()


def sgd(latent: Tensor, gradient: Tensor, state: None, lr: float) -> tuple[Tensor, None]:
    """The paper's plain gradient descent, z ← z - η ∂L/∂z."""
    return latent - lr * gradient, None


OPTIMIZERS: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    "adam": adam,
    "adam-mini": partial(adam, squared=mean_square),
    "sgd": sgd,
}


def noise_at(schedule: Schedule, level: int, device: torch.device) -> Noise:
    """The noise of z_k, k = `level` ≥ 1."""
    # Copies: a schedule made under torch.inference_mode has tensors that no gradient's pass may keep.
    below, here = schedule.alpha_bars[level - 1 : level + 1].to(device, copy=True)
    return Noise(schedule.timesteps[level - 1].to(device, copy=True), here, below)


def compile_mode(unet: FeatureExtractor, latent: Tensor, distances: Tensor, mask: bool, config: DragConfig) -> str:
    """ "off", "whole" or "regions": what the config says, or for "auto" what is soonest done with this edit.

    An update pulls by one cell, so that the farthest handle's distance tells how many there will be at least.
    """
    if config.compile != "auto":
        return config.compile
    if not isinstance(unet, UNet):
        return "off"
    updates = min(config.updates, math.ceil(distances.max().item() - config.reach))
    return compiling.decide(compiling.case(unet, latent, config, mask), updates, len(distances))


def to_latent_grid(mask: Tensor, latent: Tensor) -> Tensor:
    """A mask (H, W) on the supervision grid -> (h, w) on that of the latent (..., h, w), by nearest neighbour."""
    return F.interpolate(mask[None, None].to(latent), size=latent.shape[-2:], mode="nearest")[0, 0]


def check_points(points: Tensor, name: str, grid: tuple[int, int]) -> Tensor:
    """Points as float32 (n, 2) on the CPU. Raises a ValueError for another shape, or a point outside of the grid."""
    points = torch.as_tensor(points).detach().to("cpu", torch.float32, copy=True)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"{name}s must be (n, 2) of (x, y), n at least 1, came {tuple(points.shape)}")
    height, width = grid
    for number, (x, y) in enumerate(points.tolist(), start=1):
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise ValueError(
                f"{name} {number} at ({x:g}, {y:g}) lies outside of the supervision grid, {width} cells wide and "
                f"{height} high, from -0.5 to {width - 0.5:g} and to {height - 0.5:g}"
            )
    return points


def check_mask(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Raise a ValueError unless the mask is (H, W) on the grid and within [0, 1]."""
    mask = torch.as_tensor(mask)
    if mask.shape != grid:
        raise ValueError(f"the mask must be {grid}, on the supervision grid, came {tuple(mask.shape)}")
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError("the mask must hold numbers from 0 (stays) to 1 (may move)")
    return mask


def check_differentiable(unet: FeatureExtractor) -> None:
    """Raise a ValueError for a module whose weights are such that no gradient passes through it."""
    if isinstance(unet, nn.Module) and any(parameter.is_inference() for parameter in unet.parameters()):
        raise ValueError(
            "the network was loaded under torch.inference_mode, and no gradient passes through such weights: load it "
            "outside of that"
        )


def check_config(config: DragConfig) -> None:
    """Raise a ValueError that names the first setting out of its range."""
    names = config.tap.split("+")
    if any(name not in ACTIVATIONS for name in names):
        known = f"block01 … block16, {', '.join(hooks.STAGES)}"
        raise ValueError(f"drag: features cannot be read at {config.tap!r}: known are {known}")
    if len({ACTIVATIONS[name] for name in names}) > 1:
        raise ValueError(f"drag: the features of {config.tap} cannot be added: they differ in channels or in grid")
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"drag: optimizer must be one of {', '.join(OPTIMIZERS)}, came {config.optimizer!r}")
    if config.compile not in ("auto", "off", *compiling.MODES):
        known = f"auto, off, {', '.join(compiling.MODES)}"
        raise ValueError(f"drag: compile must be one of {known}, came {config.compile!r}")
    if config.reference not in ("first", "current"):
        raise ValueError(f"drag: reference must be 'first' or 'current', came {config.reference!r}")
    if not 0 <= config.anchor <= 1:
        raise ValueError(f"drag: anchor must be a share from 0 to 1, came {config.anchor!r}")
    least_of = {"updates": 0, "radius": 0, "track_radius": 0, "patience": 1, "lost_patience": 1, "stall": 1}
    for name, least in least_of.items():
        value = getattr(config, name)
        if value is not None and (not ddim.is_whole(value) or value < least):
            raise ValueError(f"drag: {name} must be a whole number from {least}, came {value!r}")
    for name in ("lr", "lam", "reach"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"drag: {name} must be a number from 0, came {value!r}")

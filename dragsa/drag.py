"""Dragging: one latent z_k optimised until the features under the handles have come to the targets (2.2, 3.1).

Each update is one pass of the UNet. It tracks the handles in the current features, and pulls the patch about each one
cell further: z_k ← z_k - η ∂L/∂z_k with

    L = Σ_handles motion supervision + λ Σ |(z_{k-1} - z⁰_{k-1}) (1 - mask)|,

z_{k-1} being the DDIM step down from the current latent and z⁰_{k-1} that from the first. A part of what a patch is
pulled to, `DragConfig.anchor`, can be the first latent's patch about the first handle, so that the blur of one update
is not all that the next one asks for.

`motion_supervision_step` is that pass and its gradient, a pure function of tensors that never waits for the device;
`updates` is the loop, which waits once an update; `drag_latent` adds the rules for stopping.

Points are (x, y) on the supervision grid, four cells for each of the latent's in each direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa import ddim, kernels, motion, passes, tracking
from dragsa.config import DragConfig
from dragsa.config import check as check_values
from dragsa.ddim import Noise, Schedule
from dragsa.model.blocks import ACTIVATIONS, STAGES
from dragsa.passes import FeatureExtractor, PreparedPass

Lap = Callable[[str], None]  # told the name of each part of an update when it is done


def no_lap(part: str) -> None:
    """Tell nobody."""


class Task(NamedTuple):
    """A latent, and what is asked of it."""

    latent: Tensor  # z_k (1, 4, h, w), float32 or float64
    noise: Noise  # of z_k
    context: Tensor  # (1, tokens, C')
    handles: Tensor  # (n, 2)
    targets: Tensor  # (n, 2)
    frozen: Tensor | None = None  # (h, w), 1 - mask; None leaves the mask term out
    config: DragConfig = DragConfig()

    @property
    def grid(self) -> tuple[int, int]:
        """The supervision grid (H, W)."""
        return motion.CELLS * self.latent.shape[2], motion.CELLS * self.latent.shape[3]


class FirstPass(NamedTuple):
    """The first latent's pass, with which every later update is compared."""

    features: Tensor  # (1, C, h', w') at the tap
    z_prev: Tensor | None  # z⁰_{k-1} (1, 4, h, w); None without the mask term
    handles: Tensor  # (n, 2)


class Supervision(NamedTuple):
    """One pass on the latent: the loss that is to be minimised, and where the handles are."""

    loss: Tensor  # scalar
    handles: Tensor  # (n, 2), tracked in this pass's features
    distances: Tensor  # (n,) to the targets, in cells
    lost: Tensor  # (n,) bool: nothing in the window is nearer to what is looked for than the average cell of its map
    first_pass: FirstPass  # of this latent, detached


def motion_supervision(
    run: PreparedPass, task: Task, first_pass: FirstPass | None = None, lap: Lap = no_lap
) -> Supervision:
    """Run one pass of the UNet and compute the loss of the module's first lines, differentiable in `task.latent`.

    first_pass: that of the first latent, whose features are looked for; None on the first latent itself, where the
    handles stand as they are given. Without `task.frozen` the mask term is left out, and the pass ends at the tap.
    Handles nearer than `config.reach` to their target are not pulled.
    """
    config, grid, handles = task.config, task.grid, task.handles
    size = None if first_pass is None else (first_pass.features.shape[2], first_pass.features.shape[3])
    features, eps = run(task.latent, handles, task.frozen is not None, size)
    lap("forward")
    lost, target_patch = torch.zeros_like(handles[:, 0], dtype=torch.bool), None
    if first_pass is not None:
        sought = handles if config.reference == "current" else first_pass.handles
        reference = tracking.sample_points(first_pass.features, sought.trunc(), grid)  # (n, C)
        handles, match = tracking.track(features, reference, handles, config.track_radius, grid)
        lost = match >= tracking.chance(first_pass.features, reference)
        lap("tracking")
        if config.anchor > 0:
            patch = motion.patches(features, handles, config.radius, grid)  # (n, C, P, P)
            first = motion.patches(first_pass.features, first_pass.handles, config.radius, grid)
            target_patch = torch.lerp(patch, first, config.anchor)
    distances = (task.targets - handles).norm(dim=1)
    active = distances >= config.reach
    loss = motion.motion_supervision_loss(features, handles, task.targets, config.radius, grid, active, target_patch)
    z_prev = None
    if task.frozen is not None and eps is not None:
        z_prev = ddim.ddim(task.latent, eps, task.noise.alpha_bar, task.noise.alpha_bar_prev)  # z_{k-1}
        first_z_prev = z_prev.detach() if first_pass is None or first_pass.z_prev is None else first_pass.z_prev
        loss = loss + config.lam * ((z_prev - first_z_prev).abs() * task.frozen).sum()
        z_prev = z_prev.detach()
    lap("loss")
    # A copy of the handles: a compiled pass guards on which of its arguments are one tensor.
    return Supervision(loss, handles, distances, lost, FirstPass(features.detach(), z_prev, handles.clone()))


class Step(NamedTuple):
    """A pass and its gradient with respect to the latent (1, 4, h, w). `finite`: loss and gradient are, 0-dim. bool."""

    loss: Tensor
    gradient: Tensor
    handles: Tensor
    distances: Tensor
    lost: Tensor
    finite: Tensor
    first_pass: FirstPass


def motion_supervision_step(
    run: PreparedPass, task: Task, first_pass: FirstPass | None = None, lap: Lap = no_lap
) -> Step:
    """Compute `motion_supervision` and the gradient of its loss with respect to the latent."""
    with torch.enable_grad():
        latent = task.latent.detach().requires_grad_()
        at = motion_supervision(run, task._replace(latent=latent), first_pass, lap)
        (gradient,) = torch.autograd.grad(at.loss, latent)
    loss = at.loss.detach()
    finite = loss.isfinite() & gradient.isfinite().all()
    lap("backward")
    return Step(loss, gradient, at.handles, at.distances, at.lost, finite, at.first_pass)


@dataclass(frozen=True)
class Update:
    """One update, when it is done."""

    update: int  # from 1
    total: int  # at most so many
    loss: float
    handles: Tensor  # (n, 2) float32 on the CPU, those that the update used
    distances: Tensor  # (n,) from them to the targets, in cells
    latent: Tensor  # (1, 4, h, w) after it
    before: Tensor  # (1, 4, h, w) that it began from
    lost: Tensor  # (n,) bool on the CPU, see `Supervision`
    finite: bool  # loss and gradient are


def updates(
    unet: FeatureExtractor, task: Task, lap: Lap = no_lap, first_pass: FirstPass | None = None
) -> Generator[Update, None, None]:
    """Optimise the task's latent, update after update without end; who takes them decides when to stop.

    No gradient is taken for the network's weights meanwhile. With `config.compile` "whole" the steps but the first,
    which has nothing to be compared with, are a single graph: with other handles, targets, latents and conditioning it
    is not compiled again.
    """
    config, device = task.config, task.latent.device
    mode = "off" if config.compile == "auto" else config.compile  # on a CPU compiling costs more than an edit gains
    run, descend = passes.prepare(unet, task.noise, task.context, config, mode), passes.OPTIMIZERS[config.optimizer]
    latent, handles, state, done = task.latent, task.handles, None, 0
    with passes.weights_frozen(unet), kernels.kept(device):
        while True:
            now = task._replace(latent=latent, handles=handles.to(device))
            if mode == "whole" and first_pass is not None:
                step = passes.whole(motion_supervision_step, device.type)(run, now, first_pass)
                lap("step")
            else:
                step = motion_supervision_step(run, now, first_pass, lap)
            first_pass = first_pass or step.first_pass
            before, (latent, state) = latent, descend(latent, step.gradient, state, config.lr)
            handles, done = step.handles.cpu(), done + 1  # here the update waits for the device
            loss, finite = float(step.loss), bool(step.finite)
            lap("optimiser")
            found = handles, step.distances.cpu(), latent, before, step.lost.cpu(), finite
            yield Update(done, config.updates, loss, *found)


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
    if z.ndim != 4 or z.shape[0] != 1:
        raise ValueError(f"one latent is dragged at a time: expected (1, 4, h, w), came {tuple(z.shape)}")
    grid = motion.CELLS * z.shape[2], motion.CELLS * z.shape[3]
    handles, targets = (check_points(points, name, grid) for points, name in ((handles, "handle"), (targets, "target")))
    if handles.shape != targets.shape:
        raise ValueError(f"as many targets as handles are needed, came {len(handles)} handles, {len(targets)} targets")
    frozen = None
    if mask is not None:
        mask = check_mask(mask, grid)
        if config.lam > 0 and mask.any():
            frozen = 1 - to_latent_grid(mask, z)  # (h, w)
    latent = z.detach().to(torch.promote_types(z.dtype, torch.float32), copy=True)
    context = context.clone() if context.is_inference() else context
    noise = ddim.noise_at(schedule, level, z.device)

    course = Course(latent, handles, targets, config)
    with closing(updates(unet, Task(latent, noise, context, handles, targets.to(z.device), frozen, config))) as coming:
        while course.reason is None:
            update = next(coming)
            if course.go_on(update) and observe is not None:
                observe(update)
    return course.result()


class Nearest(NamedTuple):
    """The latent in which the handles have been nearest to their targets so far."""

    distance: float  # mean over the handles, in cells
    latent: Tensor  # (1, 4, h, w)
    handles: Tensor  # (n, 2)
    updates: int  # that led there


class Course:
    """What a loop's updates have come to so far, and the reason to end it, if there is one yet."""

    def __init__(self, latent: Tensor, handles: Tensor, targets: Tensor, config: DragConfig) -> None:
        self.config, self.targets = config, targets
        self.latent, self.handles, self.distances = latent, handles, (targets - handles).norm(dim=1)
        self.done: list[Update] = []
        self.nearest = Nearest(math.inf, latent, handles, 0)
        self.unmoved, self.lost = 0, torch.zeros(len(handles), dtype=torch.long)  # for so many updates in succession
        self.reason = "reached" if bool((self.distances < config.reach).all()) else None
        if self.reason is None and config.updates == 0:
            self.reason = "budget"

    def go_on(self, update: Update) -> bool:
        """Take an update, or the reason to end the loop before it; tell which."""
        if not update.finite:  # and the one that led there is undone
            self.reason = "not finite"
            if self.done:
                undone = self.done.pop()
                self.latent, self.handles = undone.before, undone.handles
            return False
        pulled = self.distances >= self.config.reach
        moved = not self.done or bool((update.handles != self.handles.trunc())[pulled].any())
        self.unmoved = 0 if moved else self.unmoved + 1
        self.handles, self.distances = update.handles, update.distances
        active = update.distances >= self.config.reach
        self.lost = torch.where(update.lost & active, self.lost + 1, 0)
        if update.distances.mean() < self.nearest.distance:
            self.nearest = Nearest(update.distances.mean().item(), update.before, update.handles, len(self.done))
        stalled = len(self.done) - self.nearest.updates
        self.reason = why_stop(active, self.unmoved, self.lost, stalled, self.config)
        if self.reason is None and not update.latent.isfinite().all():
            self.reason = "not finite"
        if self.reason is not None:
            return False
        self.done.append(update)
        self.latent = update.latent
        if len(self.done) == self.config.updates:
            self.reason = "budget"
        return True

    def result(self) -> DragResult:
        """Return what the loop gives back: with `stall`, where it did not reach the targets, the nearest latent."""
        latent, handles = self.latent, self.handles
        if self.done and self.config.stall is not None and self.reason != "reached":
            latent, handles = self.nearest.latent, self.nearest.handles
        used = [update.handles for update in self.done]  # (n, 2) each
        course = torch.stack(used) if used else handles.new_zeros(0, *handles.shape)
        return DragResult(
            latent=latent,
            losses=torch.tensor([update.loss for update in self.done], dtype=torch.float32),
            handles=course,
            distances=(self.targets - course).norm(dim=2),
            final_handles=handles,
            reason=self.reason or "budget",
        )


def why_stop(active: Tensor, unmoved: int, lost: Tensor, stalled: int, config: DragConfig) -> str | None:
    """Return the reason to end the loop before another update, or None.

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


def to_latent_grid(mask: Tensor, latent: Tensor) -> Tensor:
    """Bring a mask (H, W) on the supervision grid to (h, w), that of the latent (..., h, w), by nearest neighbour."""
    return F.interpolate(mask[None, None].to(latent), size=latent.shape[-2:], mode="nearest")[0, 0]


def check_points(points: Tensor, name: str, grid: tuple[int, int]) -> Tensor:
    """Return points as float32 (n, 2) on the CPU. Raises ValueError for another shape, or one outside of the grid."""
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


def check_config(config: DragConfig) -> None:
    """Raise a ValueError that names the first setting out of its range."""
    names = config.tap.split("+")
    if any(name not in ACTIVATIONS for name in names):
        known = f"block01 … block16, {', '.join(STAGES)}"
        raise ValueError(f"drag: features cannot be read at {config.tap!r}: known are {known}")
    if len({ACTIVATIONS[name] for name in names}) > 1:
        raise ValueError(f"drag: the features of {config.tap} cannot be added: they differ in channels or in grid")
    check_values(config)

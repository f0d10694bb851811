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

from collections.abc import Callable, Generator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dragsa import checks, ddim, kernels, motion, passes, tracking
from dragsa.config import DragConfig
from dragsa.ddim import Noise, Schedule
from dragsa.hooks import AttentionHook
from dragsa.passes import Course, Descend, DragResult, FeatureExtractor, Observe, PreparedPass, Update

Lap = Callable[[str], None]  # told the name of each part of an update when it is done


def no_lap(part: str) -> None:
    """Tell nobody."""


class Task(NamedTuple):
    """A latent, and what is asked of it."""

    latent: Tensor  # z_k (1, 4, h, w), float32 or float64
    noise: Noise  # of z_k
    context: Tensor  # (1, tokens, C'); with guidance (2, tokens, C'), the unconditional one first
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
            there = kernels.windows.window_about(first_pass.handles, patch.shape[-1] // 2, grid).inside  # (n, P, P)
            target_patch = torch.lerp(patch, first, config.anchor * there[:, None].to(patch))
    distances = (task.targets - handles).norm(dim=1)
    active = distances >= config.reach
    loss = motion.motion_supervision_loss(features, handles, task.targets, config.radius, grid, active, target_patch)
    if config.loss == "sum":  # over channels, as printed; a patch that the border cuts still counts as a whole one
        loss = loss * features.shape[1]
    kept, z_prev = mask_term(task, eps, first_pass)
    loss = loss + kept
    lap("loss")
    # A copy of the handles: a compiled pass guards on which of its arguments are one tensor.
    return Supervision(loss, handles, distances, lost, FirstPass(features.detach(), z_prev, handles.clone()))


def mask_term(task: Task, eps: Tensor | None, first_pass: FirstPass | None) -> tuple[Tensor | float, Tensor | None]:
    """Return λ Σ |(z_{k-1} - z⁰_{k-1}) (1 - mask)|, a scalar, and z_{k-1}, detached; 0 and None without a mask."""
    if task.frozen is None or eps is None:
        return 0.0, None
    z_prev = ddim.ddim(task.latent, eps, task.noise.alpha_bar, task.noise.alpha_bar_prev)
    first_z_prev = z_prev.detach() if first_pass is None or first_pass.z_prev is None else first_pass.z_prev
    return task.config.lam * ((z_prev - first_z_prev).abs() * task.frozen).sum(), z_prev.detach()


class Step(NamedTuple):
    """A pass and its gradient with respect to the latent (1, 4, h, w). `finite`: loss and gradient are, 0-dim. bool."""

    loss: Tensor
    gradient: Tensor
    handles: Tensor
    distances: Tensor
    lost: Tensor
    finite: Tensor
    first_pass: FirstPass


Supervise = Callable[[PreparedPass, Task, FirstPass | None, Lap], Supervision]


def motion_supervision_step(
    run: PreparedPass,
    task: Task,
    first_pass: FirstPass | None = None,
    lap: Lap = no_lap,
    supervise: Supervise = motion_supervision,
) -> Step:
    """Compute `motion_supervision`, or another, and the gradient of its loss with respect to the latent."""
    with torch.enable_grad():
        latent = task.latent.detach().requires_grad_()
        at = checks.supervised(supervise(run, task._replace(latent=latent), first_pass, lap))
        (gradient,) = torch.autograd.grad(at.loss, latent)
    loss = at.loss.detach()
    finite = loss.isfinite() & gradient.isfinite().all()
    lap("backward")
    return Step(loss, gradient, at.handles, at.distances, at.lost, finite, at.first_pass)


def updates(
    unet: FeatureExtractor,
    task: Task,
    lap: Lap = no_lap,
    first_pass: FirstPass | None = None,
    attention: AttentionHook | None = None,
    supervision: Supervise | None = None,
    optimizer: Descend | None = None,
) -> Generator[Update, None, None]:
    """Optimise the task's latent, update after update without end; who takes them decides when to stop.

    No gradient is taken for the network's weights meanwhile. With `config.compile` "whole" the steps but the first,
    which has nothing to be compared with, are a single graph: with other handles, targets, latents and conditioning it
    is not compiled again. attention: a hook of every pass. supervision, optimizer: others than the config's.
    """
    config, device = task.config, task.latent.device
    mode = "off" if config.compile == "auto" else config.compile  # on a CPU compiling costs more than an edit gains
    run = passes.prepare(unet, task.noise, task.context, config, mode, attention)
    supervise, descend = supervision or motion_supervision, optimizer or passes.OPTIMIZERS[config.optimizer]
    latent, handles, state, done = task.latent, task.handles, None, 0
    with kernels.kept(device):
        while True:
            now = task._replace(latent=latent, handles=handles.to(device))
            if mode == "whole" and first_pass is not None:
                step = passes.whole(motion_supervision_step, device.type)(run, now, first_pass, no_lap, supervise)
                lap("step")
            else:
                step = motion_supervision_step(run, now, first_pass, lap, supervise)
            first_pass = first_pass or step.first_pass
            before, (latent, state) = latent, descend(latent, step.gradient, state, config.lr)
            handles, done = step.handles.cpu(), done + 1  # here the update waits for the device
            loss, finite = float(step.loss), bool(step.finite)
            lap("optimiser")
            found = handles, step.distances.cpu(), latent, before, step.lost.cpu(), finite
            yield Update(done, config.updates, loss, *found)


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
    observe: Observe | None = None,
    *,
    attention: AttentionHook | None = None,
    supervision: Supervise | None = None,
    optimizer: Descend | None = None,
) -> DragResult:
    """Optimise z_k until the features under the handles have come to the targets.

    The plain twin is the second loop of `edit` in scripts/plain.py.

    z: (1, 4, h, w) at `level` k, 1 … T; it is left as it is. context: (1, tokens, C'), with `config.drag_guidance` two
    rows, the empty prompt's first. handles, targets: (n, 2) on the supervision grid (4h, 4w). mask: (4h, 4w) in [0, 1],
    1 may move; None, or all black, switches its term off. observe: called after every update; where it returns "stop"
    the loop ends with that. Latent, optimiser and loss are float32 (float64 for a float64 latent), whatever the
    network's type. It may be called under `torch.no_grad` and `torch.inference_mode`, and of a module whose parameters
    want a gradient: none is taken for them.

    attention: a hook for every pass. supervision: in place of `motion_supervision`, with its parameters and its result;
    of the map it finds all cells where it calls `run` without a size. optimizer: in place of the config's, a function
    (latent, gradient, state, η) -> (latent, state) whose state is None at first. All else of the loop stays.

    The loop ends for one of the reasons that `DragResult` lists. With `config.stall`, one that has not reached the
    targets gives back the latent in which they were nearest.

    Raises ValueError for a wrong shape, points outside of the grid, an unknown tap, a level or setting out of range, a
    network whose weights were made under `torch.inference_mode`.
    """
    schedule.check_level(level, lowest=1)
    checks.functions(observe=observe, attention=attention, supervision=supervision, optimizer=optimizer)
    checks.drag_settings(config)
    grid = motion.CELLS * z.shape[-2], motion.CELLS * z.shape[-1]
    handles, targets = checks.drag_on(z, handles, targets, grid)
    checks.looked_at(len(handles), config, grid)
    frozen = None
    if mask is not None:
        mask = checks.mask_on(mask, grid)
        if config.lam > 0 and mask.any():
            frozen = 1 - to_latent_grid(mask, z)  # (h, w)
    latent = z.detach().to(torch.promote_types(z.dtype, torch.float32), copy=True)
    context = context.clone() if context.is_inference() else context
    noise = ddim.noise_at(schedule, level, z.device)

    course = Course(latent, handles, targets, config)
    task = Task(latent, noise, context, handles, targets.to(z.device), frozen, config)
    own = updates(unet, task, attention=attention, supervision=supervision, optimizer=optimizer)
    with closing(own) as coming:
        while course.reason is None:
            update = next(coming)
            if course.go_on(update) and observe is not None and observe(update) == passes.STOP:
                course.reason = course.reason or "stopped"
    return course.result()


def to_latent_grid(mask: Tensor, latent: Tensor) -> Tensor:
    """Bring a mask (H, W) on the supervision grid to (h, w), that of the latent (..., h, w), by nearest neighbour."""
    return F.interpolate(mask[None, None].to(latent), size=latent.shape[-2:], mode="nearest")[0, 0]

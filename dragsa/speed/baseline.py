"""The baseline: the drag loop as DragDiffusion's program does it, on this package's UNet.

Every update is a whole pass with PyTorch's own convolutions and attention, in float32 and eager. The feature map is
brought to the supervision grid whole, and patches and windows are sliced from it handle by handle. These are the plain
twins of the fast functions, as sliced tensors: `tracked` of `track`, and `pull` of `motion_supervision` in
scripts/plain.py, where the formulas stand as printed. A package imports no script, so the two are written twice;
tests/scripts/test_plain.py holds them equal, function by function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dragsa import ddim, kernels, motion
from dragsa.drag import FirstPass, Task
from dragsa.hooks import Attend, Site
from dragsa.kernels import Convolution
from dragsa.layouts import fitting
from dragsa.model.layers import GEGLU
from dragsa.model.unet import UNet
from dragsa.speed.laps import Clock, Lap

# --- the network


class PlainConvolution(Convolution):
    """PyTorch's convolution, and the cells of its map as tokens, which lie as they do in the map."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, x)

    def to_tokens(self, x: Tensor) -> Tensor:
        return self(x).flatten(2).transpose(1, 2)

    def from_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        return self(tokens.transpose(1, 2).unflatten(2, grid))


class PlainGEGLU(GEGLU):
    """The gated unit as diffusers has it: all that autograd keeps of it is kept."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


def as_published(unet: UNet) -> UNet:
    """Return the network on the same weights with PyTorch's own convolutions and gated units, as diffusers' has."""
    with torch.device("meta"):
        twin = UNet(unet.config)
        for module in list(twin.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, Convolution):
                    setattr(module, name, PlainConvolution(layer.in_channels, layer.out_channels, layer.kernel_size[0]))
                elif isinstance(layer, GEGLU):
                    setattr(module, name, PlainGEGLU(layer.proj.in_features, layer.proj.out_features // 2))
    return fitting.adopt(twin, unet.state_dict())


def plain_attention(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """Compute attention with PyTorch's own function, whatever this package's is."""
    return F.scaled_dot_product_attention(q, k, v)


# --- the loop


class BaselineStep(NamedTuple):
    """One pass; `gradient` is None where every handle has arrived."""

    loss: Tensor
    gradient: Tensor | None
    handles: Tensor
    first: FirstPass  # whose features are the map on the grid, (1, C, H, W)


class BaselineUpdate(NamedTuple):
    """One update, when it is done."""

    lap: Lap
    handles: Tensor  # (n, 2), those that the update used
    latent: Tensor  # (1, 4, h, w) after it


def baseline_updates(unet: UNet, at: Task, first_pass: FirstPass | None = None) -> Iterator[BaselineUpdate]:
    """Yield the updates of DragDiffusion's loop, until every handle is nearer than `reach` to its target.

    Each update is one whole pass, from the latent and the text alone. From the second on the handles are tracked first.
    DragDiffusion makes one pass more before the loop, for the first latent's map; here that of the
    first update serves. Nor does it freeze the network: the gradients of all weights, which nobody uses, are left out.
    """
    latent = at.latent.clone().requires_grad_()
    optimizer: torch.optim.Adam | None = None
    handles, first = at.handles, first_pass
    while True:
        clock = Clock(latent.device)
        step = baseline_step(unet, latent, at, handles, first, clock)
        if step.gradient is None:
            return
        handles, first, latent.grad = step.handles, step.first, step.gradient
        # Made here, when the first pass has left its memory, since PyTorch loads its compiler for it.
        optimizer = optimizer or torch.optim.Adam([latent], lr=at.config.lr)
        optimizer.step()
        clock.lap("optimiser")
        yield BaselineUpdate(Lap(clock.seconds, float(step.loss)), handles, latent.detach().clone())


def baseline_step(
    unet: UNet, latent: Tensor, at: Task, handles: Tensor, first: FirstPass | None, clock: Clock
) -> BaselineStep:
    """Compute a whole pass, the map on the grid, tracking, the loss with its mask term, and the gradient."""
    tap = at.config.tap
    with torch.enable_grad():
        out = unet(latent, at.noise.timestep, at.context, attention=plain_attention, taps=(tap,))
        z_prev = ddim.ddim(latent, out.eps, at.noise.alpha_bar, at.noise.alpha_bar_prev)  # z_{k-1}
        clock.lap("forward")
        dense = motion.upsampled(out.taps[tap], at.grid)  # (1, C, H, W)
        clock.lap("loss")
        if first is None:
            first = FirstPass(dense.detach(), z_prev.detach(), handles)
        else:
            handles = tracked(dense.detach(), handles, first, at.config.track_radius)
            clock.lap("tracking")
        loss, arrived = latent.new_zeros(()), (at.targets - handles).norm(dim=1) < at.config.reach
        if arrived.all():
            return BaselineStep(loss, None, handles, first)
        for handle, target in zip(handles[~arrived], at.targets[~arrived], strict=True):
            loss = loss + pull(dense, handle, target, at.config.radius)
        if at.frozen is not None and first.z_prev is not None:
            loss = loss + at.config.lam * ((z_prev - first.z_prev).abs() * at.frozen).sum()
        clock.lap("loss")
        (gradient,) = torch.autograd.grad(loss, latent)
        clock.lap("backward")
    return BaselineStep(loss.detach(), gradient, handles, first)


def tracked(dense: Tensor, handles: Tensor, first: FirstPass, radius: int) -> Tensor:
    """Return for each handle the cell of its square whose features are nearest to the first handle's on the first map.

    dense: (1, C, H, W). handles: (n, 2). radius: of the square, in cells.
    """
    found = []
    for handle, (x, y) in zip(handles, first.handles.int().tolist(), strict=True):
        sought = first.features[0, :, y, x]  # (C,)
        top, bottom, left, right = square_about(handle, radius, dense)
        distance = (dense[0, :, top:bottom, left:right] - sought[:, None, None]).abs().sum(dim=0)
        best = int(distance.argmin())
        found.append([left + best % (right - left), top + best // (right - left)])
    return torch.tensor(found, dtype=handles.dtype, device=handles.device)


def pull(dense: Tensor, handle: Tensor, target: Tensor, radius: int) -> Tensor:
    """Return (2 r₁ + 1)² times the mean |patch moved by the unit vector to the target - patch|, sliced from the map."""
    d = (target - handle) / (target - handle).norm()
    top, bottom, left, right = square_about(handle, radius, dense)
    target_patch = dense[:, :, top:bottom, left:right].detach()
    y, x = math.floor(top + float(d[1])), math.floor(left + float(d[0]))  # of the first sample's upper left neighbour
    fraction_y, fraction_x = top + d[1] - y, left + d[0] - x
    height, width = target_patch.shape[2] + 1, target_patch.shape[3] + 1  # of the neighbours
    above, before = max(0, -y), max(0, -x)
    below, behind = max(0, y + height - dense.shape[2]), max(0, x + width - dense.shape[3])
    corners = dense[:, :, y + above : y + height - below, x + before : x + width - behind]
    corners = F.pad(corners, (before, behind, above, below), mode="replicate")
    moved = kernels.between(corners, fraction_x.expand(1, width - 1), fraction_y.expand(1, height - 1))
    return (2 * radius + 1) ** 2 * F.l1_loss(moved, target_patch)


def square_about(point: Tensor, radius: int, dense: Tensor) -> tuple[int, int, int, int]:
    """Return the rows top … bottom - 1 and columns left … right - 1 of the map within a radius of int(point)."""
    (height, width), x, y = dense.shape[2:], int(point[0]), int(point[1])
    return max(0, y - radius), min(height, y + radius + 1), max(0, x - radius), min(width, x + radius + 1)

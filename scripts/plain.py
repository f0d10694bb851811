"""The method from its printed formulas, without speed: to be read first. `python scripts/plain.py out/plain.png`

The networks and the result, but for rounding, are the package's. "Paper:" says what is printed where that differs.
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor

import dragsa.pictures


def bilinear(values: Tensor, x: Any, y: Any) -> Tensor:
    """Return values (C, h, w) at places between the cells, whose centres are at integers; edges are clamped."""
    places = zip((y, x), values.shape[1:], strict=True)
    off = [torch.as_tensor(at, dtype=values.dtype).clamp(0, n - 1)[..., None] - torch.arange(n) for at, n in places]
    return torch.einsum("chw, ...h, ...w -> c...", values, *(torch.relu(1 - one.abs()) for one in off))


def on_grid(features: Tensor) -> Tensor:
    """Bring (1, C, h, w) to F (C, 4h, 4w), a cell for two pixels. Paper: nothing; this grid is DragDiffusion's."""
    y, x = ((torch.arange(4 * n) + 0.5) / 4 - 0.5 for n in features.shape[2:])
    return bilinear(features[0], x[None], y[:, None])


def omega(h: Any, r: int, F: Tensor) -> list[tuple[int, int]]:
    """Return Ω(h, r), the cells (x, y) of a square about h, row by row. Paper: nothing of those beyond the border."""
    return [(x, y) for y in range(F.shape[1]) for x in range(F.shape[2]) if abs(x - h[0]) <= r and abs(y - h[1]) <= r]


def motion_supervision(F: Tensor, h: Any, g: Any, loop: dragsa.DragConfig) -> Any:
    """Return Σ_{q ∈ Ω(h, r_1)} |F(q + d) - sg F(q)|_1 of a handle h, d one cell from it to its target g (2.2)."""
    patch, (dx, dy) = omega(h, loop.radius, F), [(b - a) / math.dist(h, g) for a, b in zip(h, g, strict=True)]
    total = sum((bilinear(F, x + dx, y + dy) - F[:, y, x].detach()).abs().sum() for x, y in patch)
    # Paper: that sum. DragDiffusion: the mean over C channels, and a patch cut by the border counts as a whole one.
    return total / (1 if loop.loss == "sum" else len(F)) * (2 * loop.radius + 1) ** 2 / len(patch)


def track(F: Tensor, h: Any, r: int, sought: Tensor) -> Any:
    """Return argmin_{q ∈ Ω(h, r_2)} |F(q) - sought|_1 (2.2)."""
    return min(omega(h, r, F), key=lambda q: (F[:, q[1], q[0]] - sought).abs().sum().item())


def step(z: Tensor, eps: Tensor, a: Tensor, to: Tensor) -> Tensor:
    """Take a DDIM step, up or down, from ᾱ = a: √ᾱ' ẑ_0 + √(1 - ᾱ') ε."""
    return to.sqrt() * ((z - (1 - a).sqrt() * eps) / a.sqrt()) + (1 - to).sqrt() * eps


def control(site: Any, q: Tensor, k: Tensor, v: Tensor, attend: Any) -> Tensor:
    """Return softmax(q kᵀ / √d) v, k and v the source's, row 0 (3.1). Paper: nothing of the blocks; MasaCtrl's here."""
    return attend(q, *(x[:1].expand_as(x) if site.kind == "self" and site.block >= 11 else x for x in (k, v)))


def edit(sd: Any, z_0: Tensor, first: Any, targets: Any, frozen: Any, config: dragsa.EditConfig) -> Tensor:
    """Edit z_0. first: the handles h^0, whole cells. frozen: 1 - M, (h, w), or 0. Paper: no values of r, λ, arrival."""
    loop, levels, k = config.drag, dragsa.Schedule(config.steps), config.steps - config.drag_step
    done: Any = {"optimizer": ("adam", "sgd"), "variant": ("restored",), "control": ("mutual",), "guidance": (1,)}
    done |= {"control_step": range(config.drag_step + 1), "control_blocks": [(*range(11, 17),)], "drag_guidance": (1,)}
    done |= dict.fromkeys(("patience", "lost_patience", "stall", "anchor"), (None, 0))
    done |= dict.fromkeys(("blend", "fixed_point", "lora_steps"), (0,))
    if odd := [name for name, values in done.items() if (vars(config) | vars(loop))[name] not in values]:
        raise ValueError(f"not done here: {', '.join(odd)}")
    bars, context, zs = levels.alpha_bars, sd.embed([""]), [z_0]
    for n, t in enumerate(levels.timesteps):  # inversion, with its first step (3.3)
        zs.append(step(zs[n], sd.unet(zs[n], t, context).eps, bars[n], bars[n + 1]))
    z, handles, mean, square = zs[k], first, 0 * z_0, 0 * z_0  # the drag (3.1). Paper: at S steps down from z_T
    for n in range(1, loop.updates + 1):
        z = z.detach().requires_grad_()
        out = sd.unet(z, levels.timesteps[k - 1], context, taps=(loop.tap,))
        F, z_prev = on_grid(out.taps[loop.tap]), step(z, out.eps, bars[k], bars[k - 1])
        if n == 1:
            first_F, first_z_prev = F.detach(), z_prev.detach()
        else:  # Paper: h^k is looked for, our reference="current"; DragDiffusion: h^0
            sought = [first_F[:, y, x] for x, y in (handles if loop.reference == "current" else first)]
            handles = [track(F.detach(), h, loop.track_radius, s) for h, s in zip(handles, sought, strict=True)]
        if not (pulled := [two for two in zip(handles, targets, strict=True) if math.dist(*two) >= loop.reach]):
            break  # all have arrived
        mask_term = ((z_prev - first_z_prev) * frozen).abs().sum()  # Paper: F_q in it, a misprint
        loss = sum(motion_supervision(F, h, g, loop) for h, g in pulled) + loop.lam * mask_term
        (d,) = torch.autograd.grad(loss, z)
        if loop.optimizer == "adam":  # Paper: plain descent; DragDiffusion: Adam
            mean, square = 0.9 * mean + 0.1 * d, 0.999 * square + 0.001 * d**2
            d = mean / (1 - 0.9**n) / ((square / (1 - 0.999**n)).sqrt() + 1e-8)
        z = z.detach() - loop.lr * d
    pair, two = torch.cat([zs[k], z.detach()]), context.expand(2, -1, -1)
    for n in range(k, 0, -1):  # source and edit side by side (3.1)
        pair = step(pair, sd.unet(pair, levels.timesteps[n - 1], two, attention=control).eps, bars[n], bars[n - 1])
    return pair[1:]


if __name__ == "__main__":
    sd, disc = dragsa.load("weights/small"), dragsa.pictures.open_picture("scripts/demo/disc.png")
    handles, targets, _ = dragsa.pictures.drags_to_grid([((42, 79), (70, 59))], disc.size, (64, 64))
    mask = dragsa.pictures.open_mask("scripts/demo/mask.png", disc.size, (64, 64))[::4, ::4]
    config = dragsa.EditConfig.paper(drag=dragsa.DragConfig(updates=20, patience=None, lost_patience=None))
    z_0 = edit(sd, sd.encode(disc), handles.long().tolist(), targets.tolist(), 1 - mask, config)
    dragsa.pictures.to_picture(sd.decode(z_0)).save(sys.argv[1])

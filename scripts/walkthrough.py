# %% [markdown]
# # The method in ten stations
#
# A script and a notebook: `python scripts/walkthrough.py out/walk`, or open it where `# %%` begins a cell. Each station
# has the paper's statement in short, the formula, the symbol of the package, shapes, one number computed plainly and by
# the package, and a picture. T is 12 here, in place of 50, so that all of it takes half a minute.

# %%
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import dragsa
from dragsa import drag, hooks, motion, pictures, schedule, tracking
from dragsa.evaluation import cases, figures, quality
from dragsa.model.unet import UNet
from dragsa.pictures import looking

ROOT = Path.cwd() if (Path.cwd() / "weights" / "small").is_dir() else Path.cwd().parent
OUT = Path(sys.argv[1]) if len(sys.argv) == 2 and not sys.argv[1].startswith("-") else Path("out/walk")
OUT.mkdir(parents=True, exist_ok=True)
SCALE = 5  # of the pictures that are shown


def equal(name: str, plain: Any, packages: Any, tolerance: float = 1e-5) -> None:
    """Print a number computed plainly and by the package; raise AssertionError unless they are equal."""
    plain, packages = torch.as_tensor(plain).double(), torch.as_tensor(packages).double()
    shown = f"{plain.flatten()[0].item():.6g}"
    print(f"  {name}: {shown} plainly, {packages.flatten()[0].item():.6g} by the package")
    assert torch.allclose(plain, packages, rtol=tolerance, atol=tolerance), name


def grey(values: Tensor) -> Image.Image:
    """Return a map (h, w) as a grey picture, its least black and its greatest white."""
    low, high = values.min(), values.max()
    return Image.fromarray((255 * (values - low) / (high - low + 1e-12)).byte().numpy()).convert("RGB")


def show(number: int, *panels: tuple[str, Image.Image]) -> None:
    """Write pictures side by side, of one size and with captions, as the station's."""
    side = 128 * SCALE // 2
    sheet = Image.new("RGB", ((side + 10) * len(panels) + 10, side + 40), "white")
    for n, (caption, picture) in enumerate(panels):
        sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (10 + n * (side + 10), 10))
        ImageDraw.Draw(sheet).text((12 + n * (side + 10), side + 16), caption, fill="black")
    sheet.save(OUT / f"{number:02d}.png")


sd = dragsa.load(ROOT / "weights" / "small")
disc = pictures.open_picture(ROOT / "scripts" / "demo" / "disc.png")
DRAG = (42, 79), (70, 59)
T, S = 12, 2
K = T - S  # the level of the drag
levels, context = dragsa.Schedule(T), sd.embed(["a red disc on a cyan ground"])
bars, grid = levels.alpha_bars, (64, 64)
LOOP = dragsa.DragConfig(updates=16, optimizer="sgd", loss="sum", patience=None)  # as printed
looking.timeline_picture(dragsa.EditConfig.paper(steps=T, drag_step=S, control_step=S, drag=LOOP)).save(OUT / "00.png")

# %% [markdown]
# ## 1. Rasters
#
# Points stand on three rasters: pixels (128 × 128), cells of the latent (16 × 16, each of 8 pixels) and cells of the
# supervision grid (64 × 64, each of 2 pixels), where handles are tracked. Integers are the centres of cells, and the
# rasters' edges coincide: x_grid = (x + ½) / 2 - ½.
# The patch Ω(h, r_1) is what the loss pulls, the window Ω(h, r_2) where tracking looks.
# `dragsa.pictures.to_grid`

# %%
print("1. rasters")
equal("the handle's x on the grid", (42 + 0.5) / 2 - 0.5, pictures.to_grid([DRAG[0]], disc.size, grid)[0, 0])
handles, targets, _ = pictures.drags_to_grid([DRAG], disc.size, grid)  # (1, 2) each, the handle on a whole cell
drawn = disc.resize((128 * SCALE, 128 * SCALE), Image.Resampling.NEAREST)
pen = ImageDraw.Draw(drawn)
for n in range(0, 128, 8):
    for line in ((n, 0, n, 128), (0, n, 128, n)):
        pen.line([SCALE * c for c in line], fill="white", width=2)
for radius, colour in ((LOOP.track_radius, "yellow"), (LOOP.radius, "black")):
    corners = [[2 * (c - radius) for c in handles[0].tolist()], [2 * (c + radius + 1) for c in handles[0].tolist()]]
    pen.rectangle([SCALE * c for pair in corners for c in pair], outline=colour, width=2)
pen.line([SCALE * (c + 0.5) for point in DRAG for c in point], fill="black", width=2)
show(1, ("latent cells white, window yellow, patch and drag black", drawn))

# %% [markdown]
# ## 2. Encode
#
# The VAE's encoder makes the latent z_0 of the picture, whose values go from -1 to 1, and its decoder a picture of a
# latent (2.1): z_0 = 0.18215 · encoder(picture), the factor bringing its values to a spread of about one.
# picture (1, 3, 128, 128) → z_0 (1, 4, 16, 16). `StableDiffusion.encode`, `decode`

# %%
print("2. encode")
z_0 = sd.encode(disc)
red = disc.getpixel(DRAG[0])
assert isinstance(red, tuple)
equal("the handle's red, -1 to 1", red[0] / 127.5 - 1, pictures.to_tensor(disc)[0, 0, DRAG[0][1], DRAG[0][0]])
show(
    2,
    ("picture", disc),
    *((f"z_0, channel {c}", grey(z_0[0, c])) for c in range(4)),
    ("decoded", pictures.to_picture(sd.decode(z_0))),
)

# %% [markdown]
# ## 3. Inversion
#
# DDIM goes from z_0 to z_T by adding the noise that the network predicts. Often the step from z_0 to z_1 is left out;
# the paper puts it back (3.3): z_k = √ᾱ_k ẑ_0 + √(1 - ᾱ_k) ε, ẑ_0 = (z_{k-1} - √(1 - ᾱ_{k-1}) ε) / √ᾱ_{k-1}, with
# ε = ε(z_{k-1}), predicted, and ᾱ_k the share of the picture in z_k: ᾱ_0 = 1. `dragsa.invert` → (T + 1, 1, 4, 16, 16).
# There and back without the step ("omitted") is the worse round trip.

# %%
print("3. inversion")
zs = dragsa.invert(sd.unet, z_0, context, levels)
with torch.no_grad():
    eps = sd.unet(z_0, levels.timesteps[0], context).eps
clean = (z_0 - (1 - bars[0]).sqrt() * eps) / bars[0].sqrt()
equal("z_1", bars[1].sqrt() * clean + (1 - bars[1]).sqrt() * eps, zs[1])
back = pictures.to_picture(sd.decode(dragsa.sample(sd.unet, zs[T], context, levels)[-1]))
without = dragsa.Schedule(T, "omitted")
short = dragsa.invert(sd.unet, z_0, context, without)
worse = pictures.to_picture(sd.decode(dragsa.sample(sd.unet, short[T], context, without)[-1]))
decibels = [quality.decibels(pictures.to_tensor(one)[0], pictures.to_tensor(disc)[0]) for one in (back, worse)]
print(f"  round trip: {decibels[0]:.1f} dB with the first step, {decibels[1]:.1f} without")
assert decibels[0] > decibels[1]
show(
    3,
    ("z_T, channel 0", grey(zs[T][0, 0])),
    (f"and back: {decibels[0]:.1f} dB", back),
    (f"without the step: {decibels[1]:.1f} dB", worse),
)

# %% [markdown]
# ## 4. Features
#
# F(z_k) is what the UNet computes at its 14th block (2.2): (1, 32, 16, 16) here, and brought to the grid of 64 × 64.
# Between cells it is bilinear: the four nearest, each weighted by the area opposite. `taps=("block14",)`,
# `tracking.sample_points`

# %%
print("4. features")
noise = schedule.noise_at(levels, K, z_0.device)
with torch.no_grad():
    out = sd.unet(zs[K], noise.timestep, context, taps=("block14",))
F = out.taps["block14"]
dense = motion.upsampled(F, grid)[0]  # (32, 64, 64)
a, b = 0.25, 0.5
around = [[dense[:, 39 + j, 21 + i] for i in (0, 1)] for j in (0, 1)]
by_hand = (1 - b) * ((1 - a) * around[0][0] + a * around[0][1]) + b * ((1 - a) * around[1][0] + a * around[1][1])
equal("F(21.25, 39.5)", by_hand, tracking.sample_points(F, torch.tensor([[21.25, 39.5]]), grid)[0])
flat = dense.flatten(1).T - dense.flatten(1).T.mean(dim=0)  # (64 · 64, 32)
parts = (flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:3].T).T.unflatten(1, grid)  # its three main directions
coloured = Image.merge("RGB", [grey(part).convert("L") for part in parts])
away = (dense - dense[:, 39, 21][:, None, None]).abs().sum(dim=0)
show(4, ("picture", disc), ("F, three main directions as colours", coloured), ("distance from F(h)", grey(away)))

# %% [markdown]
# ## 5. Motion supervision
#
# The loss (2.2): Σ_{q ∈ Ω(h, r_1)} |F(q + d) - sg F(q)|_1, d = (g - h) / |g - h|. What is at q is to come to q + d,
# a cell nearer to the target g; sg lets no gradient through, so that F(q + d) alone is changed. The package takes the
# mean over the C channels, DragDiffusion's; times C it is the sum that is printed.
# `dragsa.motion_supervision_loss` → a scalar, differentiable in F

# %%
print("5. loss")
(x, y), d = handles[0].long().tolist(), (targets - handles)[0] / (targets - handles).norm()
moved = handles[0] + torch.tensor([[i, j] for j in (-1, 0, 1) for i in (-1, 0, 1)])  # q (9, 2)
there = tracking.sample_points(F, moved + d, grid)  # F(q + d) (9, 32)
total = sum((there[n] - dense[:, int(q[1]), int(q[0])]).abs().sum() for n, q in enumerate(moved))
equal("the printed sum", total, 32 * dragsa.motion_supervision_loss(F, handles, targets, 1, grid), 1e-4)
z = zs[K].clone().requires_grad_()
features = sd.unet(z, noise.timestep, context, taps=("block14",), until="block14").taps["block14"]
loss = 32 * dragsa.motion_supervision_loss(features, handles, targets, 1, grid)
(gradient,) = torch.autograd.grad(loss, z)
show(5, ("picture", disc), ("size of the loss's gradient, by latent cells", grey(gradient.abs().sum(dim=1)[0])))

# %% [markdown]
# ## 6. Point tracking
#
# After an update the handle's features have moved, and the handle is looked for (2.2): argmin_{q ∈ Ω(h, r_2)}
# |F(q) - F_h|_1. F_h is of the first latent, at h^0 ("first", DragGAN's) or at h^k ("current", printed).
# `dragsa.track_points`

# %%
print("6. tracking")
stepped = (zs[K] - 4 * LOOP.lr * gradient).detach()  # as long as four updates
with torch.no_grad():
    later = sd.unet(stepped, noise.timestep, context, taps=("block14",), until="block14").taps["block14"]
after, sought = motion.upsampled(later, grid)[0], dense[:, y, x]
window = [(i, j) for j in range(y - 3, y + 4) for i in range(x - 3, x + 4)]
nearest = min(window, key=lambda q: (after[:, q[1], q[0]] - sought).abs().sum().item())
found = dragsa.track_points(later, sought[None], handles, 3, grid)
equal("where the handle is", nearest, found[0])
at_now = dragsa.track_points(later, dense[:, nearest[1], nearest[0]][None], found, 3, grid)[0].tolist()
print(f"  looked for again: {found[0].tolist()} by F(h^0), {at_now} by F(h^k)")
square = (after[:, y - 3 : y + 4, x - 3 : x + 4] - sought[:, None, None]).abs().sum(dim=0)
current = (after[:, y - 3 : y + 4, x - 3 : x + 4] - dense[:, nearest[1], nearest[0]][:, None, None]).abs().sum(dim=0)
show(6, ("distance from F(h^0) in the window", grey(square)), ("distance from F(h^k)", grey(current)))

# %% [markdown]
# ## 7. The loop
#
# Update the latent, find the handle, until it has arrived (2.2, 3.1): z ← z - η ∂L/∂z, with η = 0.01.
# `dragsa.drag_latent` → latent (1, 4, 16, 16), losses (updates,), handles (updates, 1, 2)

# %%
print("7. the loop")
result = dragsa.drag_latent(sd.unet, zs[K], K, context, levels, handles, targets, config=LOOP)
equal("the first update's loss", loss.detach(), result.losses[0], 1e-4)
one = dragsa.drag_latent(sd.unet, zs[K], K, context, levels, handles, targets, config=replace(LOOP, updates=1))
equal("the first update's latent", zs[K] - 0.01 * gradient, one.latent, 1e-4)
print(f"  {result.reason} after {len(result.losses)} updates; cells left: {result.distances[:, 0].round().tolist()}")
curve = Image.new("RGB", (320, 320), "white")
pen = ImageDraw.Draw(curve)
far = result.distances[0, 0].item()
steps = [(20 + 280 * n / LOOP.updates, 300 - 280 * left.item() / far) for n, left in enumerate(result.distances[:, 0])]
pen.line([(20, 20), (20, 300), (300, 300)], fill="black")
pen.line(steps, fill="red", width=3)
way = disc.resize((128 * SCALE, 128 * SCALE), Image.Resampling.NEAREST)
path = [tuple(SCALE * (2 * c + 1) for c in place) for place in result.handles[:, 0].tolist()]
ImageDraw.Draw(way).line(path, fill="black", width=4)
show(7, ("the handle's way", way), ("distance left over the updates", curve))

# %% [markdown]
# ## 8. The mask
#
# Outside the mask M the next latent is to stay (2.2): λ |(z_{t-1} - z⁰_{t-1}) ⊙ (1 - M)|_1. Beside the printed sum
# λ = 0.1 only resists. Beside the mean over C it weighs C times more, and there it must: Adam moves every value about
# as far, however small its gradient is. `drag.mask_term`, `DragConfig.lam`

# %%
print("8. the mask")
may_move = pictures.open_mask(ROOT / "scripts" / "demo" / "mask.png", disc.size, grid)
frozen = 1 - drag.to_latent_grid(may_move, z_0)  # (16, 16)
task = drag.Task(stepped, noise, context, handles, targets, frozen, LOOP)
with torch.no_grad():
    pairs = [(zs[K], out.eps), (stepped, sd.unet(stepped, noise.timestep, context).eps)]
    first, second = (schedule.step_down(z_k, predicted, levels, K) for z_k, predicted in pairs)
    seen = drag.FirstPass(F, first, handles)
    term = drag.mask_term(task, pairs[1][1], seen)[0]
equal("the mask's term", 0.1 * ((second - first).abs() * frozen).sum(), term)
changes = []
mean = replace(LOOP, optimizer="adam", loss="mean")
for name, loop in (
    ("no term", replace(LOOP, lam=0.0)),
    ("0.1 beside the sum", LOOP),
    ("no term, Adam", replace(mean, lam=0.0)),
    ("0.1 beside the mean, Adam", mean),
):
    told = replace(loop, updates=5)
    kept = dragsa.drag_latent(sd.unet, zs[K], K, context, levels, handles, targets, may_move, told).latent
    change = (kept - zs[K]).abs().mean(dim=1)[0]
    inside, outside = ((change * where).sum() / where.sum() for where in (1 - frozen, frozen))
    changes.append((f"{name}: changes by {inside:.3f} inside, {outside:.3f} outside", grey(change)))
    print(f"  {changes[-1][0]}")
show(8, ("1 - M, stays", grey(frozen)), *changes)

# %% [markdown]
# ## 9. Control
#
# Source and edit are denoised side by side, and from step A on the edit's self-attention takes the source's Key and
# Value (3.1): softmax(Q_edit K_sourceᵀ / √d) V_source. `dragsa.MutualSelfAttention`, q, k and v (2, heads, cells, d)
# This drag is short, and keeps its colours without control too; that of scripts/exercises.py, question 6, does not.

# %%
print("9. control")
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(2, 2, 16, 8, generator=generator) for _ in range(3))


def attend(q: Tensor, k: Tensor, v: Tensor, /, bias: Tensor | None = None) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


hooked = dragsa.MutualSelfAttention()(hooks.Site(14, "self", (4, 4)), q, k, v, attend)
equal("the edit's row under control", (q[1] @ k[0].transpose(-1, -2) / math.sqrt(8)).softmax(dim=-1) @ v[0], hooked[1])


def denoised(unet: UNet, step: int) -> Image.Image:
    """Return the dragged latent denoised beside its source, with control from that step on, counted from the drag."""
    told = unet, zs[K], result.latent, context.expand(2, -1, -1), levels
    return pictures.to_picture(sd.decode(dragsa.sample_controlled(*told, start=K, control_step=step)[-1, 1:]))


show(
    9,
    ("picture", disc),
    ("control from the drag on", denoised(sd.unet, 0)),
    ("control never", denoised(sd.unet, K)),
)

# %% [markdown]
# ## 10. Truth
#
# A drawn scene can be drawn again as the drag asks for it, and compared. One handle on the even middle with a small
# patch arrives as soon as something of the middle's colour is there: the object is left behind or torn. Five handles
# with larger patches take all of it along. `evaluation.cases`, `evaluation.figures.measure`

# %%
print("10. truth")
(case,) = cases.cases("settings", limit=1)[:1]
small = dragsa.EditConfig.small(steps=T, drag_step=7, control_step=1)
whole = replace(small.drag, lr=0.1, updates=30, reach=1.0)
small_patch = replace(whole, radius=1, anchor=0.0, reach=2.0, stall=None)
source = dragsa.prepare(sd, case.source, case.prompt, config=small)
panels = [("picture", case.source), ("truth", case.truth)]
for name, loop in (("one", small_patch), ("five", whole)):
    made = dragsa.edit(sd, source, case.drags(name), case.mask, config=replace(small, drag=loop))
    share = figures.measure(made.image, case)["share"]
    panels.append((f"{name}: {share:.0%} of the way left ({made.trace.stop})", made.image))
    print(f"  {panels[-1][0]}, {len(made.trace.losses)} updates")
masks = [torch.rand(8, 8, generator=generator) for _ in range(2)]
cells = list(zip(masks[0].flatten().tolist(), masks[1].flatten().tolist(), strict=True))
equal("overlap of two masks", sum(map(min, cells)) / sum(map(max, cells)), quality.iou(*masks))
show(10, *panels)

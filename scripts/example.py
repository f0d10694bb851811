"""The method with nothing hidden: it gives `dragsa.edit`'s picture. python scripts/example.py out/example.png"""

import sys

import torch
from PIL import Image

import dragsa
from dragsa import drag, passes, pictures, tracking
from dragsa.ddim import step_down

DRAGS = [((42, 79), (70, 59))]  # a whole disc, by its size
LOOP = dragsa.DragConfig(lr=0.05, radius=9, reach=0.7, optimizer="adam-mini", patience=None, lost_patience=None)
CONFIG = dragsa.EditConfig.small(drag=LOOP, drag_step=10, paste=False)


def main(sd: dragsa.StableDiffusion, picture: Image.Image, mask: Image.Image) -> Image.Image:
    context, schedule, loop, k = sd.embed([""]), dragsa.Schedule(CONFIG.steps), LOOP, CONFIG.steps - CONFIG.drag_step
    # Inversion (3.3): z_0, and from it z_1 ... z_T.
    latents = dragsa.invert(sd.unet, sd.encode(picture), context, schedule)  # (T + 1, 1, 4, h, w)

    # The drag (2.2, 3.1): z'_{T-S} is optimised, and the handles are tracked. Points: on half the picture.
    half, grid = (picture.width // 2, picture.height // 2), (picture.height // 2, picture.width // 2)
    handles, targets, _ = pictures.drags_to_grid(DRAGS, picture.size, half)  # (n, 2), handles on whole cells
    frozen = 1 - drag.to_latent_grid(pictures.open_mask(mask, picture.size, half), latents)  # (h, w), 1 stays
    z, state, descend = latents[k], None, passes.OPTIMIZERS[loop.optimizer]
    for update in range(loop.updates):
        z = z.detach().requires_grad_()
        out = sd.unet(z, schedule.timesteps[k - 1], context, taps=(loop.tap,))
        features, z_prev = out.taps[loop.tap], step_down(z, out.eps, schedule, k)  # F(z_k) and z_{k-1}
        if update == 0:
            first_z_prev = z_prev.detach()
            reference = tracking.sample_points(features.detach(), handles.trunc(), grid)  # (n, C)
        else:
            handles = dragsa.track_points(features, reference, handles, loop.track_radius, grid)
        active = (targets - handles).norm(dim=1) >= loop.reach
        if not active.any():
            break
        loss = dragsa.motion_supervision_loss(features, handles, targets, loop.radius, grid, active)
        loss = loss + loop.lam * ((z_prev - first_z_prev).abs() * frozen).sum()
        z, state = descend(z.detach(), torch.autograd.grad(loss, z)[0], state, loop.lr)

    # Denoising (3.1): side by side, the target's self-attention on the source's Key and Value.
    hook = dragsa.MutualSelfAttention(CONFIG.control_blocks)
    pair, contexts = torch.cat([latents[k], z.detach()]), context.expand(2, -1, -1)  # (2, 4, h, w), (2, n, C)
    with torch.no_grad():
        for level in range(k, 0, -1):
            eps = sd.unet(pair, schedule.timesteps[level - 1], contexts, attention=hook).eps
            pair = step_down(pair, eps, schedule, level)
    return pictures.to_picture(sd.decode(pair[1:]))


if __name__ == "__main__":
    disc, mask = Image.open("scripts/demo/disc.png"), Image.open("scripts/demo/mask.png")
    main(dragsa.load("weights/small"), disc, mask).save(sys.argv[1])

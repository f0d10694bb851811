"""What can be seen of a drag while it runs: the picture that forms, and the handles on the picture."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from dragsa import ddim, pictures
from dragsa.editing import Drag, Source
from dragsa.loading import StableDiffusion
from dragsa.pictures import DragProgress, Point


@torch.no_grad()
def forming(sd: StableDiffusion, source: Source, latent: Tensor, level: int) -> Image.Image:
    """Return the picture that a latent z_k (1, 4, h, w) at `level` k points to, in the working size.

    One pass of the UNet tells ε, and with it the clean latent that z_k is a noisy form of:
    ẑ_0 = (z_k - √(1 - ᾱ_k) ε) / √ᾱ_k, which is decoded. It is blurred, as such a guess is, and shows what has moved.
    """
    noise = ddim.noise_at(source.schedule, level, latent.device)
    eps = source.unet_of(sd)(latent, noise.timestep, sd.embed([source.prompt])).eps
    return pictures.to_picture(sd.decode(ddim.ddim(latent, eps, noise.alpha_bar, torch.ones_like(noise.alpha_bar))))


def handles_in_pixels(update: DragProgress, source: Source, drags: tuple[Drag, ...]) -> list[Point]:
    """Return the handles that an update used, in pixels of the picture, as the trace will have them."""
    size, grid = source.picture.size, pictures.grid_size(source.working_size)
    handles, _, asked = pictures.drags_to_grid(drags, size, grid)
    found = torch.tensor(update.handles) + (asked - handles)  # the loop's handles stand on whole cells
    return [(x, y) for x, y in pictures.from_grid(found, size, grid).tolist()]

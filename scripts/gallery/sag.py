"""Self-attention guidance (Hong et al. 2022, arXiv 2210.00939): away from a picture blurred where attention looks."""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import dragsa
from dragsa import AttentionHook, UNetOutput, ddim, hooks, pictures


class SAG(NamedTuple):
    """A denoiser for `dragsa.sample`: ε_∅ + s (ε - ε_∅) + g (ε_∅ - ε̂), with ε̂ that of the degraded latent."""

    unet: dragsa.UNet
    uncond: Tensor  # (1, n, C')
    guidance: float = 4.0  # s
    scale: float = 0.75  # g

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> UNetOutput:
        maps, uncond = hooks.Maps(kind="self", blocks=(7,)), self.uncond.expand_as(context)
        hook = dragsa.compose(*([] if attention is None else [attention]), maps)
        eps_uncond, eps = self.unet(torch.cat([z, z]), t, torch.cat([uncond, context]), attention=hook).eps.chunk(2)
        alpha_bar = ddim.training_alpha_bars()[t].to(z)
        z_0 = (z - (1 - alpha_bar).sqrt() * eps_uncond) / alpha_bar.sqrt()
        z_0 = torch.lerp(z_0, blurred(z_0), looked_at(maps.found[0], z))
        degraded = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * eps_uncond
        away = eps_uncond - self.unet(degraded, t, uncond, attention=attention).eps
        return UNetOutput(eps_uncond + self.guidance * (eps - eps_uncond) + self.scale * away, {})


def looked_at(found: hooks.Map, z: Tensor) -> Tensor:
    """Return 1 where the unconditional rows' cells are attended to more than evenly, else 0: (B, 1, h, w)."""
    mask = (found.weights[: len(z)].sum(dim=(1, 2)) > 1).to(z).view(-1, 1, *found.site.grid)
    return F.interpolate(mask, size=z.shape[-2:])


def blurred(z: Tensor) -> Tensor:
    """Blur (B, C, h, w) with a Gaussian of deviation 1 in 9×9 cells."""
    line = torch.softmax(-0.5 * torch.arange(-4.0, 5.0) ** 2, dim=0)
    kernel = torch.outer(line, line).to(z).expand(z.shape[1], 1, 9, 9)
    return F.conv2d(F.pad(z, (4, 4, 4, 4), mode="reflect"), kernel, groups=z.shape[1])


def main(out: str) -> None:
    sd, prompt, panels = dragsa.load("weights/small"), "a green star on a purple ground", []
    for scale in (0.0, 0.75, 1.5):
        z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        zs = dragsa.sample(SAG(sd.unet, sd.embed([""]), 2.0, scale), z_T, sd.embed([prompt]), dragsa.Schedule())
        panels.append((f"{prompt}, g = {scale:g}", pictures.to_picture(sd.decode(zs[-1]))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/sag.png")
    main(parser.parse_args().out)

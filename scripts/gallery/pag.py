"""Perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377): away from a pass without maps."""

import argparse
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import dragsa
from dragsa import UNetOutput, pictures
from dragsa.hooks import Attend, AttentionHook, Site


@dataclass(frozen=True)
class Perturbed:
    """In the self-attention of `blocks` the batch's last third takes the identity for its map: each token's value."""

    blocks: tuple[int, ...]

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "self" or site.block not in self.blocks:
            return attend(q, k, v)
        first = v.shape[0] // 3 * 2
        return torch.cat([attend(q[:first], k[:first], v[:first]), v[first:]])


class PAG(NamedTuple):
    """A denoiser for `dragsa.sample`: ε_∅ + s (ε - ε_∅) + p (ε - ε̂), with ε̂ of the perturbed pass."""

    unet: dragsa.UNet
    uncond: Tensor  # (1, n, C')
    guidance: float = 4.0  # s
    scale: float = 3.0  # p
    blocks: tuple[int, ...] = (7,)

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, attention: AttentionHook | None = None) -> UNetOutput:
        own = Perturbed(self.blocks)
        hook = own if attention is None else dragsa.compose(attention, own)
        contexts = torch.cat([self.uncond.expand_as(context), context, context])
        uncond, eps, perturbed = self.unet(torch.cat([z, z, z]), t, contexts, attention=hook).eps.chunk(3)
        return UNetOutput(uncond + self.guidance * (eps - uncond) + self.scale * (eps - perturbed), {})


def main(out: str) -> None:
    sd, prompt, panels = dragsa.load("weights/small"), "a green star on a purple ground", []
    z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    for scale in (0.0, 1.0, 3.0):
        zs = dragsa.sample(PAG(sd.unet, sd.embed([""]), 2.0, scale), z_T, sd.embed([prompt]), dragsa.Schedule())
        panels.append((f"{prompt}, p = {scale:g}", pictures.to_picture(sd.decode(zs[-1]))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/pag.png")
    main(parser.parse_args().out)

"""FreeU (Si et al. 2023, arXiv 2309.11497): a stronger backbone, and skips with less of their lowest frequencies."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import dragsa
from dragsa import hooks, pictures
from dragsa.model.blocks import REGIONS

STAGES = ("decoder1", "decoder2")  # the two coarsest


@dataclass(frozen=True)
class FreeU:
    """A region hook for the decoder's ResBlocks: half of the backbone's channels times b, the skip's middle times s."""

    s: tuple[float, float] = (0.9, 0.2)
    b: tuple[float, float] = (1.5, 1.6)

    def __call__(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        (backbone, skip), stage = inputs, STAGES.index(name.partition(".")[0])
        half = backbone.shape[1] // 2
        stronger = torch.cat([backbone[:, :half] * self.b[stage], backbone[:, half:]], dim=1)
        return call(stronger, low_scaled(skip, self.s[stage]))


def low_scaled(x: Tensor, scale: float) -> Tensor:
    """Multiply the four lowest frequencies of each map (B, C, h, w) by `scale`, those of index -1 and 0."""
    h, w = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(x.float()), dim=(-2, -1))
    low = torch.ones(h, w, device=x.device)
    low[h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1] = scale
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * low, dim=(-2, -1))).real.to(x.dtype)


def freeu(s: tuple[float, float] = (0.9, 0.2), b: tuple[float, float] = (1.5, 1.6)) -> hooks.AtRegions:
    """Return the hook at its regions, for `attention=`."""
    return hooks.AtRegions(FreeU(s, b), tuple(name for name in REGIONS if name.startswith(STAGES) and ".res" in name))


def main(out: str) -> None:
    sd, prompt, panels = dragsa.load("weights/small"), "a white face on a purple ground", []
    z_T, uncond = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4)), sd.embed([""])
    for caption, hook in (("plain", None), ("FreeU", freeu((0.9, 0.6), (1.1, 1.2))), ("as for SD 1.5", freeu())):
        zs = dragsa.sample(
            sd.unet, z_T, sd.embed([prompt]), dragsa.Schedule(), guidance=3, uncond=uncond, attention=hook
        )
        panels.append((caption, pictures.to_picture(sd.decode(zs[-1]))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/freeu.png")
    main(parser.parse_args().out)

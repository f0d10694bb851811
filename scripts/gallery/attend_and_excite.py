"""Attend-and-Excite (Chefer et al. 2023, arXiv 2301.13826): the latent is moved until every word is looked for."""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

import dragsa
from dragsa import ddim, hooks, pictures
from dragsa.hooks import Map
from dragsa.methods import prompt_to_prompt


def neglect(maps: Sequence[Map], tokens: Sequence[int]) -> Tensor:
    """Return 1 less the highest attention to the token attended to least: maps of one grid, (1, h, w, m) -> a scalar.

    The first and the last token of the context count nowhere.
    """
    mean = torch.stack([one.weights[0] for one in maps]).mean(dim=0)  # (h, w, m)
    among = (100 * mean[..., 1:-1]).softmax(dim=-1)[..., [token - 1 for token in tokens]]  # (h, w, tokens)
    line = torch.exp(-(torch.arange(-1.0, 2.0) ** 2))
    kernel = (torch.outer(line, line) / line.sum() ** 2).to(among)[None, None]  # (1, 1, 3, 3)
    smooth = F.conv2d(F.pad(among.permute(2, 0, 1)[:, None], (1, 1, 1, 1), mode="reflect"), kernel)
    return (1 - smooth.amax(dim=(1, 2, 3))).max().clamp(min=0)


def excited(
    unet: dragsa.UNet, z: Tensor, t: Tensor, context: Tensor, tokens: Sequence[int], blocks: Sequence[int], step: float
) -> Tensor:
    """Return the latent z (1, 4, h, w) a gradient's step further: z - step ∂loss/∂z. blocks: of one grid."""
    z, maps = z.detach().requires_grad_(), hooks.Maps(blocks=tuple(blocks))
    unet(z, t, context, attention=maps)
    (gradient,) = torch.autograd.grad(neglect(maps.found, tokens), z)
    return z.detach() - step * gradient


def main(out: str) -> None:
    sd, schedule = dragsa.load("weights/small"), dragsa.Schedule(20)
    prompt = "a red disc and a blue star on a cyan ground"
    context, uncond, panels = sd.embed([prompt]), sd.embed([""]), []
    tokens = [prompt_to_prompt.tokens_of(sd.text, prompt, word)[0] for word in ("red", "blue")]
    for step in (0.0, 20.0):
        z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(23))
        for level in range(20, 0, -1):
            t = schedule.timesteps[level - 1]
            z = excited(sd.unet, z, t, context, tokens, (3, 4, 11, 12, 13), step) if level > 10 else z
            with torch.no_grad():
                z = ddim.step_down(z, ddim.predict(sd.unet, z, t, context, 3.0, uncond), schedule, level)
        panels.append((f"{prompt}, steps of {step:g}", pictures.to_picture(sd.decode(z))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/attend_and_excite.png")
    main(parser.parse_args().out)

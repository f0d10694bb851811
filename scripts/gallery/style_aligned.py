"""StyleAligned (Hertz et al. 2023, arXiv 2312.02133): the pictures of a batch take the style of one among them."""

import argparse

import torch
from torch import Tensor

import dragsa
from dragsa import pictures
from dragsa.hooks import Attend, Site


def style_aligned(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
    """Let each row attend to itself and to the row "style", its query and key brought to that row's statistics.

    With guidance the unconditional rows follow "style uncond".
    """
    if site.kind != "self":
        return attend(q, k, v)
    of = [site.rows.index("style uncond" if name.endswith(" uncond") else "style") for name in site.rows]
    q, k = adain(q, q[of]), adain(k, k[of])
    return attend(q, torch.cat([k, k[of]], dim=2), torch.cat([v, v[of]], dim=2))  # to (B, heads, 2 n, d)


def adain(x: Tensor, style: Tensor) -> Tensor:
    """Give x (B, heads, n, d) the mean and deviation over the tokens that `style` has."""
    (mean, deviation), (style_mean, style_deviation) = (
        (one.mean(dim=2, keepdim=True), (one.var(dim=2, keepdim=True) + 1e-5).sqrt()) for one in (x, style)
    )
    return (x - mean) / deviation * style_deviation + style_mean


def main(out: str) -> None:
    sd, schedule, rows = dragsa.load("weights/small"), dragsa.Schedule(), ("style", "square", "star")
    prompts = [
        f"a {one} on a {ground} ground"
        for one, ground in (("red disc", "cyan"), ("blue square", "pink"), ("green star", "yellow"))
    ]
    z_T = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    panels = []
    for what, hook in (("alone", None), ("aligned to the first", style_aligned)):
        zs = dragsa.sample(
            sd.unet, z_T, sd.embed(prompts), schedule, guidance=4, uncond=sd.embed([""]), attention=hook, rows=rows
        )
        made = sd.decode(zs[-1])
        panels += [(f"{what}: {prompts[n]}", pictures.to_picture(made[n, None])) for n in range(3)]
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/style_aligned.png")
    main(parser.parse_args().out)

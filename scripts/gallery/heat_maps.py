"""DAAM (Tang et al. 2022, arXiv 2210.04885): where cross-attention looks for a word; and one cell's self-attention."""

import argparse
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import dragsa
from dragsa import hooks, pictures
from dragsa.hooks import Map
from dragsa.methods import prompt_to_prompt


def heat_map(maps: Sequence[Map], tokens: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Return a word's heat (B, *size): its tokens' maps, each enlarged, in the mean of sites, steps and tokens."""
    enlarged = [
        F.interpolate(one.weights[..., list(tokens)].permute(0, 3, 1, 2), size=size, mode="bicubic").clamp(min=0)
        for one in maps
    ]  # (B, tokens, *size) each
    return torch.stack(enlarged).mean(dim=(0, 2))


def cell_map(found: Map, x: int, y: int) -> Tensor:
    """Return what the cell (x, y) of the site's grid attends to: (B, h, w) of self-attention."""
    return found.weights[:, y, x].unflatten(1, found.site.grid)


def main(out: str) -> None:
    sd, prompt = dragsa.load("weights/small"), "a red disc and a blue star on a yellow ground"
    z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(6))
    words, rows = hooks.Maps(rows=("latent",)), ("latent",)
    of_block = [hooks.Maps(kind="self", blocks=(block,), rows=rows) for block in (2, 15)]
    hook, given = dragsa.compose(words, *of_block), (sd.unet, z_T, sd.embed([prompt]), dragsa.Schedule())
    zs = dragsa.sample(*given, guidance=4, uncond=sd.embed([""]), attention=hook)
    heats = {
        word: heat_map(words.found, prompt_to_prompt.tokens_of(sd.text, prompt, word), (16, 16))
        for word in ("disc", "star", "yellow")
    }
    heats |= {f"cell (8, 8) in block {m.blocks[0]:02d}": cell_map(m.found[-1], 8, 8) for m in of_block}
    panels = [(prompt, pictures.to_picture(sd.decode(zs[-1])))]
    for caption, heat in heats.items():
        shade = 2 * heat / heat.amax() - 1  # (1, h, w)
        panels.append(
            (caption, pictures.to_picture(shade.expand(1, 3, -1, -1)).resize((128, 128), Image.Resampling.NEAREST))
        )
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/heat_maps.png")
    main(parser.parse_args().out)

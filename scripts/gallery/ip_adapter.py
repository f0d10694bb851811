"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): cross-attention to a picture's tokens beside the prompt's."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import dragsa
from dragsa import pictures
from dragsa.hooks import KV, Attend, Site
from dragsa.model.blocks import DIFFUSERS_ORDER, block_name


@dataclass(frozen=True, eq=False)
class IPAdapter:
    """Add attention to the K/V of a picture's tokens, by block (1 or B, heads, tokens, d), with weight `scale`."""

    kv: Mapping[int, KV]
    scale: float = 0.6

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind != "cross":
            return attend(q, k, v)
        key, value = (x.expand(q.shape[0], -1, -1, -1) for x in self.kv[site.block])
        return attend(q, k, v) + self.scale * attend(q, key, value)


def picture_kv(unet: Any, layers: Mapping[str, Tensor], tokens: Tensor) -> dict[int, KV]:
    """Compute the K/V of a picture's tokens (B, n, C') with the "ip_adapter" layers of a published file."""
    found = {}
    for number, (block, kind) in enumerate(DIFFUSERS_ORDER):  # the file counts self- and cross-attention in this order
        if kind == "cross":
            split = unet.regions[block_name(block)].transformer_blocks[0].attn2.split
            found[block] = KV(*(split(F.linear(tokens, layers[f"{number}.to_{one}_ip.weight"])) for one in "kv"))
    return found


def main(out: str) -> None:
    """Show a prompt, and with it the tokens of another: no adapter is trained for the small model's pictures."""
    sd, schedule = dragsa.load("weights/small"), dragsa.Schedule()
    context, other, uncond = sd.embed(["a disc", "a green star on a pink ground", ""]).split(1)
    hook = IPAdapter(dict(enumerate(sd.unet.condition(0, other).kv, start=1)))
    z_T = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    panels = []
    for caption, attention in (("a disc", None), ("and beside it the tokens of a green star on a pink ground", hook)):
        zs = dragsa.sample(sd.unet, z_T, context, schedule, guidance=4, uncond=uncond, attention=attention)
        panels.append((caption, pictures.to_picture(sd.decode(zs[-1]))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/ip_adapter.png")
    main(parser.parse_args().out)

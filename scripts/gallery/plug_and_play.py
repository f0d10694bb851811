"""Plug-and-Play (Tumanyan et al. 2022, arXiv 2211.12572): the source's features and attention maps in the target."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

import dragsa
from dragsa import pictures
from dragsa.hooks import Attend, Site, check_pairs, from_source

RESIDUAL, BLOCKS = "decoder2.res2", tuple(range(9, 17))


@dataclass(frozen=True, eq=False)
class PlugAndPlay:
    """Pairs of rows take the source's maps in `BLOCKS`, and its residual in one ResBlock, past the `shortcut`."""

    shortcut: nn.Module
    maps: bool = True
    features: bool = True

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if not self.maps or site.kind != "self" or site.block not in BLOCKS:
            return attend(q, k, v)
        check_pairs(site, len(q))
        return attend(from_source(q), from_source(k), v)

    def region(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if not self.features or name != RESIDUAL:
            return call(*inputs)
        own = self.shortcut(torch.cat(inputs, dim=1))
        return own + from_source(call(*inputs) - own)


def main(out: str) -> None:
    sd, config = dragsa.load("weights/small"), dragsa.EditConfig.small(guidance=6.0)
    disc, target = Image.open("scripts/demo/disc.png"), "a yellow star on a purple ground"
    source = dragsa.prepare(sd, disc, "a red disc on a cyan ground", config=config)
    module = sd.unet.regions[RESIDUAL].get_submodule("conv_shortcut")

    def hook_at(step: int) -> dragsa.AttentionHook | None:
        return PlugAndPlay(module, maps=step < 25, features=step < 40) if step < 40 else None

    panels = [("a red disc on a cyan ground", pictures.to_rgb(disc))]
    for caption, control in (("alone", lambda step: None), ("with the source's maps and features", hook_at)):
        result = dragsa.edit(sd, source, target_prompt=target, config=config, control=control)
        panels.append((f"{target}, {caption}", result.image))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/plug_and_play.png")
    main(parser.parse_args().out)

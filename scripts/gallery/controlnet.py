"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): what a second encoder finds is added to the decoder's skips."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import dragsa
from dragsa import ddim, hooks, pictures
from dragsa.model.blocks import REGIONS

MIDDLE = "mid.res2"
SKIPS = tuple(name for name in REGIONS if name.startswith("decoder") and ".res" in name)  # the encoder's last is first
# Taps of all skips but the first and the eleventh:
FOUND = "block01", "block02", "encoder1", "block03", "block04", "encoder2", "block05", "block06", "encoder3", "encoder4"


@dataclass(frozen=True, eq=False)
class Residuals:
    """A region hook that adds a ControlNet's residuals: `down`, 12 in the encoder's order, and the middle's."""

    down: Sequence[Tensor]
    mid: Tensor

    def __call__(self, name: str, call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if name == MIDDLE:
            return call(*inputs) + self.mid
        return call(inputs[0], inputs[1] + self.down[-1 - SKIPS.index(name)])


def controlled(down: Sequence[Tensor], mid: Tensor) -> hooks.AtRegions:
    """Return a pass's hook of residuals (1 or B, C, h, w)."""
    return hooks.AtRegions(Residuals(tuple(down), mid), (MIDDLE, *SKIPS))


@torch.no_grad()
def main(out: str) -> None:
    """Follow a picture by half of what the encoder finds in it: no ControlNet is trained for the small model."""
    sd, picture = dragsa.load("weights/small"), pictures.open_picture("scripts/demo/disc.png")
    context, z_0, panels = sd.embed(["a yellow disc on a purple ground"]), sd.encode(picture), [("to follow", picture)]
    z_T, no, schedule = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(5)), torch.zeros(1), dragsa.Schedule()
    for share in (0.0, 0.5):
        z = z_T
        for level in range(schedule.steps, 0, -1):
            t, a = schedule.timesteps[level - 1], schedule.alpha_bars[level]
            pair, both = torch.cat([a.sqrt() * z_0 + (1 - a).sqrt() * z_T, z]), context.expand(2, -1, -1)
            found = sd.unet(pair, t, both, taps=FOUND, until="encoder4").taps
            *most, last = (share * (found[name][:1] - found[name][1:]) for name in FOUND)
            hook = controlled([no, *most, no, last], no)
            z = ddim.step_down(z, ddim.predict(sd.unet, z, t, context, attention=hook), schedule, level)
        panels.append((f"{share:.0%} of its skips", pictures.to_picture(sd.decode(z))))
    pictures.save_picture(pictures.sheet(panels), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/controlnet.png")
    main(parser.parse_args().out)

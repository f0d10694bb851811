"""An own term in the drag's loss, here total variation (Rudin, Osher and Fatemi 1992) of the latent."""

import argparse
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

import dragsa
from dragsa import drag, passes, pictures


@dataclass(frozen=True)
class Smooth:
    """Motion supervision with `weight` times the latent's total variation in its loss."""

    weight: float

    def __call__(
        self,
        run: passes.PreparedPass,
        task: drag.Task,
        first_pass: drag.FirstPass | None = None,
        lap: drag.Lap = drag.no_lap,
    ) -> drag.Supervision:
        at = drag.motion_supervision(run, task, first_pass, lap)
        return at._replace(loss=at.loss + self.weight * total_variation(task.latent))


def total_variation(z: Tensor) -> Tensor:
    """Return the sum of the differences between neighbouring cells of (1, C, h, w), a scalar."""
    return z.diff(dim=2).abs().sum() + z.diff(dim=3).abs().sum()


def main(out: str) -> None:
    sd, config = dragsa.load("weights/small"), dragsa.EditConfig.small()
    disc, mask = (Image.open(f"scripts/demo/{name}.png") for name in ("disc", "mask"))
    source = dragsa.prepare(sd, disc, "a red disc on a cyan ground", config=config)
    drags, panels = [((42, 79), (70, 59)), ((43, 65), (71, 45)), ((55, 80), (83, 60)), ((40, 93), (68, 73))], []
    for weight in (0.0, 0.02, 0.2):
        result = dragsa.edit(sd, source, drags, mask, config=config, supervision=Smooth(weight))
        panels.append((f"{len(result.trace.losses)} updates, weight {weight:g}", result.image))
    pictures.save_picture(pictures.sheet([("source", disc), *panels]), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/own_term.png")
    main(parser.parse_args().out)

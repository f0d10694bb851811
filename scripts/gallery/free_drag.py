"""FreeDrag (Ling et al. 2023, arXiv 2307.04684) in an edit: a supervision of the drag without point tracking."""

import argparse

from PIL import Image

import dragsa
from dragsa import pictures
from dragsa.methods import FreeDrag  # the method

DRAGS = [((42, 79), (70, 59)), ((43, 65), (71, 45)), ((55, 80), (83, 60)), ((40, 93), (68, 73)), ((28, 77), (56, 57))]


def main(out: str) -> None:
    sd, loop = dragsa.load("weights/small"), dragsa.DragConfig(updates=200, lr=0.05, radius=3, optimizer="adam-mini")
    disc, mask = (Image.open(f"scripts/demo/{name}.png") for name in ("disc", "mask"))
    config = dragsa.EditConfig.small(drag=loop, drag_step=20)
    result = dragsa.edit(sd, disc, DRAGS, mask, config=config, supervision=FreeDrag(expected=0.5))
    pictures.save_picture(pictures.sheet(pictures.panels_of(disc, result.image, result.trace)), out, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/free_drag.png")
    main(parser.parse_args().out)

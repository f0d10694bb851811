"""The example, which has every step of the method written out, gives the picture that `edit` gives."""

from pathlib import Path

import example
from PIL import Image

import dragsa

ROOT = Path(__file__).parents[2]


def test_the_example_gives_edits_bytes() -> None:
    sd = dragsa.load(ROOT / "weights" / "small")
    disc, mask = (Image.open(ROOT / "scripts" / "demo" / name) for name in ("disc.png", "mask.png"))
    result = dragsa.edit(sd, disc, example.DRAGS, mask, config=example.CONFIG)
    assert len(result.trace.losses) > 10
    assert example.main(sd, disc, mask).tobytes() == result.image.tobytes()


def test_it_fits_a_page() -> None:
    assert len((ROOT / "scripts" / "example.py").read_text(encoding="utf-8").splitlines()) <= 60

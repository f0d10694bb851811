"""The example, which has every step of the method written out, gives the picture that `edit` gives."""

from dataclasses import replace
from pathlib import Path

import example
import pytest
from PIL import Image

import dragsa

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore:the drag did not arrive")
def test_the_example_gives_edits_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "LOOP", replace(example.LOOP, updates=4))
    monkeypatch.setattr(example, "CONFIG", replace(example.CONFIG, drag=example.LOOP, steps=10, drag_step=4))
    sd = dragsa.load(ROOT / "weights" / "small")
    disc, mask = (Image.open(ROOT / "scripts" / "demo" / name) for name in ("disc.png", "mask.png"))
    result = dragsa.edit(sd, disc, example.DRAGS, mask, config=example.CONFIG)
    assert len(result.trace.losses) == 4
    assert example.main(sd, disc, mask).tobytes() == result.image.tobytes()


def test_it_fits_a_page() -> None:
    assert len((ROOT / "scripts" / "example.py").read_text(encoding="utf-8").splitlines()) <= 60

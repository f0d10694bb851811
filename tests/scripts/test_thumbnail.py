"""Thumbnails: pictures side by side at one height, in a small file."""

from pathlib import Path

import numpy as np
import pytest
import thumbnail
from PIL import Image


def test_pictures_stand_side_by_side_at_one_height(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (80, 40), (250, 0, 0)), Image.new("RGB", (60, 60), (0, 0, 250))
    for name, picture in (("a", red), ("b", blue)):
        picture.save(tmp_path / f"{name}.png")
    given = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    thumbnail.main([str(tmp_path / "out.png"), *given, "--width", "64", "--colours", "8"])
    made = Image.open(tmp_path / "out.png")
    assert made.mode == "P" and made.size == (64, 20)  # 40 + 4 + 20
    levels = np.asarray(made.convert("RGB")).astype(int)
    for columns, colour in (
        (slice(0, 40), (250, 0, 0)),
        (slice(40, 44), (255, 255, 255)),
        (slice(44, 64), (0, 0, 250)),
    ):
        assert np.abs(levels[:, columns] - colour).max() <= 8
    thumbnail.main([str(tmp_path / "out.png"), *given[:1], "--width", "1000"])  # replaced, and not enlarged
    assert Image.open(tmp_path / "out.png").size == (80, 40)
    with pytest.raises(SystemExit):
        thumbnail.main([str(tmp_path / "out.png")])

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _surroundings(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGSA_WEIGHTS", str(tiny_folder))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A bright square on a ramp, 72×64."""
    y, x = np.mgrid[:64, :72]
    levels = np.stack([x * 3, y * 3, x * 0 + 90], axis=2)
    levels[20:36, 16:32] = (250, 240, 20)
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"

"""The folder of an edit's inside."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dragsa
from dragsa import looking
from dragsa.pictures import DragProgress, StageProgress

CONFIG = dragsa.EditConfig.paper(steps=5, drag_step=2, source_kv="none", drag=dragsa.DragConfig(updates=2))


def shown(folder: Path) -> list[str]:
    """The titles of the page's sections, whose pictures are all there and are all that is there."""
    text = (folder / "index.html").read_text("utf-8")
    named = re.findall(r'<img src="(.*?)"', text)
    assert sorted([*named, "index.html"]) == sorted(path.name for path in folder.iterdir())
    assert all(Image.open(folder / name).size > (16, 16) for name in named)
    return re.findall("<h2>(.*?)</h2>", text)


@pytest.mark.filterwarnings("ignore:the drag did not arrive")
def test_the_page_shows_what_there_is(tiny_folder: Path, tmp_path: Path) -> None:
    sd = dragsa.load(tiny_folder)
    latents: dict[int, torch.Tensor] = {}

    def keep(event: StageProgress | DragProgress) -> None:
        if isinstance(event, DragProgress) and event.latent is not None:
            latents[event.update] = event.latent

    picture = Image.fromarray(np.arange(64 * 72 * 3, dtype=np.uint8).reshape(64, 72, 3))
    source = dragsa.prepare(sd, picture, "a red <dot>", config=CONFIG)
    drags = (((20.0, 20.0), (40.0, 20.0)), ((30.0, 40.0), (30.0, 30.0)))
    result = dragsa.edit(sd, source, drags, config=CONFIG, observe=keep)
    edited = looking.Edited(source, result, drags, latents=latents, passes=["one", "two"])
    (tmp_path / "drag").mkdir()
    looking.write(tmp_path / "drag", sd, edited)
    titles = [
        "The edit",
        "Passes of the UNet",
        "The trajectory",
        "Features",
        "Frames",
        "Tracking",
        "Attention",
        "Curves",
    ]
    assert shown(tmp_path / "drag") == titles
    text = (tmp_path / "drag/index.html").read_text("utf-8")
    assert "“a red &lt;dot&gt;”, 2 drags, budget after 2 updates" in text and "<li>one</li>" in text
    frames = looking.frames_of(sd, edited)
    assert [*frames] == [1, 2] and frames[1].size == (72, 64) and frames[1].tobytes() != frames[2].tobytes()

    result = dragsa.edit(sd, source, target_prompt="a cat", config=replace(CONFIG, control_step=2))
    (tmp_path / "prompt").mkdir()
    looking.write(tmp_path / "prompt", sd, looking.Edited(source, result))
    assert shown(tmp_path / "prompt") == ["The edit", "The trajectory", "Features", "Attention"]

"""The drawings: what ships is whole and licensed, is kept without loss, and what is held out follows from the name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dragsa.evaluation import artwork
from dragsa.evaluation.artwork import SHIPPED, STYLES, Sprites


def test_what_ships_is_small_and_licensed() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 3_000_000
    words = {"fluent": "Microsoft", "noto": "Apache License", "twemoji": "Attribution 4.0 International"}
    for style, word in words.items():
        assert word in (SHIPPED / style / "LICENSE").read_text()
        assert {file.stem for file in (SHIPPED / style).glob("*.webp")} == set(artwork.shipped().names)


def test_colours_are_premultiplied_and_styles_differ() -> None:
    sprites = artwork.shipped()
    for name in sprites.names:
        drawings = [sprites.picture(name, style) for style in STYLES]
        for drawing in drawings:
            assert (drawing[:3] <= drawing[3:] + 1e-6).all()
            assert drawing[3].mean() > 0.2  # a body, not a few lines
        apart = [(one - other).abs().mean().item() for one, other in pairwise(drawings)]
        assert min(apart) > 0.02, name


def test_a_folder_keeps_drawings_without_loss(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randint(0, 256, (2, 3, 1, 8, 8), generator=generator)
    colours = (torch.rand(2, 3, 3, 8, 8, generator=generator) * alpha).round()
    blocks = torch.cat([colours, alpha], dim=2).to(torch.uint8)
    written = Sprites(["a", "b"], blocks.repeat_interleave(16, dim=3).repeat_interleave(16, dim=4))
    artwork.write_folder(written, tmp_path)
    read = artwork.read_folder(tmp_path)
    assert read.names == written.names
    for name in read.names:
        for style in STYLES:
            assert torch.equal(read.picture(name, style), written.picture(name, style))
    assert read.only(["b"]).names == ("b",) and torch.equal(
        read.only(["b"]).picture("b", "noto"), read.picture("b", "noto")
    )


def test_nothing_is_said_to_be_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no artwork in it"):
        artwork.read_folder(tmp_path)
    with pytest.raises(ValueError, match="no drawing of 'yeti' in the style 'noto'"):
        artwork.shipped().picture("yeti", "noto")


def test_what_is_held_out_is_a_tenth_of_the_names_and_a_style_of_another() -> None:
    names = [f"thing-{n}" for n in range(3_000)]
    held = [artwork.held_out(name) for name in names]
    assert 0.08 < held.count("all") / len(held) < 0.12
    assert all(0.02 < held.count(style) / len(held) < 0.05 for style in STYLES)
    for name, kept in zip(names, held, strict=True):
        assert [artwork.is_trained(name, style) for style in STYLES] == [kept not in ("all", style) for style in STYLES]


def test_things_are_drawn_in_every_style_and_have_a_body() -> None:
    packages = [
        {"icons": dict.fromkeys(names)} for names in (["bear", "a-b-c-d-e", "one-oclock", "owl"], ["bear", "owl"])
    ]
    packages[1]["icons"] |= dict.fromkeys(["a-b-c-d-e", "one-oclock"])
    categories = {"Animals & Nature": ["bear", "a-b-c-d-e", "cow"], "Symbols": ["owl"], "Objects": ["one-oclock"]}
    assert artwork.things(packages, categories) == {"bear"}

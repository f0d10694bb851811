"""Panels with captions, and a sheet of them side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dragsa.pictures import drawing, images
from dragsa.pictures.trace import Trace

READABLE = 384  # a sheet's panels are at least this high


def panels_of(source: Image.Image, image: Image.Image, trace: Trace) -> list[tuple[str, Image.Image]]:
    """Return an edit's source, path and result, each as (caption, picture).

    A small picture's path is drawn enlarged, by the first whole number that makes it `READABLE` high.
    """
    before = f"source: {trace.prompt}" if trace.prompt else "source"
    after = "result" if trace.target_prompt is None else f"result: {trace.target_prompt}"
    panels = [(before, source)]
    if trace.drags:
        path = drawing.draw_path(source, trace, scale=math.ceil(READABLE / trace.picture_size[1]))
        panels.append((f"path after {len(trace.losses)} updates ({trace.stop})", path))
    return [*panels, (after, image)]


def sheet(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return the pictures side by side at one height, each under its caption, on white.

    The height is the highest panel's, at least `READABLE`; smaller ones are enlarged. Captions are wrapped to the
    panel's width. Raises ValueError for no panels.
    """
    if not panels:
        raise ValueError("a sheet of no pictures")
    height = max(READABLE, max(picture.height for _, picture in panels))
    font_size = max(16, height // 24)
    font = ImageFont.load_default(font_size)
    margin, leading = font_size, round(1.3 * font_size)

    cells = []
    for caption, picture in panels:
        width = max(1, round(picture.width * height / picture.height))
        fitted = images.to_rgb(picture).resize((width, height), Image.Resampling.LANCZOS)
        cells.append((_wrap(caption, font, width), fitted))
    top = margin + leading * max(len(lines) for lines, _ in cells)
    whole = Image.new("RGB", (sum(c.width + margin for _, c in cells) + margin, top + height + margin), "white")
    draw = ImageDraw.Draw(whole)
    x = margin
    for lines, cell in cells:
        for n, line in enumerate(lines):
            draw.text((x, margin // 2 + leading * n), line, fill="black", font=font)
        whole.paste(cell, (x, top))
        x += cell.width + margin
    return whole


def _wrap(caption: str, font: Any, width: int) -> list[str]:
    """Return the caption in lines no wider than `width`; a word that is wider stands alone and is cut."""
    lines: list[str] = []
    for word in caption.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    for n, line in enumerate(lines):
        while len(line) > 1 and font.getlength(line) > width:
            line = line[:-2] + "…"
        lines[n] = line
    return lines

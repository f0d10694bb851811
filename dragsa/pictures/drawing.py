"""Drawings of a trace: a picture with the path that tracking followed, and a sheet of captioned pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dragsa.pictures import images
from dragsa.pictures.images import Point
from dragsa.pictures.trace import Trace

READABLE = 384  # a sheet's panels are at least this high
SMOOTH = 4  # marks are drawn at so many times the size and reduced
HALO, ASKED, PATH, START, TARGET = "white", "#404040", "#f020c0", "#e8222e", "#2060ff"


def draw_path(picture: Image.Image, trace: Trace, scale: int = 1) -> Image.Image:
    """Return the picture, `scale` times its size, with each drag on it.

    A red dot marks where the handle started, a thin arrow leads to the blue ring of its target, and the path that
    tracking followed is magenta. Raises ValueError unless the picture has the trace's picture size.
    """
    if picture.size != trace.picture_size:
        raise ValueError(f"the picture is {picture.size}, the trace's {trace.picture_size}")
    size = (picture.width * scale, picture.height * scale)
    ground = images.to_rgb(picture).resize(size, Image.Resampling.LANCZOS)  # a copy at least
    if not trace.drags:
        return ground

    unit = SMOOTH * (1.5 + 0.003 * max(0, max(size) - 128))  # about the path's width
    marks = Image.new("RGBA", (size[0] * SMOOTH, size[1] * SMOOTH))
    draw = ImageDraw.Draw(marks)

    def at(point: Point) -> Point:
        return (point[0] + 0.5) * scale * SMOOTH - 0.5, (point[1] + 0.5) * scale * SMOOTH - 0.5

    for n, (handle, target) in enumerate(trace.drags):
        start, end = at(handle), at(target)
        path = [at(row[n]) for row in trace.handles] + [at(p) for p in trace.tracked[n : n + 1]]
        _arrow(draw, start, end, 1.2 * unit, unit)
        _line(draw, path, unit)
        _circle(draw, start, 2 * unit, fill=HALO)
        _circle(draw, start, 1.4 * unit, fill=START)
        for radius, width, colour in ((2.8 * unit, 2.2 * unit, HALO), (2.6 * unit, unit, TARGET)):
            # The outline lies inside of the circle.
            _circle(draw, end, radius + width / 2, outline=colour, width=round(width))
    reduced = marks.resize(size, Image.Resampling.BOX)
    return Image.alpha_composite(ground.convert("RGBA"), reduced).convert("RGB")


def _circle(draw: ImageDraw.ImageDraw, at: Point, radius: float, **how: Any) -> None:
    draw.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), **how)


def _line(draw: ImageDraw.ImageDraw, points: list[Point], width: float) -> None:
    """Draw a line through the points on a white halo, with round joints and ends."""
    for colour, w in ((HALO, 2.2 * width), (PATH, 1.2 * width)):
        if len(points) > 1:
            draw.line(points, fill=colour, width=round(w))
        for point in points:
            _circle(draw, point, w / 2, fill=colour)


def _arrow(draw: ImageDraw.ImageDraw, start: Point, end: Point, gap: float, width: float) -> None:
    """Draw a thin arrow from start to the rim of the ring round end; none where the two are too near for it."""
    length = math.dist(start, end)
    head, rim = 4 * width, 2.6 * width + gap
    if length <= head + rim:
        return
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    tip = (end[0] - ux * rim, end[1] - uy * rim)
    neck = (tip[0] - ux * head, tip[1] - uy * head)
    side = 0.45 * head
    wings = [(neck[0] - uy * side, neck[1] + ux * side), (neck[0] + uy * side, neck[1] - ux * side)]
    draw.line([start, neck], fill=HALO, width=round(1.4 * width))
    draw.polygon([tip, *wings], fill=ASKED, outline=HALO, width=round(0.4 * width))
    draw.line([start, neck], fill=ASKED, width=round(0.6 * width))


def panels_of(source: Image.Image, image: Image.Image, trace: Trace) -> list[tuple[str, Image.Image]]:
    """Return an edit's source, path and result, each as (caption, picture).

    A small picture's path is drawn enlarged, by the first whole number that makes it `READABLE` high.
    """
    before = f"source: {trace.prompt}" if trace.prompt else "source"
    after = "result" if trace.target_prompt is None else f"result: {trace.target_prompt}"
    panels = [(before, source)]
    if trace.drags:
        path = draw_path(source, trace, scale=math.ceil(READABLE / trace.picture_size[1]))
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
    for n in range(len(lines)):
        while len(lines[n]) > 1 and font.getlength(lines[n]) > width:
            lines[n] = lines[n][:-2] + "…"
    return lines

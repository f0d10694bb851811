"""Drawings of a trace: a picture with the path that tracking followed, and a sheet of captioned pictures."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dragsa.pictures import images
from dragsa.pictures.images import Point
from dragsa.pictures.trace import Trace

READABLE = 384  # a sheet's panels are at least this high
LARGEST = 2048  # and at most so wide and so high
LINES = 12  # of a caption
BAND = 2**24  # pixels of the enlarged marks that are drawn at once, 64 MB
SMOOTH = 4  # marks are drawn at so many times the size and reduced
HALO, ASKED, PATH, START, TARGET = "white", "#404040", "#f020c0", "#e8222e", "#2060ff"


def draw_path(picture: Image.Image, trace: Trace, scale: float = 1) -> Image.Image:
    """Return the picture, `scale` times its size, with each drag on it.

    A red dot marks where the handle started, a thin arrow leads to the blue ring of its target, and the path that
    tracking followed is magenta. Raises ValueError unless the picture has the trace's picture size.
    """
    if picture.size != trace.picture_size:
        raise ValueError(f"the picture is {picture.size}, the trace's {trace.picture_size}")
    size = images.scaled(picture.size, scale)
    ground = images.to_rgb(picture).resize(size, Image.Resampling.LANCZOS)  # a copy at least
    if not trace.drags:
        return ground

    unit = SMOOTH * (1.5 + 0.003 * max(0, max(size) - 128))  # about the path's width
    heights = [y * scale for drag in trace.drags for _, y in drag]
    heights += [y * scale for row in (*trace.handles, trace.tracked) for _, y in row]
    room = 4 * unit / SMOOTH + 1  # what marks take round their points
    first, last = max(0, int(min(heights) - room)), min(size[1], math.ceil(max(heights) + room) + 1)
    rows = max(1, BAND // (SMOOTH**2 * size[0]))
    for top in range(first, last, rows):  # band by band, so that the marks of a large picture take little
        box = (0, top, size[0], min(last, top + rows))
        marks = Image.new("RGBA", (size[0] * SMOOTH, (box[3] - top) * SMOOTH))
        _draw_marks(Pen(ImageDraw.Draw(marks), top * SMOOTH), trace, scale * SMOOTH, unit)
        reduced = marks.resize((size[0], box[3] - top), Image.Resampling.BOX)
        ground.paste(Image.alpha_composite(ground.crop(box).convert("RGBA"), reduced).convert("RGB"), box)
    return ground


def _draw_marks(pen: Pen, trace: Trace, scale: float, unit: float) -> None:
    """Draw the trace's drags at a scale."""

    def at(point: Point) -> Point:
        return (point[0] + 0.5) * scale - 0.5, (point[1] + 0.5) * scale - 0.5

    for n, (handle, target) in enumerate(trace.drags):
        start, end = at(handle), at(target)
        path = [at(row[n]) for row in trace.handles] + [at(p) for p in trace.tracked[n : n + 1]]
        _arrow(pen, start, end, 1.2 * unit, unit)
        _line(pen, path, unit)
        pen.circle(start, 2 * unit, fill=HALO)
        pen.circle(start, 1.4 * unit, fill=START)
        for radius, width, colour in ((2.8 * unit, 2.2 * unit, HALO), (2.6 * unit, unit, TARGET)):
            # The outline lies inside of the circle.
            pen.circle(end, radius + width / 2, outline=colour, width=round(width))


@dataclass(frozen=True)
class Pen:
    """Draws on a band of a picture, `top` rows down, the pixels that it would have in the whole picture.

    Pillow cuts coordinates to integers, towards 0; so they are cut before they shift.
    """

    draw: ImageDraw.ImageDraw
    top: int

    def shifted(self, points: Sequence[Point]) -> list[Point]:
        return [(int(x), int(y) - self.top) for x, y in points]

    def circle(self, at: Point, radius: float, **how: Any) -> None:
        corners = (at[0] - radius, at[1] - radius), (at[0] + radius, at[1] + radius)
        self.draw.ellipse(self.shifted(corners), **how)

    def line(self, points: Sequence[Point], **how: Any) -> None:
        self.draw.line(self.shifted(points), **how)

    def polygon(self, points: Sequence[Point], **how: Any) -> None:
        self.draw.polygon(self.shifted(points), **how)


def _line(pen: Pen, points: list[Point], width: float) -> None:
    """Draw a line through the points on a white halo, with round joints and ends."""
    for colour, w in ((HALO, 2.2 * width), (PATH, 1.2 * width)):
        if len(points) > 1:
            pen.line(points, fill=colour, width=round(w))
        for point in points:
            pen.circle(point, w / 2, fill=colour)


def _arrow(pen: Pen, start: Point, end: Point, gap: float, width: float) -> None:
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
    pen.line([start, neck], fill=HALO, width=round(1.4 * width))
    pen.polygon([tip, *wings], fill=ASKED, outline=HALO, width=round(0.4 * width))
    pen.line([start, neck], fill=ASKED, width=round(0.6 * width))


def panels_of(source: Image.Image, image: Image.Image, trace: Trace) -> list[tuple[str, Image.Image]]:
    """Return an edit's source, path and result, each as (caption, picture).

    A small picture's path is drawn enlarged, by the first whole number that makes it `READABLE` high, unless it becomes
    larger than a panel; a picture that is larger, as a panel.
    """
    before = f"source: {trace.prompt}" if trace.prompt else "source"
    after = "result" if trace.target_prompt is None else f"result: {trace.target_prompt}"
    panels = [(before, source)]
    if trace.drags:
        scale = min(math.ceil(READABLE / trace.picture_size[1]), LARGEST / max(trace.picture_size))
        path = draw_path(source, trace, scale)
        panels.append((f"path after {len(trace.losses)} updates ({trace.stop})", path))
    return [*panels, (after, image)]


def sheet(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return the pictures side by side at one height, each under its caption, on white.

    The height is the highest panel's, at least `READABLE`; smaller ones are enlarged. None is larger than `LARGEST`
    either way. Captions are wrapped to the panel's width. Raises ValueError for no panels.
    """
    if not panels:
        raise ValueError("a sheet of no pictures")
    flattest = max(1, max(picture.width / picture.height for _, picture in panels))
    height = min(max(READABLE, max(picture.height for _, picture in panels)), max(1, int(LARGEST / flattest)))
    font_size = max(16, height // 24)
    font = ImageFont.load_default(font_size)
    margin, leading = font_size, round(1.3 * font_size)

    cells = []
    for caption, picture in panels:
        width = min(LARGEST, max(1, round(picture.width * height / picture.height)))
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
    """Return the caption in at most `LINES` lines no wider than `width`; a word that is wider stands alone, cut."""
    lines: list[str] = []
    for word in caption.split():
        word = _cut(word, font, width)
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            if len(lines) == LINES:
                return [*lines[:-1], _cut(f"{lines[-1]} {word}", font, width)]
            lines.append(word)
    return lines


def _cut(text: str, font: Any, width: int) -> str:
    """Return the text if it is no wider than `width`, else its longest beginning that is, and an ellipsis."""
    if (
        len(text) <= width and font.getlength(text) <= width
    ):  # where most letters are no wider than a pixel, all are cut
        return text
    fits = range(1, min(len(text), width))
    return text[: bisect.bisect_right(fits, width, key=lambda end: font.getlength(f"{text[:end]}…"))] + "…"

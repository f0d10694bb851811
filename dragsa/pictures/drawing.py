"""Drawings of a trace: a picture with its drags and the path that tracking followed."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from dragsa.pictures import images
from dragsa.pictures.images import Point
from dragsa.pictures.trace import Trace

SMOOTH = 4  # marks are drawn at so many times the size and reduced
HALO, ASKED, PATH, START, TARGET = "white", "#404040", "#f020c0", "#e8222e", "#2060ff"


def draw_path(picture: Image.Image, trace: Trace, scale: int = 1) -> Image.Image:
    """Return the picture, `scale` times its size, with each drag on it.

    A red dot marks where the handle started, a thin arrow leads to the blue ring of its target, and the path that
    tracking followed is magenta. Raises ValueError unless the picture has the trace's picture size.
    """
    if picture.size != trace.picture_size:
        raise ValueError(f"the picture is {picture.size}, the trace's {trace.picture_size}")
    ground = images.to_rgb(picture)
    size = (picture.width * scale, picture.height * scale)
    if scale != 1:
        ground = ground.resize(size, Image.Resampling.LANCZOS)
    if not trace.drags:
        return ground.copy()

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
        _disc(draw, start, 2 * unit, HALO)
        _disc(draw, start, 1.4 * unit, START)
        _ring(draw, end, 2.8 * unit, 2.2 * unit, HALO)
        _ring(draw, end, 2.6 * unit, unit, TARGET)
    reduced = marks.resize(size, Image.Resampling.BOX)
    return Image.alpha_composite(ground.convert("RGBA"), reduced).convert("RGB")


def _disc(draw: ImageDraw.ImageDraw, at: Point, radius: float, colour: str) -> None:
    draw.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=colour)


def _ring(draw: ImageDraw.ImageDraw, at: Point, radius: float, width: float, colour: str) -> None:
    r = radius + width / 2  # the outline lies inside of the box
    draw.ellipse((at[0] - r, at[1] - r, at[0] + r, at[1] + r), outline=colour, width=round(width))


def _line(draw: ImageDraw.ImageDraw, points: list[Point], width: float) -> None:
    """Draw a line through the points on a white halo, with round joints and ends."""
    for colour, w in ((HALO, 2.2 * width), (PATH, 1.2 * width)):
        if len(points) > 1:
            draw.line(points, fill=colour, width=round(w))
        for point in points:
            _disc(draw, point, w / 2, colour)


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

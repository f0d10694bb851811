"""What an edit reports: events while it runs, a trace of every number when it is done, and pictures of the trace."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dragsa import files
from dragsa.config import EditConfig, LoRAConfig
from dragsa.pictures import images
from dragsa.pictures.images import Point, Size

STAGES = ("encode", "lora", "inversion", "generation", "drag", "denoising", "decode")


@dataclass(frozen=True)
class StageProgress:
    """`done` of `total` steps of a stage (one of `STAGES`) are done.

    A stage begins with done = 0 and ends with done = total, also where it took fewer steps than it might have.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class DragProgress:
    """One update of the drag loop: its loss, and the handles it used with their distances to the targets.

    Handles (n, 2) and distances (n,) are in cells of the supervision grid.
    """

    update: int  # from 1
    total: int
    loss: float
    handles: list[list[float]]
    distances: list[float]


Observer = Callable[[StageProgress | DragProgress], None]


def versions() -> dict[str, str]:
    """The versions that an edit's numbers depend on: Python's and those of the packages that compute."""
    found = {"python": platform.python_version()}
    for name in ("dragsa", "torch", "transformers", "safetensors", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Trace:
    """An edit's settings, its course and its cost. Points are pixels of the picture as given.

    What tracking reports is not where the object is in the result: it is where its features were found.
    """

    config: EditConfig
    seed: int
    prompt: str
    target_prompt: str | None
    generated: bool  # the source was drawn from noise; otherwise a picture was inverted
    picture_size: Size
    working_size: Size
    grid_size: Size
    weights: str  # where the weights came from
    drags: tuple[tuple[Point, Point], ...] = ()  # (handle, target) as asked
    masked: bool = False
    losses: tuple[float, ...] = ()  # one per update
    handles: tuple[tuple[Point, ...], ...] = ()  # (updates, n, 2): those that each update used
    tracked: tuple[Point, ...] = ()  # (n, 2): where tracking found the handles last
    stop: str | None = None  # why the drag loop ended; None where there was no drag
    inversion_residual: float | None = None  # fixed-point inversion: the largest of its steps' last changes
    lora_losses: tuple[float, ...] = ()  # one for each step that trained the picture's LoRA; none without one
    # Where the source's K and V came from: "computed" beside the target; "recorded" in an earlier pass, as exact;
    # "inversion", an approximation. None where control never acted.
    source_kv: str | None = "computed"
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def distances_px(self) -> tuple[tuple[float, ...], ...]:
        """(updates, n): from each update's handles to the targets, in pixels of the picture."""
        return tuple(self._distances(row, (1.0, 1.0)) for row in self.handles)

    @property
    def distances(self) -> tuple[tuple[float, ...], ...]:
        """(updates, n): the same in cells of the supervision grid, as the loop's own rules take them."""
        return tuple(self._distances(row, self._cells) for row in self.handles)

    @property
    def _cells(self) -> Point:
        """Cells per pixel in x and y."""
        return self.grid_size[0] / self.picture_size[0], self.grid_size[1] / self.picture_size[1]

    def _distances(self, points: Sequence[Point], scale: Point) -> tuple[float, ...]:
        targets = [target for _, target in self.drags]
        return tuple(
            math.hypot((tx - x) * scale[0], (ty - y) * scale[1])
            for (x, y), (tx, ty) in zip(points, targets, strict=True)
        )


def to_json(trace: Trace) -> dict[str, Any]:
    """The trace as values that strict JSON can hold; a number that is not finite becomes null."""
    drags = [
        {"handle": list(handle), "target": list(target), "distance_px": math.dist(handle, target)}
        for handle, target in trace.drags
    ]
    if trace.tracked:
        left_px, left = trace._distances(trace.tracked, (1.0, 1.0)), trace._distances(trace.tracked, trace._cells)
        for n, drag in enumerate(drags):
            drag["tracked"] = list(trace.tracked[n])
            drag["tracked_distance_px"], drag["tracked_distance_cells"] = left_px[n], left[n]
    columns = zip(trace.losses, trace.handles, trace.distances_px, trace.distances, strict=True)
    updates = [
        {"loss": loss, "handles": [list(p) for p in handles], "distances_px": list(px), "distances_cells": list(cells)}
        for loss, handles, px, cells in columns
    ]
    return files.finite(
        {
            "weights": trace.weights,
            "source": "generated" if trace.generated else "picture",
            "prompt": trace.prompt,
            "target_prompt": trace.target_prompt,
            "seed": trace.seed,
            "picture_size": list(trace.picture_size),
            "working_size": list(trace.working_size),
            "grid_size": list(trace.grid_size),
            "config": asdict(trace.config),
            "masked": trace.masked,
            "drags": drags,
            "stop": trace.stop,
            "inversion_residual": trace.inversion_residual,
            "lora": _training(trace.lora_losses) if trace.lora_losses else None,
            "source_kv": trace.source_kv,
            "updates": updates,
            "seconds": dict(trace.seconds),
            "versions": dict(trace.versions),
        }
    )


def _training(losses: Sequence[float]) -> dict[str, Any]:
    return {**asdict(LoRAConfig(steps=len(losses))), "losses": list(losses)}


# The pictures.

READABLE = 384  # a sheet's panels are at least this high
SMOOTH = 4  # marks are drawn at so many times the size and reduced
HALO, ASKED, PATH, START, TARGET = "white", "#404040", "#f020c0", "#e8222e", "#2060ff"


def enlargement(size: Size) -> int:
    """The whole number by which a small picture is enlarged to be read: the first that makes it `READABLE` high."""
    return max(1, math.ceil(READABLE / size[1]))


def draw_path(picture: Image.Image, trace: Trace, scale: int = 1) -> Image.Image:
    """The picture, `scale` times its size, with each drag on it.

    A red dot where the handle started, a thin arrow to the blue ring of its target, and the path that tracking followed
    in magenta. The picture must have the trace's picture size.
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
    """A line through the points on a white halo, with round joints and ends."""
    for colour, w in ((HALO, 2.2 * width), (PATH, 1.2 * width)):
        if len(points) > 1:
            draw.line(points, fill=colour, width=round(w))
        for point in points:
            _disc(draw, point, w / 2, colour)


def _arrow(draw: ImageDraw.ImageDraw, start: Point, end: Point, gap: float, width: float) -> None:
    """A thin arrow from start to the rim of the ring round end; none where the two are too near for it."""
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


def sheet(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side at one height, each under its caption, on white.

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
    """The caption in lines no wider than `width`; a word that is wider stands alone and is cut."""
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

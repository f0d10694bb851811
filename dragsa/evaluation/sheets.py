"""Pictures of results: rows of pictures with words under each, and lines of a measure with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dragsa import pictures
from dragsa.config import EditConfig
from dragsa.editing import Drag
from dragsa.evaluation.tables import Mean

SIDE = 176  # pixels of a sheet's pictures, the longer side
GAP, MARGIN, LABEL = 8, 14, 104
COLOURS = ("#2060ff", "#e8222e", "#109040", "#c07000", "#8020b0", "#505050")


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Panel(NamedTuple):
    """A picture, or None for an empty place, and the lines under it."""

    picture: Image.Image | None
    lines: tuple[str, ...] = ()


class Row(NamedTuple):
    """`label` stands to the left of the panels, a line for each of its lines."""

    label: str
    panels: Sequence[Panel]


def sheet(title: str, heads: Sequence[str], rows: Sequence[Row], notes: Sequence[str] = ()) -> Image.Image:
    """Draw rows of panels under the columns' heads, a title over them and notes under them, on white."""
    font, small, large = (ImageFont.load_default(size) for size in (13, 12, 18))
    leading, step = 16, SIDE + GAP
    width = 2 * MARGIN + LABEL + len(heads) * step
    title_lines, head_lines = _wrapped(title, large, width - 2 * MARGIN), [_wrapped(h, font, SIDE) for h in heads]
    note_lines = [line for note in notes for line in _wrapped(note, small, width - 2 * MARGIN)]
    top = MARGIN + 24 * len(title_lines) + 6
    under_heads = top + leading * max((len(lines) for lines in head_lines), default=0) + 4
    highs = [SIDE + leading * max((len(p.lines) for p in row.panels), default=0) + GAP for row in rows]
    foot = under_heads + sum(highs)
    whole = Image.new("RGB", (width, foot + 6 + leading * len(note_lines) + MARGIN), "white")
    ink = ImageDraw.Draw(whole)

    def write(x: int, y: int, lines: Sequence[str], font: Font, leading: int = leading, fill: str = "black") -> None:
        for n, line in enumerate(lines):
            ink.text((x, y + leading * n), line, fill=fill, font=font)

    write(MARGIN, MARGIN, title_lines, large, leading=24)
    columns = [MARGIN + LABEL + column * step for column in range(len(heads))]
    for x, lines in zip(columns, head_lines, strict=True):
        write(x, top, lines, font)
    y = under_heads
    for row, high in zip(rows, highs, strict=True):
        write(MARGIN, y, _wrapped(row.label, font, LABEL - GAP), font)
        for x, panel in zip(columns, row.panels, strict=False):
            if panel.picture is not None:
                whole.paste(_fitted(panel.picture), (x, y))
            write(x, y + SIDE + 1, panel.lines, small, fill="#303030")
        y += high
    write(MARGIN, foot + 6, note_lines, small, fill="#303030")
    return whole


def with_drags(picture: Image.Image, drags: Sequence[Drag]) -> Image.Image:
    """Return the picture, enlarged, with the drags on it."""
    size = picture.size
    asked = pictures.Trace(EditConfig(), 0, "", None, False, size, size, size, weights="", drags=tuple(drags))
    return pictures.draw_path(picture, asked, max(1, round(2 * SIDE / max(size))))


def _fitted(picture: Image.Image) -> Image.Image:
    size = pictures.scaled(picture.size, SIDE / max(picture.size))
    return pictures.to_rgb(picture).resize(size, Image.Resampling.LANCZOS)


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    lines: list[str] = []
    for part in text.split("\n"):
        lines.append("")
        for word in part.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines


def chart(
    title: str,
    across: Sequence[str],
    lines: Mapping[str, Sequence[Mean]],
    unit: str,
    notes: Sequence[str] = (),
    height: int = 480,
    span: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw lines of means with their intervals over the places `across`, 900 pixels wide and `height` above the notes.

    A mean of None is left out. `span`: the least and greatest values on the axis, by default those of the lines.
    """
    font, small, large = (ImageFont.load_default(size) for size in (14, 12, 18))
    width, left, right, top, bottom = 900, 70, 720, 60, height - 60
    note_lines = [line for note in notes for line in _wrapped(note, small, width - 2 * MARGIN)]
    whole = Image.new("RGB", (width, height + 16 * len(note_lines)), "white")
    ink = ImageDraw.Draw(whole)
    ink.text((MARGIN, MARGIN), title, fill="black", font=large)
    least, most = span or _span(lines)

    def at(value: float) -> float:
        return bottom - (bottom - top) * (value - least) / (most - least)

    for n in range(6):
        tick = least + (most - least) * n / 5
        ink.line((left, at(tick), right, at(tick)), fill="#e0e0e0")
        ink.text((left - 8, at(tick)), f"{tick:.3g}", fill="black", font=small, anchor="rm")
    ink.text((left - 8, top - 22), unit, fill="black", font=small, anchor="lm")
    step = (right - left) / max(1, len(across))
    for n, name in enumerate(across):
        ink.text((left + step * (n + 0.5), bottom + 8), name, fill="black", font=font, anchor="ma")
    for row, (name, means) in enumerate(lines.items()):
        colour = COLOURS[row % len(COLOURS)]
        beside = 5 * (row - (len(lines) - 1) / 2)  # so that intervals do not lie over one another
        points = []
        for n, mean in enumerate(means):
            x = left + step * (n + 0.5) + beside
            if mean.low is not None and mean.high is not None:
                ink.line((x, at(mean.low), x, at(mean.high)), fill=colour, width=2)
            if mean.mean is not None:
                points.append((x, at(mean.mean)))
        ink.line(points, fill=colour, width=2)
        for x, y in points:
            ink.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        ink.line((right + 16, top + 22 * row, right + 36, top + 22 * row), fill=colour, width=4)
        ink.text((right + 44, top + 22 * row), name, fill="black", font=font, anchor="lm")
    for n, line in enumerate(note_lines):
        ink.text((MARGIN, bottom + 44 + 16 * n), line, fill="#303030", font=small)
    return whole


def _span(lines: Mapping[str, Sequence[Mean]]) -> tuple[float, float]:
    """Return the least and greatest value of the lines and their intervals, with some room."""
    ends = [end for means in lines.values() for m in means for end in (m.mean, m.low, m.high) if end is not None]
    least, most = (min(ends), max(ends)) if ends else (0.0, 1.0)
    room = 0.05 * (most - least) or 1.0
    return least - room, most + room

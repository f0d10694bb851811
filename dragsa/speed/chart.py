"""The results as a chart: seconds of an update and peak memory of each mode, and how near each goal is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dragsa.speed.benchmark import Report
from dragsa.speed.laps import significant
from dragsa.speed.report import results

INK, THEIRS, OURS = "#202020", "#a0a0a0", "#2060ff"


class Bar(NamedTuple):
    label: str
    value: float
    text: str
    colour: str
    goal: float | None = None  # a mark, at the same scale


def draw_chart(report: Report) -> Image.Image:
    """Draw the bars of updates, of memory, and of goals."""
    panels: list[tuple[str, list[Bar]]] = []
    for part, title, unit, scale in (("update", "One update", "s", 1.0), ("memory", "Peak memory", "GB", 1e-9)):
        bars = []
        for row in report.of(part, report.size):
            if row.values:
                colour = THEIRS if row.case.startswith(("baseline", "interpreter", "weights")) else OURS
                value = scale * row.median
                bars.append(Bar(row.case, value, f"{significant(value)} {unit}", colour))
        panels.append((f"{title}, {report.size} px, {report.settings.width}, {unit}", bars))
    panels.append(("Goals: how many times as good as the goal asks (the line is 1)", goal_bars(report)))
    return draw([panel for panel in panels if panel[1]])


def goal_bars(report: Report) -> list[Bar]:
    """Return each goal's ratio over its bound, or the bound over it where less is better; none for a count of zero."""
    bars = []
    for goal, value in results(report):
        if value is not None and value > 0 and goal.bound > 0:
            times = value / goal.bound if goal.relation == "at least" else goal.bound / value
            bars.append(Bar(goal.what, min(times, 3.0), f"{significant(value)} for {goal.bound:g}", OURS, 1.0))
    return bars


def draw(panels: Sequence[tuple[str, Sequence[Bar]]]) -> Image.Image:
    """Draw panels of horizontal bars, one under the other, each to its own scale."""
    font, title_font, line, left, width = ImageFont.load_default(16), ImageFont.load_default(20), 26, 420, 1200
    height = 20 + sum(40 + line * len(bars) + 16 for _, bars in panels)
    picture = Image.new("RGB", (width, height), "white")
    pen, y = ImageDraw.Draw(picture), 16
    for title, bars in panels:
        pen.text((16, y), title, fill=INK, font=title_font)
        y += 40
        most = max((max(bar.value, bar.goal or 0.0) for bar in bars), default=0.0) or 1.0
        scale = (width - left - 180) / most
        for bar in bars:
            pen.text((16, y), bar.label, fill=INK, font=font)
            pen.rectangle((left, y + 2, left + max(1, scale * bar.value), y + line - 6), fill=bar.colour)
            if bar.goal is not None:
                at = left + scale * bar.goal
                pen.line((at, y - 2, at, y + line - 2), fill=INK, width=2)
            pen.text((left + scale * max(bar.value, bar.goal or 0.0) + 8, y), bar.text, fill=INK, font=font)
            y += line
        y += 16
    return picture

"""The results against their goals, as JSON, as Markdown tables, and as a chart."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dragsa.speed.benchmark import Report, case_name
from dragsa.speed.laps import Measurement, significant
from dragsa.speed.problems import MODES, UPDATES

# --- goals

RELATIONS = {"at least": operator.ge, "at most": operator.le, "under": operator.lt, "exactly": operator.eq}


@dataclass(frozen=True)
class Goal:
    """A ratio of two cases' medians (or one case's own value), and what it must be."""

    what: str
    part: str
    over: str
    under: str | None
    relation: str  # one of RELATIONS
    bound: float
    aim: float | None = None

    def reached_by(self, value: float | None) -> bool | None:
        return None if value is None else bool(RELATIONS[self.relation](value, self.bound))


GOALS = (
    Goal("update without mask, bfloat16", "update", "baseline", "bfloat16", "at least", 2.5, 3.0),
    Goal("update with mask, bfloat16", "update", "baseline, mask", "bfloat16, mask", "at least", 1.7, 2.2),
    Goal("update without mask, float32, same numbers", "update", "baseline", "float32", "at least", 1.4),
    Goal("peak memory, bfloat16 without mask", "memory", "bfloat16", "baseline", "at most", 0.45),
    Goal("fused loss and its gradient against the dense ones", "fused", "dense", "fused", "at least", 100),
    Goal("tracking, one handle, against the dense one", "tracking", "dense", "fused", "at least", 50),
    Goal("second edit, denoising, against the first", "denoise", "first edit", "second edit", "at least", 1.8),
    Goal(f"recompiles in {UPDATES} updates with moving handles", "recompiles", "whole", None, "exactly", 0),
    Goal("cost of 20 handles over 1 handle, per update", "handles", "20 handles", "1 handle", "under", 1.05),
)


def result(goal: Goal, rows: Sequence[Measurement], size: int) -> float | None:
    """Return what was measured for a goal at a size; None where a case is missing or failed."""
    medians = {row.case: row.median for row in rows if row.part == goal.part and row.size == size and row.values}
    if goal.over not in medians or (goal.under is not None and goal.under not in medians):
        return None
    return medians[goal.over] / (1.0 if goal.under is None else medians[goal.under])


def verdict(goal: Goal, value: float | None, report: Report) -> bool | None:
    """Tell whether a goal is reached; None where it was not measured, or on tiny networks, whose speed says nothing."""
    tiny = report.settings.width == "tiny" and report.settings.weights is None
    return None if tiny else goal.reached_by(value)


def results(report: Report) -> list[tuple[Goal, float | None]]:
    """Return every goal with what was measured for it."""
    return [(goal, result(goal, report.rows, report.size)) for goal in GOALS]


# --- JSON


def to_json(report: Report) -> dict[str, Any]:
    """Return every repeat of everything, and the goals."""
    return {
        "command": "bench",
        "settings": asdict(report.settings),
        "machine": report.machine,
        "versions": report.versions,
        "seconds": report.seconds,
        "size": report.size,
        "goals": [
            {**asdict(goal), "measured": value, "reached": verdict(goal, value, report)}
            for goal, value in results(report)
        ],
        "roof": {name: roof._asdict() for name, roof in report.roofs.items()},
        "measurements": [
            {**asdict(row), "flops": row.flops and row.flops._asdict(), "median": row.median if row.values else None}
            for row in report.rows
        ],
    }


# --- Markdown

TITLES = {
    "update": "One update, seconds",
    "memory": "Peak memory of one update in a process of its own, GB",
    "fused": "Loss and gradient, seconds",
    "tracking": "Tracking of one handle, seconds",
    "handles": "An update by its number of handles, seconds",
    "denoise": "Denoising, seconds",
    "recompiles": "Recompiles",
    "compile": "Compiled and eager updates, seconds",
    "whole": "A whole edit, seconds",
}


def markdown(report: Report) -> str:
    """Return the machine, the goals, and then every part, as Markdown tables."""
    machine, settings = report.machine, report.settings
    weights = settings.weights or f"{settings.width}, seeded values"
    loads = " and ".join("unknown" if one is None else f"{one:.1f}" for one in machine["load"])
    found = [
        f"{machine['processor']} ({', '.join(machine['instructions']) or 'no vector instructions known'}), "
        f"{machine['cores']} cores, {machine['threads']} threads, device {machine['device']}; "
        f"torch {report.versions['torch']}; weights {weights}; medians of {settings.repeats}; "
        f"load {loads} before and after; {report.seconds / 60:.1f} minutes.",
        goals_table(report),
    ]
    for size in settings.sizes:
        for part, title in TITLES.items():
            rows = report.of(part, size)
            if rows:
                found.append(f"**{title}, {size}×{size} px**\n\n{part_table(rows, report)}")
                found += [f"{row.case}: {row.note}." for row in rows if row.note]
                if part == "update":
                    found += same_numbers(rows)
    if report.roofs:
        header = ("type", "matrix products", "convolutions", "attention")
        lines = [(name, *(significant(rate / 1e9) for rate in best)) for name, best in report.roofs.items()]
        found.append(f"**Best rates, GFLOP/s**\n\n{table(header, lines)}")
    return "\n\n".join(found) + "\n"


def goals_table(report: Report) -> str:
    """Return a row for each goal: what was measured, what it should be, and whether it is."""
    settings, lines = report.settings, []
    width = settings.weights or ("SD 1.5's width" if settings.width == "sd15" else f"width {settings.width}")
    for goal, value in results(report):
        times = "×" if goal.relation == "at least" else ""
        wanted = f"{goal.relation} {goal.bound:g}{times}".removeprefix("exactly ")
        wanted += f"; aim {goal.aim:g}{times}" if goal.aim else ""
        if value is None:
            lines.append((goal.what, "not measured", wanted, "-"))
        else:
            shown = f"{value:g}" if goal.relation == "exactly" else significant(value) + times
            said = {None: "not judged", True: "yes", False: "**no**"}[verdict(goal, value, report)]
            lines.append((goal.what, shown, wanted, said))
    first = f"same work, {report.size}×{report.size}, one handle, {width}; updates and memory against the baseline"
    return table((first, "measured", "goal", "reached"), lines)


def part_table(rows: Sequence[Measurement], report: Report) -> str:
    """Return a row for each case: median, range and parts; of updates also operations, rate and share of the roof."""
    names = list(dict.fromkeys(name for row in rows for name in row.parts if len(row.parts) > 1))
    counted = any(row.flops for row in rows)
    header = ["case", "median", "from", "to", *names, *(("GFLOP", "GFLOP/s", "of the roof") if counted else ())]
    scale, lines = 1e-9 if rows[0].unit == "bytes" else 1.0, []
    for row in rows:
        if not row.values:
            lines.append([row.case, "failed", *[""] * (len(header) - 2)])
            continue
        line = [row.case, *(significant(scale * value) for value in (row.median, min(row.values), max(row.values)))]
        for name in names:
            line.append(significant(statistics.median(row.parts[name])) if name in row.parts else "")
        if row.flops is not None:
            roof = report.roofs.get(MODES[row.case.split(",")[0]].type_name)
            line += [significant(rate / 1e9) for rate in (row.flops.total, row.flops.total / row.median)]
            line.append(f"{roof.least(row.flops) / row.median:.2f}" if roof else "")
        lines.append(line)
    return table(header, lines)


def same_numbers(rows: Sequence[Measurement]) -> list[str]:
    """Say how far the losses of float32 updates are from the baseline's of the same updates."""
    losses, said = {row.case: row.losses for row in rows if row.losses}, []
    for masked in (False, True):
        theirs, ours = (case_name(name, masked) for name in ("baseline", "float32"))
        if theirs in losses and ours in losses:
            worst = max(abs(a - b) / abs(a) for a, b in zip(losses[theirs], losses[ours], strict=True))
            said.append(f"The losses of {ours} are those of {theirs} to {worst:.1e} of them.")
    return said


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- the chart: seconds of an update and peak memory of each mode, and how near each goal is

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

"""What `dragsa bench` found, against its goals: as JSON, as Markdown tables, and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dragsa.speed import bench
from dragsa.speed.bench import Measurement, Report, Roof, significant

# --- goals ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A ratio of two cases' medians (or one case's own value), and what it must be."""

    what: str
    part: str
    over: str
    under: str | None
    relation: str  # "at least", "at most", "under" or "exactly"
    bound: float
    aim: float | None = None

    def reached_by(self, value: float) -> bool:
        return {
            "at least": value >= self.bound,
            "at most": value <= self.bound,
            "under": value < self.bound,
            "exactly": value == self.bound,
        }[self.relation]


GOALS = (
    Goal("update without mask, bfloat16", "update", "baseline", "bfloat16", "at least", 2.5, 3.0),
    Goal("update with mask, bfloat16", "update", "baseline, mask", "bfloat16, mask", "at least", 1.7, 2.2),
    Goal("update without mask, float32, same numbers", "update", "baseline", "float32", "at least", 1.4),
    Goal("peak memory, bfloat16 without mask", "memory", "bfloat16", "baseline", "at most", 0.45),
    Goal("fused loss and its gradient against the dense ones", "fused", "dense", "fused", "at least", 100),
    Goal("tracking, one handle, against the dense one", "tracking", "dense", "fused", "at least", 50),
    Goal("second edit, denoising, against the first", "denoise", "first edit", "second edit", "at least", 1.8),
    Goal(f"recompiles in {bench.UPDATES} updates with moving handles", "recompiles", "whole", None, "exactly", 0),
    Goal("cost of 20 handles over 1 handle, per update", "handles", "20 handles", "1 handle", "under", 1.05),
)


class Verdict(NamedTuple):
    """`measured`: None where a case is missing or failed."""

    goal: Goal
    measured: float | None

    @property
    def reached(self) -> bool | None:
        return None if self.measured is None else self.goal.reached_by(self.measured)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Of the medians."""
    return statistics.median(over) / statistics.median(under)


def verdict(goal: Goal, rows: Sequence[Measurement], size: int) -> Verdict:
    """A goal against what was measured at a size."""
    values = {row.case: row.values for row in rows if row.part == goal.part and row.size == size and row.values}
    if goal.over not in values or (goal.under is not None and goal.under not in values):
        return Verdict(goal, None)
    over = values[goal.over]
    return Verdict(goal, statistics.median(over) if goal.under is None else ratio(over, values[goal.under]))


def verdicts(report: Report) -> list[Verdict]:
    return [verdict(goal, report.rows, report.size) for goal in GOALS]


# --- JSON and Markdown ------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """Every repeat of everything, and the goals."""
    goals = [
        {**asdict(one.goal), "measured": one.measured, "reached": one.reached} for one in verdicts(report)
    ]  # fmt: skip
    return {
        "command": "bench",
        "settings": asdict(report.settings),
        "machine": report.machine,
        "versions": report.versions,
        "seconds": report.seconds,
        "size": report.size,
        "goals": goals,
        "roof": {name: roof._asdict() for name, roof in report.roofs.items()},
        "measurements": [
            {**asdict(row), "flops": row.flops and row.flops._asdict(), "median": row.median if row.values else None}
            for row in report.rows
        ],
    }


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown(report: Report) -> str:
    """The goals first, then every part, as Markdown tables."""
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


def goals_table(report: Report) -> str:
    """One row for each goal: what was measured, what it should be, and whether it is."""
    width = "SD 1.5's width" if report.settings.width == "sd15" else f"width {report.settings.width}"
    width = report.settings.weights or width
    lines = []
    for goal, value in verdicts(report):
        times = "×" if goal.relation == "at least" else ""
        wanted = f"{goal.relation} {goal.bound:g}{times}".replace("exactly ", "")
        wanted += f"; aim {goal.aim:g}{times}" if goal.aim else ""
        if value is None:
            lines.append((goal.what, "not measured", wanted, "-"))
        else:
            shown = f"{value:g}" if goal.relation == "exactly" else significant(value) + times
            lines.append((goal.what, shown, wanted, "yes" if goal.reached_by(value) else "**no**"))
    first = f"same work, {report.size}×{report.size}, one handle, {width}; updates and memory against the baseline"
    return table((first, "measured", "goal", "reached"), lines)


def part_table(rows: Sequence[Measurement], report: Report) -> str:
    """Median, range and parts of each case; for updates what they compute, how fast, and the share of the roof."""
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
            rate = row.flops.total / row.median
            line += [significant(row.flops.total / 1e9), significant(rate / 1e9), share_of_roof(row, report.roofs)]
        lines.append(line)
    return table(header, lines)


def share_of_roof(row: Measurement, roofs: Mapping[str, Roof]) -> str:
    """The least time at the best rates of its type, over the time that it took."""
    best = roofs.get(bench.type_name(bench.MODES[row.case.split(",")[0]].dtype))
    return "" if best is None or row.flops is None else f"{best.least(row.flops) / row.median:.2f}"


def same_numbers(rows: Sequence[Measurement]) -> list[str]:
    """How far the losses of float32 updates are from the baseline's of the same updates."""
    by_case, said = {row.case: row for row in rows}, []
    for masked in (False, True):
        names = [bench.case_name(name, masked) for name in ("baseline", "float32")]
        if all(name in by_case and by_case[name].losses for name in names):
            pairs = zip(*(by_case[name].losses for name in names), strict=True)
            worst = max(abs(one - other) / abs(one) for one, other in pairs)
            said.append(f"The losses of {names[1]} are those of {names[0]} to {worst:.1e} of them.")
    return said


# --- the chart --------------------------------------------------------------------------------------------------------

INK, GRID, THEIRS, OURS = "#202020", "#d8d8d8", "#a0a0a0", "#2060ff"


class Bar(NamedTuple):
    label: str
    value: float
    text: str
    colour: str
    goal: float | None = None  # a mark, at the same scale


def chart(report: Report) -> Image.Image:
    """Bars: seconds of an update and peak memory of each mode, and how near each goal is."""
    panels: list[tuple[str, list[Bar]]] = []
    for part, title, unit in (("update", "One update", "s"), ("memory", "Peak memory", "GB")):
        scale = 1e-9 if unit == "GB" else 1.0
        rows = [row for row in report.of(part, report.size) if row.values]
        bars = [
            Bar(row.case, scale * row.median, f"{significant(scale * row.median)} {unit}", colour(row.case))
            for row in rows
        ]
        panels.append((f"{title}, {report.size} px, {report.settings.width}, {unit}", bars))
    panels.append(("Goals: how many times as good as the goal asks (the line is 1)", goal_bars(report)))
    return draw([panel for panel in panels if panel[1]])


def colour(case: str) -> str:
    return THEIRS if case.startswith(("baseline", "interpreter", "weights")) else OURS


def goal_bars(report: Report) -> list[Bar]:
    """Each goal's ratio over its bound, or the bound over it where less is better; nothing for a count of none."""
    bars = []
    for goal, value in verdicts(report):
        if value is not None and value > 0 and goal.bound > 0:
            times = value / goal.bound if goal.relation == "at least" else goal.bound / value
            bars.append(Bar(goal.what, min(times, 3.0), f"{significant(value)} for {goal.bound:g}", OURS, 1.0))
    return bars


def draw(panels: Sequence[tuple[str, Sequence[Bar]]]) -> Image.Image:
    """Panels of horizontal bars, one under the other, each to its own scale."""
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

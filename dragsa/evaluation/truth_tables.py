"""Tables and pictures of a run of the benchmark with exact truth, from what its folder holds."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from dragsa import files, pictures
from dragsa.editing import Drag
from dragsa.evaluation import cases, comparison, distances, intervals, runs, sheets, tables, truth
from dragsa.evaluation.cases import Case
from dragsa.evaluation.runs import Results
from dragsa.evaluation.settings import MAIN, NO_EDIT
from dragsa.evaluation.sheets import Panel, Row
from dragsa.evaluation.truth import REASONS

COLUMNS: dict[str, tuple[str, int]] = {  # heading -> figure, digits
    "distance left, share": ("share", 2),
    "left, px": ("left", 1),
    "IoU with the truth": ("overlap", 2),
    "object's colour, of 255": ("object_colour", 1),
    "object's tint, of 255": ("object_tint", 1),
    "shape kept, IoU": ("shape", 2),
    "background, of 255": ("background_error", 2),
    "background, dB": ("background_db", 1),
    "outside of the mask, of 255": ("outside_error", 2),
    "truth, dB": ("truth_db", 1),
    "truth, SSIM": ("truth_ssim", 3),
}


def text_of(results: Results) -> str:
    """Return all of a run's tables as Markdown. Means over cases with 95 % bootstrap intervals."""
    parts = {
        "All cases": tables.markdown(_overall(results)),
        "Share of the distance left, by kind": tables.markdown(_by_kind(results, "share")),
        "Overlap with the truth (IoU), by kind": tables.markdown(_by_kind(results, "overlap")),
        "What should stay, and the turn itself": tables.markdown(_staying_rows(results)),
    }
    if any("published" in row for of_case in results.values() for row in of_case.values()):
        reason = distances.why_no_fidelity()
        note = f"\n\nNo image fidelity: {reason}." if reason else ""
        parts["Published metrics"] = tables.markdown(_published_rows(results)) + note
    meanings = "\n".join(f"- {name}: {meaning}." for name, meaning in REASONS.items())
    parts["What failed, and why"] = f"{tables.markdown(_failure_rows(results))}\n\n{meanings}"
    if comparison.is_of_rivals(results):
        parts["The methods compared"] = comparison.table(results)
    return "\n\n".join(f"## {heading}\n\n{part}" for heading, part in parts.items()) + "\n"


def _overall(results: Results) -> list[dict[str, str]]:
    rows = []
    for name, of_case in results.items():
        cells = {"setting": name, "cases": str(len(of_case))}
        for heading, (figure, digits) in COLUMNS.items():
            cells[heading] = tables.mean(of_case, figure, digits)
            if figure == "share":
                cells["the same per handle"] = intervals.text(tables.summary(of_case, figure).per_handle, digits)
                shares = [row["share"] for row in of_case.values()]
                cells["median"] = f"{statistics.median(shares):.2f}" if shares else "–"
                cells["less than half left"] = (
                    f"{sum(share < 0.5 for share in shares) / len(shares):.0%}" if shares else "–"
                )
        cells["not found"] = str(sum(not row["found"] or row["nose_found"] is False for row in of_case.values()))
        seconds = [row["seconds"]["all"] for row in of_case.values() if "seconds" in row]
        cells["seconds"] = f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"
        rows.append(cells)
    return rows


def _by_kind(results: Results, figure: str) -> list[dict[str, str]]:
    return [
        {"setting": name, **{kind: tables.mean(tables.of_kind(of_case, kind), figure) for kind in cases.KINDS}}
        for name, of_case in results.items()
    ]


STAYING = {  # heading -> kind, figure
    "turn: share of the angle left": ("turn", "yaw_left"),
    "turn: head moved, px": ("turn", "centre_moved"),
    "resize: centre moved, px": ("resize", "centre_moved"),
    "protect: neighbour moved, px": ("protect", "neighbour_moved"),
    "protect: neighbour changed, of 255": ("protect", "neighbour_error"),
}


def _staying_rows(results: Results) -> list[dict[str, str]]:
    rows = []
    for name, of_case in results.items():
        means = {head: tables.mean(tables.of_kind(of_case, kind), key) for head, (kind, key) in STAYING.items()}
        rows.append({"setting": name, **means})
    return rows


def _published_rows(results: Results) -> list[dict[str, str]]:
    """Return each published metric under its own name, averaged as it is loading."""
    rows = []
    for name, of_case in results.items():
        there = {case: row["published"] for case, row in of_case.items() if "published" in row}
        cells = {"setting": name}
        for heading, key in distances.FORMS.items():
            found = intervals.summarise({case: row[key] or [] for case, row in there.items()})
            mean = found.per_picture if key in distances.BY_PICTURE else found.per_handle
            cells[heading] = intervals.text(mean, 3 if key == "normalised" else 1)
        fidelity = intervals.summarise({case: [row["fidelity"]] for case, row in there.items()})
        cells["image fidelity, 1 − LPIPS"] = intervals.text(fidelity.per_picture, 3)
        rows.append(cells)
    return rows


def failures(results: Results) -> dict[str, dict[str, str]]:
    """Return setting -> case -> reason, for every edit that leaves more than half of the distance."""
    found: dict[str, dict[str, str]] = {}
    for name, of_case in results.items():
        edited = {case: row for case, row in of_case.items() if "drag" in row}
        without = results.get("no-control", {}) if name == MAIN else {}
        reasons = {case: truth.why_failed(row, without.get(case)) for case, row in edited.items()}
        if edited:
            found[name] = {case: reason for case, reason in reasons.items() if reason is not None}
    return found


def _failure_rows(results: Results) -> list[dict[str, str]]:
    rows = []
    for n, (name, why) in enumerate(failures(results).items()):
        counts = Counter(why.values())
        kinds = Counter(case.rpartition("-")[0] for case in why)
        cells = {"setting": name, "failed": str(len(why)), **{reason: str(counts[reason]) for reason in REASONS}}
        if n > 0:
            cells["model cannot draw it"] = "–"
        cells["of the kinds"] = ", ".join(f"{kind} {kinds[kind]}" for kind in cases.KINDS if kinds[kind]) or "–"
        rows.append(cells)
    return rows


def summaries(results: Results) -> dict[str, Any]:
    """Return the tables' numbers: setting -> "all" or a kind -> figure -> means, intervals and counts."""
    figures = [figure for figure, _ in COLUMNS.values()] + ["all_left", "nose_left"]
    figures += sorted({figure for _, figure in STAYING.values()})
    found: dict[str, Any] = {}
    for name, of_case in results.items():
        for kind in ("all", *cases.KINDS):
            mine = tables.of_kind(of_case, kind)
            if mine:
                of_kind = {figure: asdict(tables.summary(mine, figure)) for figure in figures}
                halved = sum(row["share"] < 0.5 for row in mine.values()) / len(mine)
                found.setdefault(name, {})[kind] = {"cases": len(mine), "less than half left": halved, **of_kind}
    return found


def write_tables(folder: Path, rows: int = 4) -> str:
    """Write results.json, table.md and sheet.png of what a run's folder holds, and return the tables as text."""
    results = runs.read(folder)
    text = text_of(results)
    everything = {"summaries": summaries(results), "failures": failures(results), "results": results}
    files.save_json(files.finite(everything), folder / "results.json", overwrite=True)
    files.save_bytes(text.encode(), folder / "table.md", overwrite=True)
    pictures.save_picture(sheet(folder, list(results), rows), folder / "sheet.png", overwrite=True)
    return text


def sheet(folder: Path, settings: Sequence[str], rows: int = 4) -> Image.Image:
    """Return the first `rows` cases of each kind, one a row: source with its handles, truth, each setting's result."""
    columns = ["source", "truth", *(name for name in settings if name != NO_EDIT)]
    drawn = []
    for case in _cases_of(folder):
        if case.number < rows:
            drags = case.drags("five")
            panels = [_panel(folder / case.name, name, drags if name == "source" else ()) for name in columns]
            drawn.append(Row(case.name, panels))
    return sheets.sheet("", columns, drawn)


def _panel(folder: Path, name: str, drags: Sequence[Drag]) -> Panel:
    file, figures = folder / f"{name}.png", folder / f"{name}.json"
    if not file.is_file():
        return Panel(None)
    picture = pictures.open_picture(file)
    left = (f"{json.loads(figures.read_text())['share']:.2f} left",) if figures.is_file() else ()
    return Panel(sheets.with_drags(picture, drags) if drags else picture, left)


def _cases_of(folder: Path) -> list[Case]:
    """Return the finished cases of a folder, kind by kind."""
    found = [cases.load(file.parent) for file in folder.glob("*/case.json") if not file.parent.name.startswith(".")]
    return sorted(found, key=lambda case: (cases.KINDS.index(case.kind), case.number))

"""Tables and pictures of a run of the benchmark with exact truth, from what its folder holds."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from dragsa import files, pictures
from dragsa.evaluation import cases, distances, runs, sheets, tables, truth
from dragsa.evaluation.cases import Case
from dragsa.evaluation.runs import MAIN, NO_EDIT, Results
from dragsa.evaluation.sheets import Panel, Row
from dragsa.evaluation.tables import Figures
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


METHODS = {  # setting of a run of the rivals -> the method in words
    NO_EDIT: "no edit",
    "ours": "ours",
    "dragdiffusion-first": "DragDiffusion, first version (no K/V control), without LoRA",
    "dragdiffusion-first-lora": "the same with LoRA",
    "dragdiffusion": "DragDiffusion with K/V control, without LoRA",
    "dragdiffusion-lora": "the same with LoRA",
    "masactrl": "MasaCtrl, asked by the prompt alone",
}
OF_METHODS = {  # heading -> figure, digits
    "distance left, px": ("left", 1),
    "distance left, share": ("share", 2),
    "background error, of 255": ("background_error", 2),
    "error from the truth, dB": ("truth_db", 1),
}
STAYING = {  # heading -> kind, figure
    "turn: share of the angle left": ("turn", "yaw_left"),
    "turn: head moved, px": ("turn", "centre_moved"),
    "resize: centre moved, px": ("resize", "centre_moved"),
    "protect: neighbour moved, px": ("protect", "neighbour_moved"),
    "protect: neighbour changed, of 255": ("protect", "neighbour_error"),
}


def text_of(results: Results) -> str:
    """Return all of a run's tables as Markdown. Means over cases with 95 % bootstrap intervals."""

    def table(cells: Callable[[Figures], Mapping[str, str]]) -> str:
        return tables.markdown([{"setting": name, **cells(of_case)} for name, of_case in results.items()])

    def by_kind(figure: str) -> str:
        return table(lambda row: {kind: tables.mean(tables.of_kind(row, kind), figure) for kind in cases.KINDS})

    parts = {
        "All cases": table(_overall),
        "Share of the distance left, by kind": by_kind("share"),
        "Overlap with the truth (IoU), by kind": by_kind("overlap"),
        "What should stay, and the turn itself": table(
            lambda row: {head: tables.mean(tables.of_kind(row, kind), key) for head, (kind, key) in STAYING.items()}
        ),
    }
    if any("published" in row for of_case in results.values() for row in of_case.values()):
        reason = distances.why_no_fidelity()
        parts["Published metrics"] = table(_published) + (f"\n\nNo image fidelity: {reason}." if reason else "")
    meanings = "\n".join(f"- {name}: {meaning}." for name, meaning in REASONS.items())
    parts["What failed, and why"] = f"{tables.markdown(_failure_rows(results))}\n\n{meanings}"
    if results.get("ours") and sum(bool(results.get(name)) for name in METHODS) > 1:
        parts["The methods compared"] = compared(results)
    return "\n\n".join(f"## {heading}\n\n{part}" for heading, part in parts.items()) + "\n"


def _overall(of_case: Figures) -> dict[str, str]:
    cells = {"cases": str(len(of_case))}
    for heading, (figure, digits) in COLUMNS.items():
        cells[heading] = tables.mean(of_case, figure, digits)
        if figure == "share":
            cells["the same per handle"] = tables.text(tables.summary(of_case, figure).per_handle, digits)
            shares = [row["share"] for row in of_case.values()]
            cells["median"] = f"{statistics.median(shares):.2f}" if shares else "–"
            halved = sum(share < 0.5 for share in shares)
            cells["less than half left"] = f"{halved / len(shares):.0%}" if shares else "–"
    cells["not found"] = str(sum(not row["found"] or row["nose_found"] is False for row in of_case.values()))
    seconds = [row["seconds"]["all"] for row in of_case.values() if "seconds" in row]
    return {**cells, "seconds": f"{statistics.fmean(seconds):.1f}" if seconds else "–"}


def _published(of_case: Figures) -> dict[str, str]:
    """Return each published metric under its own name, averaged as it is published."""
    there = {case: row["published"] for case, row in of_case.items() if "published" in row}
    cells = {}
    for heading, key in distances.FORMS.items():
        found = tables.summarise({case: row[key] or [] for case, row in there.items()})
        mean = found.per_picture if key in distances.BY_PICTURE else found.per_handle
        cells[heading] = tables.text(mean, 3 if key == "normalised" else 1)
    return {**cells, "image fidelity, 1 − LPIPS": tables.mean(there, "fidelity", 3)}


def compared(results: Results) -> str:
    """Return a Markdown row for each method that a run of the rivals has, and a note on what the rows are of."""
    rows = []
    for words, of_case in ((words, results[name]) for name, words in METHODS.items() if results.get(name)):
        spent = [row["seconds"] for row in of_case.values() if "seconds" in row]
        whole, lora = (sum(one.get(key, 0.0) for one in spent) / max(1, len(spent)) for key in ("all", "lora"))
        seconds = f"{whole:.1f}" + (f", LoRA {lora:.1f}" if lora else "")
        rows.append({"method": words, **tables.means(of_case, OF_METHODS), "seconds": seconds if spent else "–"})
    return (
        f"{tables.markdown(rows)}\n\n"
        f"Means over {len(results['ours'])} held-out drawn scenes with 95 % bootstrap intervals; seconds of a whole "
        "edit, inversion and LoRA included, one thread. Every method is a setting of the same editor, with the same "
        "tap, level, learning rate and updates: rows differ in the method alone. Where the prompt stays, control "
        "before the drag changes nothing, so that ours and DragDiffusion with K/V control and without LoRA are nearly "
        "one method: they differ in the schedule's clean end. DragGAN has no row: its part, motion supervision and "
        "point tracking, is the drag loop of every row that drags."
    )


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
    rows: list[dict[str, str]] = []
    for name, why in failures(results).items():
        counts, kinds = Counter(why.values()), Counter(case.rpartition("-")[0] for case in why)
        cells = {"setting": name, "failed": str(len(why)), **{reason: str(counts[reason]) for reason in REASONS}}
        if rows:
            cells["model cannot draw it"] = "–"
        cells["of the kinds"] = ", ".join(f"{kind} {kinds[kind]}" for kind in cases.KINDS if kinds[kind]) or "–"
        rows.append(cells)
    return rows


def summaries(results: Results) -> dict[str, Any]:
    """Return the tables' numbers: setting -> "all" or a kind -> figure -> means, intervals and counts."""
    figures = [*(figure for figure, _ in COLUMNS.values()), "all_left", "nose_left"]
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
    finished = [cases.load(file.parent) for file in folder.glob("[!.]*/case.json")]
    shown = [case for case in finished if case.number < rows]
    shown.sort(key=lambda case: (cases.KINDS.index(case.kind), case.number))
    return sheets.sheet(
        "", columns, [Row(case.name, [_panel(folder, case, name) for name in columns]) for case in shown]
    )


def _panel(folder: Path, case: Case, name: str) -> Panel:
    file, figures = (folder / case.name / f"{name}.{ending}" for ending in ("png", "json"))
    if not file.is_file():
        return Panel(None)
    picture = pictures.open_picture(file)
    left = (f"{json.loads(figures.read_text())['share']:.2f} left",) if figures.is_file() else ()
    return Panel(sheets.with_drags(picture, case.drags("five")) if name == "source" else picture, left)

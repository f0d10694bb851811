"""Tables and pictures of a run of the benchmark with exact truth, from what its folder holds."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from dragsa import files, pictures
from dragsa.evaluation import art_cases, claims, distances, lists, runs, sheets, tables, truth
from dragsa.evaluation.edits import Edit
from dragsa.evaluation.runs import MAIN, NO_EDIT, RECONSTRUCTION, WARPED, Results
from dragsa.evaluation.sheets import Panel, Row
from dragsa.evaluation.tables import Figures
from dragsa.evaluation.truth import REASONS

COLUMNS: dict[str, tuple[str, int]] = {  # heading -> figure, digits; each list of cases has some of them
    "distance left, share": ("share", 2),
    "left, px": ("left", 1),
    "IoU with the truth": ("overlap", 2),
    "object's colour, of 255": ("object_colour", 1),
    "object's tint, of 255": ("object_tint", 1),
    "style kept, share": ("style_kept", 2),
    "style's margin, dB": ("style_margin", 1),
    "thing kept, share": ("identity_kept", 2),
    "thing's margin, dB": ("identity_margin", 1),
    "shape kept, IoU": ("shape", 2),
    "background, of 255": ("background_error", 2),
    "background, dB": ("background_db", 1),
    "outside of the mask, of 255": ("outside_error", 2),
    "hole, of 255": ("hole_error", 1),
    "truth, dB": ("truth_db", 1),
    "truth, SSIM": ("truth_ssim", 3),
    "handles whose place the edit tells, share": ("told_sure", 2),
    "edits that tell no wrong place, share": ("told_right", 2),
}


METHODS = {  # setting of a run of the rivals -> the method in words
    NO_EDIT: "no edit",
    RECONSTRUCTION: "reconstruction, no edit",
    "ours": "ours",
    "no-control": "ours without K/V control",
    "as-printed": "the paper's numbers, as printed",
    "dragdiffusion-first": "DragDiffusion, first version (no K/V control), without LoRA",
    "dragdiffusion-first-lora": "the same with LoRA",
    "dragdiffusion": "DragDiffusion with K/V control, without LoRA",
    "dragdiffusion-lora": "the same with LoRA",
    "as-printed-no-control": "the same without K/V control",
    "first-program": "DragDiffusion's first program (no K/V control), without LoRA",
    "first-program-lora": "the same with LoRA, 200 steps",
    "last-program": "DragDiffusion's last program (K/V control), without LoRA",
    "last-program-lora": "the same with LoRA, 80 steps",
    "first-program-our-tap": "the first program at block14, without LoRA",
    "first-program-our-tap-lora": "the same with LoRA, 200 steps",
    "last-program-our-tap": "the last program at block14, without LoRA",
    "last-program-our-tap-lora": "the same with LoRA, 80 steps",
    "masactrl": "MasaCtrl, asked by the prompt alone",
    WARPED: "warped pixels, no network",
}
OF_METHODS = {  # heading -> figure, digits
    "distance left, px": ("left", 1),
    "distance left, share": ("share", 2),
    "style kept, share": ("style_kept", 2),
    "thing kept, share": ("identity_kept", 2),
    "hole, of 255": ("hole_error", 1),
    "background error, of 255": ("background_error", 2),
    "error from the truth, dB": ("truth_db", 1),
}
STAYING = {  # heading -> kind, figure
    "turn: share of the angle left": ("turn", "yaw_left"),
    "turn: head moved, px": ("turn", "centre_moved"),
    "rotate: share of the angle left": ("rotate", "angle_left"),
    "rotate: centre moved, px": ("rotate", "centre_moved"),
    "resize: share of the change left": ("resize", "size_left"),
    "resize: centre moved, px": ("resize", "centre_moved"),
    "part: centre moved, px": ("part", "centre_moved"),
    "protect: neighbour moved, px": ("protect", "neighbour_moved"),
    "protect: neighbour changed, of 255": ("protect", "neighbour_error"),
}


def overall(results: Results, first: str = "setting") -> str:
    """Return every figure's mean over all cases as a Markdown table, its first column headed `first`."""
    named = figures_of(results)
    return tables.markdown([{first: name, **_overall(of_case, named)} for name, of_case in results.items()])


def text_of(results: Results, which: str = "figures") -> str:
    """Return all of a run's tables as Markdown. Means over cases with 95 % bootstrap intervals.

    `which`: the part of the list that the cases are of, "figures" or "settings".
    """

    def table(cells: Callable[[Figures], Mapping[str, str]]) -> str:
        return tables.markdown([{"setting": name, **cells(of_case)} for name, of_case in results.items()])

    def by(groups: Sequence[str], figure: str, key: str = "kind") -> str:
        return table(lambda row: {name: tables.mean(tables.of_kind(row, name, key), figure) for name in groups})

    def by_novelty(figure: str) -> str:
        return by(art_cases.NOVELTIES, figure, "novelty")

    kinds, named = kinds_of(results), figures_of(results)
    staying = {head: of for head, of in STAYING.items() if of[0] in kinds and of[1] in named}

    parts = {
        "All cases": overall(results),
        "Share of the distance left, by kind": by(kinds, "share"),
        "Overlap with the truth (IoU), by kind": by(kinds, "overlap"),
        "What should stay, and the turn itself": table(
            lambda row: {head: tables.mean(tables.of_kind(row, kind), key) for head, (kind, key) in staying.items()}
        ),
    }
    if "novelty" in named:
        parts |= {
            "Style kept, by kind": by(kinds, "style_kept"),
            "Hole, of 255, by kind": by(kinds, "hole_error"),
            "Share of the distance left, by what training showed": by_novelty("share"),
            "Style kept, by what training showed": by_novelty("style_kept"),
            "Thing kept, by what training showed": by_novelty("identity_kept"),
        }
    if any("published" in row for of_case in results.values() for row in of_case.values()):
        reason = distances.why_no_fidelity()
        parts["Published metrics"] = table(_published) + (f"\n\nNo image fidelity: {reason}." if reason else "")
    meanings = "\n".join(f"- {name}: {meaning}." for name, meaning in REASONS.items())
    parts["What failed, and why"] = f"{tables.markdown(_failure_rows(results))}\n\n{meanings}"
    if results.get("ours") and sum(bool(results.get(name)) for name in METHODS) > 1:
        parts["The methods compared"] = compared(results, which)
    if verdicts := claims.verdicts(results):
        parts["What the paper says of its figure 4"] = verdicts
    return "\n\n".join(f"## {heading}\n\n{part}" for heading, part in parts.items()) + "\n"


def kinds_of(results: Results) -> list[str]:
    """Return the kinds of a run's cases."""
    there = {row["kind"] for of_case in results.values() for row in of_case.values()}
    return [kind for kind in lists.KINDS if kind in there]


def figures_of(results: Results) -> set[str]:
    """Return the names of the figures that any case of a run has."""
    return {name for of_case in results.values() for row in of_case.values() for name in row}


def _overall(of_case: Figures, named: Set[str]) -> dict[str, str]:
    cells = {"cases": str(len(of_case))}
    for heading, (figure, digits) in COLUMNS.items():
        if figure not in named:
            continue
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


SAME_NUMBERS = (
    "with the same tap, level, learning rate and updates: rows differ in the method alone, but for the paper's numbers "
    "as printed and for warped pixels where these have a row. Where the prompt stays, control before the drag changes "
    "nothing, so that ours and DragDiffusion with K/V control and without LoRA are nearly one method: they differ in "
    "the schedule's clean end."
)
OWN_NUMBERS = (
    "DragDiffusion's programs by the numbers that they were published with: the tap, the level, the learning rate, the "
    "updates and the LoRA's steps are their own, the tap ours where a row says block14."
)


def compared(results: Results, which: str = "figures") -> str:
    """Return a Markdown row for each method that a run of the rivals has, and a note on what the rows are of."""
    rows, named = [], figures_of(results)
    columns = {heading: of for heading, of in OF_METHODS.items() if of[0] in named}
    scenes = "scenes of artwork" if "novelty" in named else "drawn scenes"
    scenes = f"held-out {scenes}" if which == "figures" else f"{scenes} for choosing settings"
    numbers = OWN_NUMBERS if any(results.get(name) for name in (*claims.PLAIN, *claims.TRAINED)) else SAME_NUMBERS
    for words, of_case in ((words, results[name]) for name, words in METHODS.items() if results.get(name)):
        spent = [row["seconds"] for row in of_case.values() if "seconds" in row]
        whole, lora = (sum(one.get(key, 0.0) for one in spent) / max(1, len(spent)) for key in ("all", "lora"))
        seconds = f"{whole:.1f}" + (f", LoRA {lora:.1f}" if lora else "")
        rows.append({"method": words, **tables.means(of_case, columns), "seconds": seconds if spent else "–"})
    return (
        f"{tables.markdown(rows)}\n\n"
        f"Means over {len(results['ours'])} {scenes} with 95 % bootstrap intervals; seconds of a whole edit, inversion "
        f"and LoRA included, one thread. Every method is a setting of the same editor, {numbers} DragGAN has no row: "
        "its part, motion supervision and point tracking, is the drag loop of every row that drags."
    )


def failures(results: Results) -> dict[str, dict[str, str]]:
    """Return setting -> case -> reason, for every edit that leaves more than half of the distance."""
    found: dict[str, dict[str, str]] = {}
    for name, of_case in results.items():
        edited = {case: row for case, row in of_case.items() if "drag" in row}
        without = results.get("no-control", {}) if name in (MAIN, "ours") else {}
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
        cells["of the kinds"] = ", ".join(f"{kind} {kinds[kind]}" for kind in lists.KINDS if kinds[kind]) or "–"
        rows.append(cells)
    return rows


def summaries(results: Results) -> dict[str, Any]:
    """Return the tables' numbers: setting -> "all" or a kind -> figure -> means, intervals and counts."""
    figures = [*(figure for figure, _ in COLUMNS.values()), "all_left", "nose_left"]
    figures += sorted({figure for _, figure in STAYING.values()})
    found: dict[str, Any] = {}
    for name, of_case in results.items():
        for kind in ("all", *kinds_of(results)):
            mine = tables.of_kind(of_case, kind)
            if mine:
                of_kind = {figure: asdict(tables.summary(mine, figure)) for figure in figures}
                halved = sum(row["share"] < 0.5 for row in mine.values()) / len(mine)
                found.setdefault(name, {})[kind] = {"cases": len(mine), "less than half left": halved, **of_kind}
    return found


def write_tables(folder: Path, rows: int = 4) -> str:
    """Write results.json, table.md and sheet.png of what a run's folder holds, and return the tables as text."""
    results = runs.read(folder)
    text = text_of(results, json.loads((folder / "run.json").read_text()).get("cases", "figures"))
    everything = {"summaries": summaries(results), "failures": failures(results), "results": results}
    files.save_json(files.finite(everything), folder / "results.json", overwrite=True)
    files.save_bytes(text.encode(), folder / "table.md", overwrite=True)
    pictures.save_picture(sheet(folder, list(results), rows), folder / "sheet.png", overwrite=True)
    return text


def sheet(folder: Path, settings: Sequence[str], rows: int = 4) -> Image.Image:
    """Return the first `rows` cases of each kind, one a row: source with its handles, truth, each setting's result."""
    columns = ["source", "truth", *(name for name in settings if name != NO_EDIT)]
    finished = [lists.load(file.parent) for file in folder.glob("[!.]*/case.json")]
    shown = [case for case in finished if case.number < rows]
    shown.sort(key=lambda case: (lists.KINDS.index(case.kind), case.number))
    return sheets.sheet(
        "", columns, [Row(case.name, [_panel(folder, case, name) for name in columns]) for case in shown]
    )


def _panel(folder: Path, case: Edit, name: str) -> Panel:
    file, figures = (folder / case.name / f"{name}.{ending}" for ending in ("png", "json"))
    if not file.is_file():
        return Panel(None)
    picture = pictures.open_picture(file)
    left = (f"{json.loads(figures.read_text())['share']:.2f} left",) if figures.is_file() else ()
    return Panel(sheets.with_drags(picture, case.drags("five")) if name == "source" else picture, left)

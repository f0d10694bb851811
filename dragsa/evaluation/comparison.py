"""The comparison of ours with others' methods, from a run of the benchmark's rivals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dragsa.evaluation import tables
from dragsa.evaluation.runs import Results

METHODS = {  # setting of the run -> the method in words
    "no-edit": "no edit",
    "ours": "ours",
    "dragdiffusion-first": "DragDiffusion, first version (no K/V control), without LoRA",
    "dragdiffusion-first-lora": "the same with LoRA",
    "dragdiffusion": "DragDiffusion with K/V control, without LoRA",
    "dragdiffusion-lora": "the same with LoRA",
    "masactrl": "MasaCtrl, asked by the prompt alone",
}
COLUMNS = {  # heading -> figure of an edit, digits
    "distance left, px": ("left", 1),
    "distance left, share": ("share", 2),
    "background error, of 255": ("background_error", 2),
    "error from the truth, dB": ("truth_db", 1),
}


def is_of_rivals(results: Results) -> bool:
    """Return whether a run has a result of ours and one of another method at least."""
    return bool(results.get("ours")) and sum(bool(results.get(name)) for name in METHODS) > 1


def table(results: Results) -> str:
    """Return a Markdown row for each method that the run has, and a note on what the rows are of.

    Raises ValueError for a run without rivals, and for methods with different numbers of cases.
    """
    if not is_of_rivals(results):
        raise ValueError("not a run of the rivals: make one with `truth_bench.py run RUN --settings rivals`")
    there = {name: results[name] for name in METHODS if results.get(name)}
    counts = {len(of_case) for of_case in there.values()}
    if len(counts) > 1:
        raise ValueError(f"methods with different numbers of cases: {', '.join(map(str, sorted(counts)))}")
    rows = []
    for name, of_case in there.items():
        means = {heading: tables.mean(of_case, figure, digits) for heading, (figure, digits) in COLUMNS.items()}
        rows.append({"method": METHODS[name], **means, "seconds": seconds(of_case)})
    return f"{tables.markdown(rows)}\n\n{note(counts.pop())}"


def seconds(of_case: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the mean seconds of an edit, and how many of them the LoRA's training took."""
    spent = [row["seconds"] for row in of_case.values() if "seconds" in row]
    if not spent:
        return "–"
    whole, lora = (sum(one.get(key, 0.0) for one in spent) / len(spent) for key in ("all", "lora"))
    return f"{whole:.1f}" if not lora else f"{whole:.1f}, LoRA {lora:.1f}"


def note(cases: int) -> str:
    return (
        f"Means over {cases} held-out drawn scenes with 95 % bootstrap intervals; seconds of a whole edit, inversion "
        "and LoRA included, one thread. Every method is a setting of the same editor, with the same tap, level, "
        "learning rate and updates: rows differ in the method alone. Where the prompt stays, control before the "
        "drag changes nothing, so that ours and DragDiffusion with K/V control and without LoRA are nearly one method: "
        "they differ in the schedule's clean end. DragGAN has no row: its part, motion supervision and point tracking, "
        "is the drag loop of every row that drags."
    )

"""The comparison with others' methods as a table in a Markdown file, made from a run of truth_bench.py.

    python scripts/truth_bench.py run RUN --settings rivals
    python scripts/comparison.py RUN/results.json --readme README.md

The table stands between two HTML comments, which must be there; whatever is between them is replaced. Without
`--readme` it is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import intervals
import truth_bench

from dragsa import cli, files

BEGIN, END = "<!-- comparison: made by scripts/comparison.py -->", "<!-- end of comparison -->"
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


def table(results: truth_bench.Results) -> str:
    """Markdown: a row for each method that the run has, and what the rows are of. ValueError for a run of others."""
    there = {name: results[name] for name in METHODS if results.get(name)}
    if "ours" not in there or len(there) < 2:
        raise ValueError("not a run of the rivals: make one with `truth_bench.py run RUN --settings rivals`")
    counts = {len(of_case) for of_case in there.values()}
    if len(counts) > 1:
        raise ValueError(f"methods with different numbers of cases: {', '.join(map(str, sorted(counts)))}")
    rows = []
    for name, of_case in there.items():
        cells = {"method": METHODS[name]}
        for heading, (figure, digits) in COLUMNS.items():
            cells[heading] = intervals.text(truth_bench.summary(of_case, figure).per_picture, digits)
        cells["seconds"] = seconds(of_case)
        rows.append(cells)
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *(list(row.values()) for row in rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{note(counts.pop())}"


def seconds(of_case: Mapping[str, Mapping[str, Any]]) -> str:
    """Of an edit, the mean; and how many of them the LoRA's training took."""
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


def inserted(text: str, new: str) -> str:
    """The text with what is between the two comments replaced. ValueError where they are not there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"it must hold the lines {BEGIN} and {END} once, in that order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def read(path: Path) -> truth_bench.Results:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["results"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the results of truth_bench.py ({error})") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path, help="results.json of a run of the rivals")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="the Markdown file to put it into")
    try:
        options = parser.parse_args(arguments)
        made = table(read(options.results))
        if options.readme is None:
            print(made)
        else:
            try:
                text = inserted(options.readme.read_text(encoding="utf-8"), made)
            except ValueError as error:
                raise ValueError(f"{options.readme}: {error}") from None
            files.save_bytes(text.encode(), options.readme, overwrite=True)
    except (OSError, ValueError) as error:
        print(f"comparison: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

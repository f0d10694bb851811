"""What the paper says of its figure 4 (4.3), asked of a run: ours minus another method, case by case, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dragsa.evaluation import experiments, tables
from dragsa.evaluation.runs import Results
from dragsa.evaluation.tables import Mean


class Claim(NamedTuple):
    """A sentence: ours has more (`sign` 1) or less (-1) of each figure than another method."""

    says: str
    figures: Mapping[str, tuple[str, int]]  # in words -> figure, sign
    against: tuple[str, ...]  # settings


MINE = ("ours", "as-printed")  # the preset, and the paper's own numbers
STYLE = {
    "style kept, share": ("style_kept", 1),
    "style's margin, dB": ("style_margin", 1),
    "object's colour, of 255": ("object_colour", -1),
    "object's tint, of 255": ("object_tint", -1),
    "background, of 255": ("background_error", -1),
}
WITHOUT_CONTROL = {"ours": "no-control", "as-printed": "as-printed-no-control"}
PLAIN = ("first-program", "first-program-our-tap", "last-program", "last-program-our-tap")
TRAINED = tuple(f"{name}-lora" for name in PLAIN)
CLAIMS = (
    Claim("control keeps the style", STYLE, tuple(WITHOUT_CONTROL.values())),
    Claim("without training, ours keeps the style better than DragDiffusion without LoRA", STYLE, PLAIN),
    Claim("ours changes more than DragDiffusion with LoRA", {"distance left, share": ("share", -1)}, TRAINED),
    Claim("and the style is there", STYLE, TRAINED),
)


def verdicts(results: Results) -> str:
    """Return a Markdown row for each claim, figure and pair of settings that a run has; empty if it has none.

    A verdict follows from the 95 % bootstrap interval of the mean difference, as `experiments.statement` says.
    """
    rows = []
    for claim, mine, theirs in pairs(results):
        for words, (figure, sign) in claim.figures.items():
            values = experiments.differences(results[mine], results[theirs], figure)
            if all(value is None for value in values.values()):
                continue
            told = experiments.statement(claim.says, values, sign)
            difference = tables.text(Mean(told["mean"], told["low"], told["high"]), sign=True)
            cells = {"the paper says": claim.says, "ours": mine, "against": theirs, "by": words}
            rows.append({**cells, "difference": difference, "cases": told["pictures"], "found": told["verdict"]})
    return tables.markdown(rows) if rows else ""


def pairs(results: Results) -> Iterator[tuple[Claim, str, str]]:
    """Yield each claim with two settings of a run that it is about; ours without control is compared with itself."""
    for claim in CLAIMS:
        for mine in MINE:
            for theirs in claim.against:
                itself = theirs not in WITHOUT_CONTROL.values() or WITHOUT_CONTROL[mine] == theirs
                if results.get(mine) and results.get(theirs) and itself:
                    yield claim, mine, theirs

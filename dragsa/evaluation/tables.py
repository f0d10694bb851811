"""Tables of results as Markdown, and the means that stand in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dragsa.evaluation import intervals

Figures = Mapping[str, Mapping[str, Any]]  # case -> figures of one result


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as a Markdown table headed by the keys; a float is given two decimals."""
    if not rows:
        return "None."
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(of_case: Figures, figure: str) -> intervals.Summary:
    """Return the mean of one figure over cases; of the share left, with a value for each handle that is measured."""
    if figure == "share":
        return intervals.summarise({name: [p["share"] for p in row["points"]] for name, row in of_case.items()})
    return intervals.summarise({name: [row.get(figure)] for name, row in of_case.items()})


def mean(of_case: Figures, figure: str, digits: int = 2) -> str:
    """Return the mean of one figure over cases and its interval as text."""
    return intervals.text(summary(of_case, figure).per_picture, digits)


def of_kind(of_case: Figures, kind: str) -> dict[str, Mapping[str, Any]]:
    """Return the figures of the cases of one kind; of all cases for "all"."""
    return {case: row for case, row in of_case.items() if kind in ("all", row["kind"])}

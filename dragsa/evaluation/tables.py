"""Means with bootstrap intervals, over handles and over pictures, whatever order the results come in; and their tables.

A picture is one draw from the benchmark and its handles are not: they share a scene and an edit. So it is pictures that
are resampled, with all their handles, also where the mean is over handles (the cluster bootstrap; Efron and Tibshirani,
*An Introduction to the Bootstrap*, 1993, chapters 8 and 13: percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 10_000
LEVEL = 0.95

Columns = Mapping[str, tuple[str, int]]  # heading -> figure, digits
Figures = Mapping[str, Mapping[str, Any]]  # case -> figures of one result


@dataclass(frozen=True)
class Mean:
    """A mean and the ends of its bootstrap interval; None where there is nothing, or one picture, to take it from."""

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """`per_handle`: every handle weighs the same. `per_picture`: every picture does, by the mean of its handles.

    `pictures` and `handles` count what the means are over, `missing` the values that were None or not finite.
    """

    per_handle: Mean
    per_picture: Mean
    pictures: int
    handles: int
    missing: int


def summarise(values: Mapping[str, Sequence[float | None]], seed: int = 0, draws: int = DRAWS) -> Summary:
    """Return means and 95 % intervals of one quantity: a picture's name -> its value for each handle, or its only one.

    A value that is None or not finite is left out and counted; a picture without values is left out. The same values
    give the same bytes in any order of the pictures and of their handles. Raises ValueError for less than one draw.
    """
    if draws < 1:
        raise ValueError(f"the bootstrap needs 1 or more draws, came {draws}")
    there = {name: [v for v in values[name] if v is not None and math.isfinite(v)] for name in sorted(values)}
    given = sum(len(row) for row in values.values())
    rows = [row for row in there.values() if row]
    counts = np.array([len(row) for row in rows], dtype=np.float64)  # (pictures,)
    sums = np.array([math.fsum(row) for row in rows], dtype=np.float64)  # (pictures,), exact, so of no order
    handles = sum(len(row) for row in rows)
    return Summary(
        per_handle=_mean(sums, counts, seed, draws),
        per_picture=_mean(sums / counts, np.ones_like(counts), seed, draws),
        pictures=len(rows),
        handles=handles,
        missing=given - handles,
    )


def _mean(sums: np.ndarray, counts: np.ndarray, seed: int, draws: int) -> Mean:
    """Return Σ sums / Σ counts over the pictures, with that ratio's percentile interval over resampled pictures."""
    pictures = len(sums)
    if pictures == 0:
        return Mean(None, None, None)
    mean = math.fsum(sums) / math.fsum(counts)
    if pictures == 1:  # nothing to resample
        return Mean(mean, None, None)
    drawn = np.random.default_rng(seed).integers(pictures, size=(draws, pictures))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Mean(mean, float(low), float(high))


def text(mean: Mean, digits: int = 2, sign: bool = False) -> str:
    """Return a mean and its interval as text, such as `4.31 (3.90 to 4.77)`; a dash where there is none.

    `sign`: the mean with its sign, also where it is positive.
    """
    if mean.mean is None:
        return "–"
    plain = f"{mean.mean:{'+' if sign else ''}.{digits}f}"
    if mean.low is None or mean.high is None:
        return plain
    return f"{plain} ({mean.low:.{digits}f} to {mean.high:.{digits}f})"


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as a Markdown table headed by the keys; a float is given two decimals."""
    if not rows:
        return "None."
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(of_case: Figures, figure: str) -> Summary:
    """Return the mean of one figure over cases; of the share left, with a value for each handle that is measured."""
    if figure == "share":
        return summarise({name: [p["share"] for p in row["points"]] for name, row in of_case.items()})
    return summarise({name: [row.get(figure)] for name, row in of_case.items()})


def mean(of_case: Figures, figure: str, digits: int = 2) -> str:
    """Return the mean of one figure over cases and its interval as text."""
    return text(summary(of_case, figure).per_picture, digits)


def means(of_case: Figures, columns: Columns) -> dict[str, str]:
    """Return the means of the columns' figures over cases, with their intervals, as text by heading."""
    return {heading: mean(of_case, figure, digits) for heading, (figure, digits) in columns.items()}


def of_kind(of_case: Figures, kind: str, key: str = "kind") -> dict[str, Mapping[str, Any]]:
    """Return the figures of the cases of one kind, or of another group by `key`; of all cases for "all"."""
    return {case: row for case, row in of_case.items() if kind in ("all", row[key])}

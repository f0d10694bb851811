"""Verdicts of the reproduction: a sentence stands or falls with the whole interval of its mean."""

from __future__ import annotations

import pytest

from dragsa.evaluation import experiments


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([1, 2, 3, 2, 1], 1, "borne out"),
        ([-1, -2, -3, -2, -1], -1, "borne out"),
        ([1, 2, 3, 2, 1], -1, "contradicted"),
        ([1, -2, 3, -2, 1], 1, "not decided, the interval holds zero"),
        ([1, 2, 3, 2, None], 1, "not decided, too few pictures (4)"),
        ([None] * 6, 1, "not decided, too few pictures (0)"),
    ],
)
def test_a_sentence_stands_with_its_whole_interval(values: list[float | None], sign: int, verdict: str) -> None:
    said = experiments.statement("so", {str(n): value for n, value in enumerate(values)}, sign)
    assert said["verdict"] == verdict and said["says"] == "so"

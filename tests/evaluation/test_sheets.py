"""Sheets and charts: pictures and means stand where they belong."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dragsa.evaluation import sheets
from dragsa.evaluation.sheets import Panel, Row
from dragsa.evaluation.tables import Mean


def test_a_sheet_has_its_pictures_where_they_belong() -> None:
    red, wide = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (16, 8), "blue")
    drawn = sheets.sheet(
        "title", ["a", "b"], [Row("r", [Panel(None), Panel(red, ("under",))]), Row("s", [Panel(wide)])]
    )
    pixels = np.asarray(drawn)
    of = {c: np.argwhere((pixels == value).all(axis=2)) for c, value in (("red", (255, 0, 0)), ("blue", (0, 0, 255)))}
    (top, left), (bottom, right) = of["red"].min(axis=0), of["red"].max(axis=0)
    assert (bottom - top + 1, right - left + 1) == (sheets.SIDE, sheets.SIDE)
    assert left == sheets.MARGIN + sheets.LABEL + sheets.SIDE + sheets.GAP
    (lower, first), (last, end) = of["blue"].min(axis=0), of["blue"].max(axis=0)
    assert lower > bottom + 16 and first < left  # below the words under the first row
    assert (last - lower + 1, end - first + 1) == (sheets.SIDE // 2, sheets.SIDE)
    noted = sheets.sheet("title", ["a", "b"], [], ["a note " * 60])
    assert noted.height > sheets.sheet("title", ["a", "b"], []).height + 30


def test_a_chart_draws_higher_means_higher() -> None:
    lines = {"low": [Mean(1.0, 0.5, 1.5), Mean(None, None, None)], "high": [Mean(3.0, None, None), Mean(3.0, 2.0, 4.0)]}
    pixels = np.asarray(sheets.chart("t", ["x", "y"], lines, "dB", ["note"]))[:, :700]
    rows = [
        np.argwhere((pixels == [int(colour[n : n + 2], 16) for n in (1, 3, 5)]).all(axis=2))[:, 0].mean()
        for colour in sheets.COLOURS[:2]
    ]
    assert rows[1] < rows[0] - 50

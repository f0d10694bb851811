"""The benchmark's two lists of cases, drawn scenes and scenes of artwork: their cases, and measuring their results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dragsa.evaluation import art_cases, art_figures, cases, edits, figures, scenes
from dragsa.evaluation.art_cases import ArtCase
from dragsa.evaluation.cases import Case
from dragsa.evaluation.edits import SIZE, Edit
from dragsa.pictures import open_picture

DRAWN, ARTWORK = "drawn", "artwork"
WEIGHTS = {DRAWN: "small", ARTWORK: "artwork"}  # the model that was trained on such scenes, a folder of weights/
NAMES = tuple(WEIGHTS)
WEIGHTS_HELP = "default weights/small, with --list artwork weights/artwork"
KINDS = ("move", "resize", "turn", "rotate", "two", "protect", "part")  # of either list, in the tables' order
OWN = ("source.png", "truth.png", "mask.png")  # a case's pictures that are no results


def cases_of(name: str, which: str = "figures", limit: int | None = None, size: int = SIZE) -> Sequence[Edit]:
    """Return the cases of a list, all kinds by turns, for "figures" or for "settings"; `limit`: so many of each kind.

    Raises ValueError for another name than of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"no list {name!r}; there are {', '.join(NAMES)}")
    return (cases.cases if name == DRAWN else art_cases.list_cases)(which, limit, size)


def name_of(listed: Sequence[Edit]) -> str:
    """Return the name of the list that cases are of."""
    return ARTWORK if any(isinstance(case, ArtCase) for case in listed) else DRAWN


def part_of(listed: Sequence[Edit]) -> str:
    """Return the part of their list that cases are of, by their seeds: "figures" or "settings"."""
    first = (art_cases.FIRST if name_of(listed) == ARTWORK else cases.FIRST)["settings"]
    return "settings" if any(case.seed >= scenes.HELD_OUT_SEEDS[first] for case in listed) else "figures"


def measure(result: Image.Image, case: Edit) -> dict[str, Any]:
    """Return every figure of one result that needs no model, for JSON: `art_figures.measure`'s or `figures.measure`'s.

    Raises ValueError for a result of another size than the case's.
    """
    if isinstance(case, ArtCase):
        return art_figures.measure(result, case)
    assert isinstance(case, Case)
    return figures.measure(result, case)


def load(folder: Path) -> Edit:
    """Return the case of a folder that `runs.save` wrote. Raises OSError or ValueError for a folder that holds none."""

    def of_list(value: Any) -> type[Edit]:
        return ArtCase if isinstance(value, dict) and value.get("list") == ARTWORK else Case

    return edits.load(folder, of_list)


def measure_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of every result in a folder of cases: result's name -> case's name -> what `measure` gives."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/case.json")):
        case = load(file.parent)
        for picture in sorted(file.parent.glob("*.png")):
            if picture.name not in OWN:
                found.setdefault(picture.stem, {})[case.name] = measure(open_picture(picture), case)
    if not found:
        raise ValueError(f"{folder}: no results; there should be FOLDER/<case>/case.json and FOLDER/<case>/<name>.png")
    return found

"""DragBench: its samples, read without running what is in their files; their edits; and the results' numbers."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dragsa import editing, files, pictures
from dragsa.config import EditConfig
from dragsa.evaluation import distances, plain_pickle, tables
from dragsa.evaluation.distances import Sample
from dragsa.loading import StableDiffusion

PICTURE, META, RESULT, TRACE = "original_image.png", "meta_data.pkl", "dragged_image.png", "trace.json"
FORMS = distances.FORMS
MOST = 10_000  # numbers or pairs of them in a sample's points


def sample_names(data: Path) -> list[str]:
    """Return `category/sample` of every folder that has a sample's picture or its meta data, sorted.

    Raises FileNotFoundError where there are none.
    """
    files = [file for name in (PICTURE, META) for file in data.glob(f"*/[!.]*/{name}")]
    found = {f"{file.parent.parent.name}/{file.parent.name}" for file in files}
    if not found:
        raise FileNotFoundError(f"{data}: no samples there (category/sample/{PICTURE} and {META})")
    return sorted(found)


def read_sample(data: Path, name: str) -> Sample:
    """Return a sample, checked; no mask where the data set's is empty.

    Raises ValueError or OSError that says which file is not as it should be.
    """
    folder = data / name
    picture = pictures.open_picture(folder / PICTURE)
    meta = plain_pickle.load(folder / META)
    for key, kinds in (("prompt", str), ("points", list | tuple | np.ndarray), ("mask", np.ndarray | None)):
        if not isinstance(meta, dict) or not isinstance(meta.get(key), kinds):
            raise ValueError(f"{folder / META}: expected a dictionary with prompt, points and mask; {key} is not so")
    try:
        given = meta["points"]
        if (given.size if isinstance(given, np.ndarray) else len(given)) > MOST:
            raise ValueError
        points = np.asarray(given, dtype=np.float64)  # (2 n, 2): handle, target, handle, …
        if not len(points) or points.shape != (len(points), 2) or len(points) % 2:
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(
            f"{folder / META}: points must be handle and target by turns, (x, y) each, up to {MOST}"
        ) from None
    pictures.to_grid(points.tolist(), picture.size, picture.size)  # raises for one outside
    drags = tuple(((x0, y0), (x1, y1)) for x0, y0, x1, y1 in points.reshape(-1, 4).tolist())
    mask, size = meta.get("mask"), picture.size[::-1]
    if mask is None or not mask.any():
        return Sample(name, picture, meta["prompt"], drags, None)
    if mask.shape != size:
        raise ValueError(f"{folder / META}: the mask is {mask.shape}; the picture, {size} (height, width)")
    return Sample(name, picture, meta["prompt"], drags, torch.from_numpy(np.asarray(mask > 0)))


def edit_sample(sd: StableDiffusion, sample: Sample, results: Path, config: EditConfig, seed: int) -> None:
    """Edit a sample and put its picture and trace into RESULTS, whole or not at all, in place of what is there."""
    begin = time.perf_counter()
    own = distances.picture_seed(sample.name, seed)
    result = editing.edit(sd, sample.picture, sample.drags, sample.mask, sample.prompt, seed=own, config=config)
    made = {
        "sample": sample.name,
        **pictures.to_json(result.trace),
        **settings(sd, config, seed),
        "device": str(sd.device),
        "seconds_in_all": time.perf_counter() - begin,
    }
    folder = results / sample.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        shutil.rmtree(left_over)
    with files.whole_folder(folder) as part:
        pictures.save_picture(result.image, part / RESULT)
        files.save_json(made, part / TRACE)
        if folder.exists():
            os.replace(folder, part / "before")
    shutil.rmtree(folder / "before", ignore_errors=True)


def settings(sd: StableDiffusion, config: EditConfig, seed: int) -> dict[str, Any]:
    """Return the settings that results of one run have in common, as their traces hold them."""
    dtype = str(sd.unet.dtype).removeprefix("torch.")
    common = {"config": asdict(config), "weights": sd.provenance, "dtype": dtype, "base_seed": seed}
    return json.loads(json.dumps(common))


def is_finished(results: Path, name: str, expected: dict[str, Any]) -> bool:
    """Return True if a sample's result is there. Raises ValueError if it was made with other settings."""
    folder = results / name
    if not (folder / RESULT).exists():
        return False
    try:
        made = dict(json.loads((folder / TRACE).read_text()))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{folder}: a result without a readable {TRACE}; --again to replace it") from None
    for key, value in expected.items():
        if made.get(key) != value:
            raise ValueError(f"{folder}: made with another {key}; take another folder, or --again to replace it")
    return True


def evaluate_sample(
    sd: StableDiffusion, sample: Sample, results: Path, seed: int, size: int, tap: str
) -> dict[str, Any]:
    """Return every number of one sample's result, for JSON. Raises ValueError or OSError where it has none."""
    file = results / sample.name / RESULT
    if not file.exists():
        raise FileNotFoundError(f"{file}: no result")
    edited = pictures.open_picture(file)
    found = distances.measure(sd, sample, edited, seed, size, tap)
    row: dict[str, Any] = {
        "drags": [{"handle": list(handle), "target": list(target)} for handle, target in sample.drags],
        **asdict(found),
        "fidelity": distances.fidelity(sample.picture, edited),
    }
    own = file.with_name(TRACE)
    if own.exists():  # not beside another program's results
        row["seconds"] = json.loads(own.read_text()).get("seconds_in_all")
    return row


def summaries(rows: dict[str, Any], seed: int) -> dict[str, tables.Summary]:
    """Return every metric over the samples, by the names that tables give them."""
    columns = {title: {name: row[key] or () for name, row in rows.items()} for title, key in FORMS.items()}
    for title, key in (("image fidelity, 1 - LPIPS", "fidelity"), ("seconds", "seconds")):
        columns[title] = {name: [row.get(key)] for name, row in rows.items()}
    return {title: tables.summarise(values, seed) for title, values in columns.items()}


def table(found: dict[str, tables.Summary]) -> str:
    """Return a Markdown row for each metric, with the mean published under its name: over handles or pictures."""
    lines = []
    for title, summary in found.items():
        mean, over = summary.per_picture, f"{summary.pictures} pictures"
        if title in FORMS and FORMS[title] not in distances.BY_PICTURE:
            mean, over = summary.per_handle, f"{summary.handles} handles"
        digits = 1 if "px" in title or title == "seconds" else 3
        if summary.pictures:
            lines.append({"metric": title, "mean (95 %)": tables.text(mean, digits), "over": over})
    return tables.markdown(lines)

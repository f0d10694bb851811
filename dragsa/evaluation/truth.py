"""Edits of scenes whose true results are known, each case under every setting, measured in the picture."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dragsa import ddim, editing, pictures
from dragsa.config import EditConfig
from dragsa.editing import Branch, Drag, Source
from dragsa.evaluation import distances, lists, runs, told, warp
from dragsa.evaluation.edits import VARIANTS, Edit
from dragsa.evaluation.runs import CAPTION, Setting
from dragsa.loading import StableDiffusion


def drag_source(branch: Branch, drags: Sequence[Drag]) -> tuple[Tensor, dict[str, Any]]:
    """Return a branch's latent after the drag, (1, 4, h, w), for any number of ways down; and how the drag went."""
    begin = time.perf_counter()
    dragged = editing.drag_source(branch, drags)
    size = branch.source.picture.size
    handles, targets = (pictures.to_grid([pair[end] for pair in drags], size, branch.grid_size) for end in (0, 1))
    course = {
        "updates": len(dragged.losses),
        "stop": dragged.reason,
        "asked_cells": (targets - handles).norm(dim=1).tolist(),
        "tracked_cells": (targets - dragged.final_handles).norm(dim=1).tolist(),
        "losses": dragged.losses.tolist(),
        "distances_cells": dragged.distances.mean(dim=1).tolist(),
        "seconds": time.perf_counter() - begin,
    }
    return dragged.latent, course


@torch.no_grad()
def reconstruct(sd: StableDiffusion, source: Source, level: int | None = None) -> Image.Image:
    """Return the source's z_T, or z_level, denoised and decoded with no edit."""
    level = source.schedule.steps if level is None else level
    context = sd.embed([source.prompt])
    z = ddim.sample(source.unet_of(sd), source.latents[level], context, source.schedule, level)[-1]
    return pictures.restore(pictures.to_picture(sd.decode(z)), source.picture)


class Result(NamedTuple):
    """One case under one setting: the picture, and every figure as values for JSON."""

    picture: Image.Image
    figures: dict[str, Any]


Shared = dict[Any, Any]  # what settings of one case have in common, sources and drags, by the numbers it depends on


def run_case(
    sd: StableDiffusion, case: Edit, settings: Sequence[Setting], published: bool = True, explain: bool = True
) -> dict[str, Result]:
    """Run a case under every setting. Inversion, drag and the source's K/V are done once where settings share them.

    `published`: with the published metrics too. `explain`: where the first of the drags leaves more than half of the
    distance, with what the model makes of the true result (see `drawable`).
    """
    dragging = (setting.name for setting in settings if setting.config and setting.handles in VARIANTS)
    first = next(dragging, None)
    shared: Shared = {}
    metrics = _published(sd, case) if published else None
    results = {}
    for setting in settings:
        config, picture = setting.config_for(case), case.source
        row: dict[str, Any] = {"case": case.name, "kind": case.kind, "setting": setting.name}
        if config is not None:
            picture, course = _edit(of_type(sd, setting.dtype), case, setting, config, shared)
            row |= course
        elif setting.handles is not None:
            picture, spent = _warped(case, setting.handles)
            row |= spent
        row |= lists.measure(picture, case)
        if config is not None and setting.handles in VARIANTS:
            row |= told.figures(picture, case, setting.handles, row)
        if metrics is not None:
            row["published"] = metrics(picture)
        if explain and config is not None and setting.name == first and row["share"] > 0.5:
            row["drawable"] = drawable(sd, case, config)
        results[setting.name] = Result(picture, row)
    return results


def _edit(sd: StableDiffusion, case: Edit, setting: Setting, config: EditConfig, shared: Shared) -> Result:
    """Edit a case under one setting; the figures are the drag's course, if any, and the seconds."""
    prompt = case.caption(case.before, full=True) if setting.handles == CAPTION else case.prompt
    numbers = config.steps, config.variant, config.fixed_point, config.size, config.lora_steps, config.source_kv
    inversion = (*numbers, prompt, setting.dtype)
    if inversion not in shared:
        shared[inversion] = editing.prepare(sd, case.source, prompt, config=config)
    source, begin, found = shared[inversion], time.perf_counter(), {}
    seconds = {"lora": source.seconds["lora"]} if config.lora_steps else {}
    seconds["inversion"] = sum(source.seconds.values()) - sum(seconds.values())
    if setting.handles is None:
        picture = reconstruct(sd, source)
    elif setting.handles == CAPTION:
        picture = editing.edit(sd, source, target_prompt=case.caption(case.after, full=True), config=config).image
    else:
        key, drags = (inversion, config.drag, config.drag_step, setting.handles), case.drags(setting.handles)
        branch = editing.leave(sd, source, drags=drags, mask=case.mask, config=config)
        if key not in shared:
            shared[key] = drag_source(branch, drags)
        latent, found["drag"] = shared[key]
        seconds["drag"] = found["drag"]["seconds"]
        begin = time.perf_counter()
        z_0 = editing.denoise(replace(branch, z_target=latent)).z_target
        picture = pictures.restore(pictures.to_picture(sd.decode(z_0)), source.picture)
    seconds["denoising"] = time.perf_counter() - begin
    return Result(picture, {**found, "seconds": {**seconds, "all": sum(seconds.values())}})


def _warped(case: Edit, handles: str) -> Result:
    """Warp a case's own pixels; the figures are the seconds."""
    begin = time.perf_counter()
    picture = pictures.to_picture(warp.warped(pictures.to_tensor(case.source)[0], case.drags(handles), case.mask))
    return Result(picture, {"seconds": {"all": time.perf_counter() - begin}})


def of_type(sd: StableDiffusion, dtype: str) -> StableDiffusion:
    """Return the model with networks of that type, a copy of a float32 one where the type is another."""
    if dtype == "float32":
        return sd
    networks = {name: copy.deepcopy(getattr(sd, name)).to(getattr(torch, dtype)) for name in ("unet", "vae", "text")}
    return replace(sd, **networks)


def _published(sd: StableDiffusion, case: Edit) -> Callable[[Image.Image], dict[str, Any]]:
    """Return a function for the published metrics of a case's results, all by the same handles: the five."""

    def features(picture: Image.Image, which: str) -> Tensor:
        seed = distances.picture_seed(f"{case.name}:{which}")
        return distances.dift(sd, picture, case.prompt, seed, case.size)

    source, handles, mask = features(case.source, "source"), case.drags("five"), case.mask

    def measured(result: Image.Image) -> dict[str, Any]:
        edited = features(result, "edited")
        found = distances.distances(source, edited, handles, case.source.size, mask)
        values = {name: getattr(found, name) for name in distances.FORMS.values()}
        return {**values, "fidelity": distances.fidelity(case.source, result)}

    return measured


def drawable(sd: StableDiffusion, case: Edit, config: EditConfig) -> dict[str, Any]:
    """Return figures of the true result itself, inverted to the drag's level and denoised from there."""
    source = editing.prepare(sd, case.truth, case.prompt, config=replace(config, lora_steps=0))
    found = lists.measure(reconstruct(sd, source, config.steps - config.drag_step), case)
    return {name: found[name] for name in ("share", "overlap", "truth_db")}


# By the first rule that holds, in this order, of every edit that leaves more than half of the distance.
REASONS = {
    "model cannot draw it": "the true result, inverted to the drag's level and denoised, is off by a quarter or more "
    "(looked at for the first setting that drags; the others' count under what comes next)",
    "control pulls back": "the same drag without K/V control leaves less than half",
    "tracking lost": "the drag ended because a handle's features were nowhere to be found",
    "not moving": "the drag ended because tracking found the handles where they had been, 30 updates long",
    "no nearer": "the drag ended because tracking found the handles no nearer to the targets, and went back",
    "not finite": "the drag ended because loss, gradient or latent was not finite",
    "budget used up": "all updates were used and tracking still has more than a quarter of the way to go",
    "drag undone": "tracking found the handles at the targets, and the object is not there in the picture",
}


def why_failed(row: Mapping[str, Any], uncontrolled: Mapping[str, Any] | None = None) -> str | None:
    """Return which of `REASONS` an edit failed for; None for one that leaves half of the distance or less.

    `row`: the edit's figures. `uncontrolled`: those of the same drag without control.
    """
    if row["share"] <= 0.5:
        return None
    made = row.get("drawable")
    if made is not None and (made["share"] >= 0.25 or made["overlap"] < 0.6):
        return "model cannot draw it"
    if uncontrolled is not None and uncontrolled["share"] < 0.5:
        return "control pulls back"
    course = row["drag"]
    if course["stop"] in REASONS:
        return course["stop"]
    if course["stop"] == "budget" and sum(course["tracked_cells"]) > 0.25 * sum(course["asked_cells"]):
        return "budget used up"
    return "drag undone"


def run(
    folder: Path,
    listed: Sequence[Edit],
    settings: Sequence[Setting],
    model: Path,
    workers: int = 1,
    published: bool = True,
    explain: bool = True,
) -> bool:
    """Do what is missing of a run. Return True once every case is there; under torchrun only the last rank may see it.

    Raises ValueError as `runs.claim` does, and for a folder that holds another case under the name of one of these.
    """
    runs.claim(folder, settings, model, list=lists.name_of(listed), cases=lists.part_of(listed), published=published)
    done = {case.name for case in listed if is_done(folder, case)}
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    missing = [case for case in listed[rank::ranks] if case.name not in done]
    work = partial(_do, folder=folder, settings=settings, published=published, explain=explain)
    runs.each(work, missing, model, workers)
    return all(is_done(folder, case) for case in listed)


def is_done(folder: Path, case: Edit) -> bool:
    """Return True if a run's folder has the case. Raises ValueError if it has another one under the same name."""
    there = (folder / case.name / "case.json").exists()
    if there and lists.load(folder / case.name) != case:
        raise ValueError(f"{folder}: its {case.name} is another case, of another size or list; give another folder")
    return there


def run_as_asked(options: Any, settings: Sequence[Setting], explain: bool = True) -> bool:
    """Do what is missing of a run by a command line with the options of `runs.add_options`. Returns as `run` does."""
    listed = lists.cases_of(options.list, options.cases, options.limit, options.size)
    workers = options.workers or runs.default_workers()
    return run(options.folder, listed, settings, options.weights, workers, options.published, explain)


def _do(
    sd: StableDiffusion, case: Edit, folder: Path, settings: Sequence[Setting], published: bool, explain: bool
) -> str:
    """Do one case, write it to the run's folder, and return the line that says so."""
    begin = time.perf_counter()
    results = run_case(sd, case, settings, published, explain)
    save(folder, case, results)
    shares = "  ".join(f"{name} {result.figures['share']:.2f}" for name, result in results.items())
    return f"{case.name}  {time.perf_counter() - begin:.1f} s  {shares}"


def save(folder: Path, case: Edit, results: Mapping[str, Result]) -> None:
    """Write a finished case, whole or not at all."""
    images = {**case.pictures, **{name: result.picture for name, result in results.items()}}
    runs.save(folder / case.name, images, {"case": case.to_json(), **{n: row for n, (_, row) in results.items()}})

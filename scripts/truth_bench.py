"""The benchmark with exact truth: held-out drawn scenes, edited, and compared with the scenes drawn as asked.

    python scripts/truth_bench.py run RUN           the edits of every case under every setting, then the table
    python scripts/truth_bench.py run RUN --settings rivals     the same with others' methods beside ours
    python scripts/truth_bench.py run RUN --settings parts      … without some of the small preset's parts
    python scripts/truth_bench.py run RUN --settings precision  … with networks in bfloat16
    python scripts/truth_bench.py table RUN         the table again, from what the folder RUN holds
    python scripts/truth_bench.py export FOLDER     the cases alone, for other programs to edit

A case that is done is a folder in RUN: its pictures, every result as <setting>.png and its figures as <setting>.json,
there whole or not at all. A run that was broken off goes on where it stood. `--workers` processes share the work, and
under torchrun the ranks do too. `table` writes RUN/results.json, RUN/table.md and RUN/sheet.png.

Where an object is in a result is measured in the picture (evaluate.py), never taken from the edit's own tracking.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cases
import evaluate
import intervals
import published_metrics
import scenes
import torch
from cases import Case
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dragsa import cli, ddim, drag, editing, files, loading
from dragsa.config import EditConfig, LoRAConfig
from dragsa.editing import Source
from dragsa.loading import StableDiffusion
from dragsa.pictures import images, trace

NO_EDIT, RECONSTRUCTION, MAIN = "no-edit", "reconstruction", "five-handles"
CAPTION = "caption"
GUIDANCE = 6.0  # at which the small model follows a changed prompt
Item = TypeVar("Item")


@dataclass(frozen=True)
class Setting:
    """A row of the table: an edit's numbers, and how many handles ask for it.

    Without a config the source itself is the result. Without a variant of handles ("one", "five") the result is the
    source inverted and denoised again, with no edit. "caption" for handles: nothing is dragged, the result is asked for
    by the prompt alone. `dtype`: of the networks; what is measured of results is measured in float32. `fitted`: where
    one handle stands for a whole object, its patch is the square that fits in there (see `config_for`).
    """

    name: str
    config: EditConfig | None = None
    handles: str | None = None
    dtype: str = "float32"
    fitted: bool = False

    def config_for(self, case: Case) -> EditConfig | None:
        """The config, of a fitted one with the case's own r_1."""
        if self.config is None or not self.fitted or case.kind not in cases.WHOLE:
            return self.config
        working = images.working_size(case.size, case.size, self.config.size)
        cells = images.grid_size(working)[0] / case.size  # of the supervision grid, to a pixel of the case
        return replace(self.config, drag=replace(self.config.drag, radius=max(1, round(case.square * cells))))


def headline(size: int = cases.SIZE) -> list[Setting]:
    """The reported settings: the small model's own, with fewer handles, without control, blended, and the paper's.

    A small patch on an object's even middle is content as soon as that has arrived, before the rest.
    """
    small = EditConfig.small(size=size)
    return [
        Setting(NO_EDIT),
        Setting(RECONSTRUCTION, small),
        Setting(MAIN, small, "five"),
        Setting("one-handle", small, "one", fitted=True),
        Setting("no-control", replace(small, control_step=None), "five"),
        Setting("blended", replace(small, blend=True), "five"),
        Setting("paper", EditConfig.paper(size=size), "five"),
    ]


def parts(size: int = cases.SIZE) -> list[Setting]:
    """The small model's settings, and the same without some of their parts.

    "adam" has an optimiser that scales each element by itself. "not-anchored" pulls as the paper prints it, to the
    current latent's patch alone; with and without control, since the anchor holds the colours that control is for.
    """
    small = EditConfig.small(size=size)
    loose = replace(small, drag=replace(small.drag, anchor=0.0))
    return [
        Setting(NO_EDIT),
        Setting(MAIN, small, "five"),
        Setting("no-control", replace(small, control_step=None), "five"),
        Setting("adam", replace(small, drag=replace(small.drag, optimizer="adam")), "five"),
        Setting("not-anchored", loose, "five"),
        Setting("not-anchored-no-control", replace(loose, control_step=None), "five"),
    ]


def rivals(size: int = cases.SIZE) -> list[Setting]:
    """Ours beside others' methods, by the small model's numbers.

    MasaCtrl, which drags nothing, is asked by the caption, at the guidance that the small model wants.
    """
    small = EditConfig.small(size=size)
    masactrl = EditConfig.masactrl(size=size, steps=small.steps, guidance=GUIDANCE, source_kv="none")
    return [Setting(NO_EDIT), *drag_rivals(small), Setting("masactrl", masactrl, CAPTION)]


def drag_rivals(ours: EditConfig) -> list[Setting]:
    """Ours, and DragDiffusion by the same numbers wherever these are not its method's own.

    Its own are the schedule, when control acts, and the LoRA; its first version has no control. Tap, level, learning
    rate and updates are the same for all.
    """
    theirs = EditConfig.dragdiffusion()
    later = replace(ours, variant=theirs.variant, control_step=theirs.control_step)
    first = replace(later, control_step=None)
    return [
        Setting("ours", ours, "five"),
        Setting("dragdiffusion-first", first, "five"),
        Setting("dragdiffusion-first-lora", replace(first, lora_steps=LoRAConfig().steps), "five"),
        Setting("dragdiffusion", later, "five"),
        Setting("dragdiffusion-lora", replace(later, lora_steps=LoRAConfig().steps), "five"),
    ]


def precision(size: int = cases.SIZE) -> list[Setting]:
    """The small model's own settings, with networks of each type."""
    small = EditConfig.small(size=size)
    return [Setting(NO_EDIT), Setting(MAIN, small, "five"), Setting("bfloat16", small, "five", "bfloat16")]


SETTINGS = {"headline": headline, "parts": parts, "rivals": rivals, "precision": precision}


# ------------------------------------------------------------------------------------------------------ the edits


class Dragged(NamedTuple):
    """A source's latent after the drag, for any number of ways down from there. `course`: how the drag went."""

    latent: Tensor  # (1, 4, h, w)
    level: int
    course: dict[str, Any]


@torch.no_grad()
def drag_source(sd: StableDiffusion, source: Source, case: Case, variant: str, config: EditConfig) -> Dragged:
    """The first half of `editing.edit`: z_{T-S} of the source, dragged."""
    begin = time.perf_counter()
    level, grid = config.steps - config.drag_step, images.grid_size(source.working_size)
    asked = case.drags(variant)
    handles, targets = (images.to_grid([pair[end] for pair in asked], source.picture.size, grid) for end in (0, 1))
    may_move = images.open_mask(case.mask, source.picture.size, grid)
    context = sd.embed([source.prompt])
    dragged = drag.drag_latent(
        source.unet_of(sd),
        source.latents[level],
        level,
        context,
        source.schedule,
        handles,
        targets,
        may_move,
        config.drag,
    )
    course = {
        "updates": len(dragged.losses),
        "stop": dragged.reason,
        "asked_cells": (targets - handles).norm(dim=1).tolist(),
        "tracked_cells": (targets - dragged.final_handles).norm(dim=1).tolist(),
        "losses": dragged.losses.tolist(),
        "distances_cells": dragged.distances.mean(dim=1).tolist(),
        "seconds": time.perf_counter() - begin,
    }
    return Dragged(dragged.latent, level, course)


@torch.no_grad()
def finish(sd: StableDiffusion, source: Source, dragged: Dragged, case: Case, config: EditConfig) -> Image.Image:
    """The second half of `editing.edit`: source and target denoised under control, the target decoded.

    As there, the first such pass of a source leaves its K/V to later ones, which denoise the target alone.
    """
    level, unet, blend = dragged.level, source.unet_of(sd), None
    if config.blend:
        grid = images.grid_size(source.working_size)
        blend = drag.to_latent_grid(images.open_mask(case.mask, source.picture.size, grid), source.latents)  # (h, w)
    uncond, context = sd.embed(["", source.prompt, source.prompt]).split([1, 2])  # (1, n, C); (2, n, C)
    new_hook = editing.other_control(config, sd.text, source.prompt, source.prompt)
    ways = editing.source_pass(unet, source, config, level, config.blend)
    z_source, z_target = source.latents[level], dragged.latent
    _, z = editing.denoise(
        unet, source, config, ways, z_source, z_target, context, uncond, level, blend=blend, new_hook=new_hook
    )
    return images.restore(images.to_picture(sd.decode(z)), source.picture)


@torch.no_grad()
def reconstruct(sd: StableDiffusion, source: Source, level: int | None = None) -> Image.Image:
    """The source's z_T, or z_level, denoised and decoded with no edit."""
    level = source.schedule.steps if level is None else level
    context = sd.embed([source.prompt])
    z = ddim.sample(source.unet_of(sd), source.latents[level], context, source.schedule, level)[-1]
    return images.restore(images.to_picture(sd.decode(z)), source.picture)


def in_words(scene: scenes.Scene) -> str:
    """A caption that says all it can of where an object is and where a face looks."""
    return scenes.caption(scene, place=True, looking=True)


class Result(NamedTuple):
    """One case under one setting: the picture, and every figure as values for JSON."""

    picture: Image.Image
    figures: dict[str, Any]


def run_case(
    sd: StableDiffusion, case: Case, settings: Sequence[Setting], published: bool = True, explain: bool = True
) -> dict[str, Result]:
    """A case under every setting. What settings have in common is done once: inversion, drag, and the source's K/V.

    `published`: with the published metrics too. `explain`: where the first of the drags leaves more than half of the
    distance, with what the model makes of the true result (see `drawable`).
    """
    first = next((setting.name for setting in settings if setting.handles in ("one", "five")), None)
    sources: dict[Any, Source] = {}
    dragged: dict[Any, Dragged] = {}
    distances = _published(sd, case) if published else None
    results = {}
    for setting in settings:
        config, picture = setting.config_for(case), case.source
        figures: dict[str, Any] = {"case": case.name, "kind": case.kind, "setting": setting.name}
        if config is not None:
            prompt = in_words(case.before) if setting.handles == CAPTION else case.prompt
            own = of_type(sd, setting.dtype)
            inversion = (
                *(config.steps, config.variant, config.fixed_point, config.size, config.lora_steps),
                *(prompt, setting.dtype),
            )
            if inversion not in sources:
                sources[inversion] = editing.prepare(own, case.source, prompt, config=config)
            source, begin = sources[inversion], time.perf_counter()
            spent = sum(source.seconds.values())
            seconds = {"lora": source.seconds["lora"]} if config.lora_steps else {}
            seconds["inversion"] = spent - sum(seconds.values())
            if setting.handles is None:
                picture = reconstruct(own, source)
            elif setting.handles == CAPTION:
                picture = editing.edit(own, source, target_prompt=in_words(case.after), config=config).image
            else:
                key = inversion, config.drag, config.drag_step, setting.handles
                if key not in dragged:
                    dragged[key] = drag_source(own, source, case, setting.handles, config)
                course = dragged[key].course
                begin = time.perf_counter()
                picture = finish(own, source, dragged[key], case, config)
                seconds["drag"] = course["seconds"]
                figures["drag"] = course
            seconds["denoising"] = time.perf_counter() - begin
            figures["seconds"] = {**seconds, "all": sum(seconds.values())}
        figures |= evaluate.measure(picture, case)
        if distances is not None:
            figures["published"] = distances(picture)
        if explain and config is not None and setting.name == first and figures["share"] > 0.5:
            figures["drawable"] = drawable(sd, case, config)
        results[setting.name] = Result(picture, figures)
    return results


def of_type(sd: StableDiffusion, dtype: str) -> StableDiffusion:
    """The model with networks of that type, a copy of a float32 one where the type is another."""
    if dtype == "float32":
        return sd
    networks = {name: copy.deepcopy(getattr(sd, name)).to(getattr(torch, dtype)) for name in ("unet", "vae", "text")}
    return replace(sd, **networks)


def _published(sd: StableDiffusion, case: Case) -> Callable[[Image.Image], dict[str, Any]]:
    """The published metrics of a case's results, all by the same handles: the five."""

    def features(picture: Image.Image, which: str) -> Tensor:
        seed = published_metrics.picture_seed(f"{case.name}:{which}")
        return published_metrics.dift(sd, picture, case.prompt, seed, case.size)

    source, handles, mask = features(case.source, "source"), case.drags("five"), case.mask

    def measured(result: Image.Image) -> dict[str, Any]:
        edited = features(result, "edited")
        found = published_metrics.distances(source, edited, handles, case.source.size, mask)
        values = {name: getattr(found, name) for name in published_metrics.FORMS.values()}
        return {**values, "fidelity": published_metrics.fidelity(case.source, result)}

    return measured


def drawable(sd: StableDiffusion, case: Case, config: EditConfig) -> dict[str, Any]:
    """What the model makes of the true result itself: inverted to the drag's level and denoised from there."""
    source = editing.prepare(sd, case.truth, case.prompt, config=replace(config, lora_steps=0))
    figures = evaluate.measure(reconstruct(sd, source, config.steps - config.drag_step), case)
    return {name: figures[name] for name in ("share", "overlap", "truth_db")}


# ---------------------------------------------------------------------------------------------------- the failures

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


def why_failed(figures: Mapping[str, Any], uncontrolled: Mapping[str, Any] | None = None) -> str | None:
    """Which of `REASONS` an edit failed for; None for one that leaves half of the distance or less.

    `uncontrolled`: figures of the same drag without control.
    """
    if figures["share"] <= 0.5:
        return None
    made = figures.get("drawable")
    if made is not None and (made["share"] >= 0.25 or made["overlap"] < 0.6):
        return "model cannot draw it"
    if uncontrolled is not None and uncontrolled["share"] < 0.5:
        return "control pulls back"
    course = figures["drag"]
    if course["stop"] in REASONS:
        return course["stop"]
    if course["stop"] == "budget" and sum(course["tracked_cells"]) > 0.25 * sum(course["asked_cells"]):
        return "budget used up"
    return "drag undone"


# ------------------------------------------------------------------------------------------------- runs and folders


def run(
    folder: Path,
    listed: Sequence[Case],
    settings: Sequence[Setting],
    model: Path,
    workers: int = 1,
    published: bool = True,
    explain: bool = True,
) -> bool:
    """Do what is missing of a run. True once every case is there, which under torchrun only the last rank may see.

    Raises ValueError as `claim` does.
    """
    claim(folder, settings, model)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    missing = [case for case in listed[rank::ranks] if not (folder / case.name / "case.json").exists()]
    work = partial(_do, folder=folder, settings=settings, published=published, explain=explain)
    each(work, missing, model, workers, threads=None if ranks == 1 else 1)
    return all((folder / case.name / "case.json").exists() for case in listed)


def each(
    work: Callable[[StableDiffusion, Item], str],
    items: Sequence[Item],
    model: Path,
    workers: int = 1,
    threads: int | None = None,
) -> None:
    """Do every item with the model, and print the line that each gives, as soon as it is done.

    `workers` processes take the next item when they are free; a single one is this process, with `threads`.
    """
    if min(workers, len(items)) > 1:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(items)), _begin, (model,)) as pool:
            for line in pool.imap_unordered(partial(_with_model, work), items):
                print(line, flush=True)
    elif items:
        _begin(model, threads)
        for item in items:
            print(_with_model(work, item), flush=True)


_model: StableDiffusion | None = None  # of a worker process


def _begin(model: Path, threads: int | None = 1) -> None:
    """A worker's beginning. Several share the machine, so each computes with one thread."""
    global _model
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    _model = loading.load(model)


def _end_with(parent: Any) -> None:
    """End this process when its parent has: one that was killed tells nobody."""
    parent.join()
    os._exit(1)


def _with_model(work: Callable[[StableDiffusion, Item], str], item: Item) -> str:
    assert _model is not None
    return work(_model, item)


def _do(
    sd: StableDiffusion, case: Case, folder: Path, settings: Sequence[Setting], published: bool, explain: bool
) -> str:
    """One case, written to the run's folder; gives the line that says so."""
    begin = time.perf_counter()
    results = run_case(sd, case, settings, published, explain)
    save(folder, case, results)
    shares = "  ".join(f"{name} {result.figures['share']:.2f}" for name, result in results.items())
    return f"{case.name}  {time.perf_counter() - begin:.1f} s  {shares}"


def save(folder: Path, case: Case, results: Mapping[str, Result]) -> None:
    """A finished case, whole or not at all."""
    with whole(folder / case.name) as part:
        cases.save(case, part)
        for name, (picture, figures) in results.items():
            images.save_picture(picture, part / f"{name}.png")
            files.save_json(files.finite(figures), part / f"{name}.json")


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, there under its name once everything is written, and otherwise not at all."""
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if not folder.exists():  # another rank's, else
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def claim(folder: Path, settings: Sequence[Any], model: Path, **more: Any) -> None:
    """Make the folder and write down what the run is of, or check that the run that is there is of the same.

    `settings` are dataclasses, `more` is what else makes a run another one. Raises ValueError for a folder that holds a
    run of other settings, other weights or another of the further.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashed = sorted(model.glob("*/*.safetensors")) if model.is_dir() else [model]
    identity = {str(file.relative_to(model)) if file != model else file.name: loading.sha256(file) for file in hashed}
    said = {"settings": [asdict(setting) for setting in settings], "weights": identity, **more}
    mine = json.loads(json.dumps(said))
    path = folder / "run.json"
    if path.exists():
        theirs = json.loads(path.read_text())
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise ValueError(f"{folder}: a run with other {name}; give another folder")
        return
    files.save_json({**mine, "versions": trace.versions()}, path, overwrite=True)


Results = dict[str, dict[str, dict[str, Any]]]  # setting -> case -> figures


def read(folder: Path) -> Results:
    """Every single figure of a run, by setting and case, whatever order they were made in."""
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder}: no run; make one with `truth_bench.py run {folder}`")
    order = [setting["name"] for setting in json.loads((folder / "run.json").read_text())["settings"]]
    results: Results = {name: {} for name in order}
    for name in order:
        for file in sorted(folder.glob(f"*/{name}.json")):
            if not file.parent.name.startswith("."):
                results[name][file.parent.name] = json.loads(file.read_text())
    if not any(results.values()):
        raise ValueError(f"{folder}: no case of the run is done yet")
    return results


# ------------------------------------------------------------------------------------------------------ the tables


COLUMNS: dict[str, tuple[str, int]] = {  # heading -> figure, digits
    "distance left, share": ("share", 2),
    "left, px": ("left", 1),
    "IoU with the truth": ("overlap", 2),
    "object's colour, of 255": ("object_colour", 1),
    "object's tint, of 255": ("object_tint", 1),
    "shape kept, IoU": ("shape", 2),
    "background, of 255": ("background_error", 2),
    "background, dB": ("background_db", 1),
    "outside of the mask, of 255": ("outside_error", 2),
    "truth, dB": ("truth_db", 1),
    "truth, SSIM": ("truth_ssim", 3),
}


def summary(of_case: Mapping[str, Mapping[str, Any]], figure: str) -> intervals.Summary:
    """Mean of one figure over cases. The share left is a value for each handle that is measured."""
    if figure == "share":
        return intervals.summarise({name: [p["share"] for p in row["points"]] for name, row in of_case.items()})
    return intervals.summarise({name: [row.get(figure)] for name, row in of_case.items()})


def tables(results: Results) -> str:
    """All of a run's tables as Markdown. Means over cases with 95 % bootstrap intervals."""
    parts = [
        "## All cases", _table(_overall(results)),
        "## Share of the distance left, by kind", _table(_by_kind(results, "share")),
        "## Overlap with the truth (IoU), by kind", _table(_by_kind(results, "overlap")),
    ]  # fmt: skip
    parts += ["## What should stay, and the turn itself", _table(_staying_rows(results))]
    if any("published" in row for of_case in results.values() for row in of_case.values()):
        parts += ["## Published metrics", _table(_published_rows(results))]
        reason = published_metrics.why_no_fidelity()
        parts += [f"No image fidelity: {reason}."] if reason else []
    parts += ["## What failed, and why", _table(_failure_rows(results))]
    parts += ["\n".join(f"- {name}: {meaning}." for name, meaning in REASONS.items())]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return "None."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _overall(results: Results) -> list[dict[str, str]]:
    rows = []
    for name, of_case in results.items():
        cells = {"setting": name, "cases": str(len(of_case))}
        for heading, (figure, digits) in COLUMNS.items():
            cells[heading] = intervals.text(summary(of_case, figure).per_picture, digits)
            if figure == "share":
                cells["the same per handle"] = intervals.text(summary(of_case, figure).per_handle, digits)
                shares = [row["share"] for row in of_case.values()]
                cells["median"] = f"{statistics.median(shares):.2f}" if shares else "–"
                cells["less than half left"] = (
                    f"{sum(share < 0.5 for share in shares) / len(shares):.0%}" if shares else "–"
                )
        cells["not found"] = str(sum(not row["found"] or row["nose_found"] is False for row in of_case.values()))
        seconds = [row["seconds"]["all"] for row in of_case.values() if "seconds" in row]
        cells["seconds"] = f"{sum(seconds) / len(seconds):.1f}" if seconds else "–"
        rows.append(cells)
    return rows


def _by_kind(results: Results, figure: str) -> list[dict[str, str]]:
    rows = []
    for name, of_case in results.items():
        cells = {"setting": name}
        for kind in cases.KINDS:
            mine = {case: row for case, row in of_case.items() if row["kind"] == kind}
            cells[kind] = intervals.text(summary(mine, figure).per_picture)
        rows.append(cells)
    return rows


STAYING = {  # heading -> kind, figure
    "turn: share of the angle left": ("turn", "yaw_left"),
    "turn: head moved, px": ("turn", "centre_moved"),
    "resize: centre moved, px": ("resize", "centre_moved"),
    "protect: neighbour moved, px": ("protect", "neighbour_moved"),
    "protect: neighbour changed, of 255": ("protect", "neighbour_error"),
}


def _staying_rows(results: Results) -> list[dict[str, str]]:
    rows = []
    for name, of_case in results.items():
        cells = {"setting": name}
        for heading, (kind, figure) in STAYING.items():
            mine = {case: row for case, row in of_case.items() if row["kind"] == kind}
            cells[heading] = intervals.text(summary(mine, figure).per_picture)
        rows.append(cells)
    return rows


def _published_rows(results: Results) -> list[dict[str, str]]:
    """Each published metric under its own name, averaged as it is published."""
    rows = []
    for name, of_case in results.items():
        there = {case: row["published"] for case, row in of_case.items() if "published" in row}
        cells = {"setting": name}
        for heading, key in published_metrics.FORMS.items():
            found = intervals.summarise({case: row[key] or [] for case, row in there.items()})
            mean = found.per_picture if key in published_metrics.BY_PICTURE else found.per_handle
            cells[heading] = intervals.text(mean, 3 if key == "normalised" else 1)
        fidelity = intervals.summarise({case: [row["fidelity"]] for case, row in there.items()})
        cells["image fidelity, 1 − LPIPS"] = intervals.text(fidelity.per_picture, 3)
        rows.append(cells)
    return rows


def failures(results: Results) -> dict[str, dict[str, str]]:
    """Setting -> case -> why, of every edit that leaves more than half of the distance."""
    found: dict[str, dict[str, str]] = {}
    for name, of_case in results.items():
        edited = {case: row for case, row in of_case.items() if "drag" in row}
        without = results.get("no-control", {}) if name == MAIN else {}
        reasons = {case: why_failed(row, without.get(case)) for case, row in edited.items()}
        if edited:
            found[name] = {case: reason for case, reason in reasons.items() if reason is not None}
    return found


def _failure_rows(results: Results) -> list[dict[str, str]]:
    rows = []
    for n, (name, why) in enumerate(failures(results).items()):
        counts = Counter(why.values())
        kinds = Counter(case.rpartition("-")[0] for case in why)
        cells = {"setting": name, "failed": str(len(why)), **{reason: str(counts[reason]) for reason in REASONS}}
        if n > 0:
            cells["model cannot draw it"] = "–"
        cells["of the kinds"] = ", ".join(f"{kind} {kinds[kind]}" for kind in cases.KINDS if kinds[kind]) or "–"
        rows.append(cells)
    return rows


def summaries(results: Results) -> dict[str, Any]:
    """The tables' numbers: setting -> "all" or a kind -> figure -> means, intervals and counts."""
    figures = [figure for figure, _ in COLUMNS.values()] + ["all_left", "nose_left"]
    figures += sorted({figure for _, figure in STAYING.values()})
    found: dict[str, Any] = {}
    for name, of_case in results.items():
        for kind in ("all", *cases.KINDS):
            mine = {case: row for case, row in of_case.items() if kind in ("all", row["kind"])}
            if mine:
                of_kind = {figure: intervals.to_json(summary(mine, figure)) for figure in figures}
                halved = sum(row["share"] < 0.5 for row in mine.values()) / len(mine)
                found.setdefault(name, {})[kind] = {"cases": len(mine), "less than half left": halved, **of_kind}
    return found


def write_tables(folder: Path, rows: int = 4) -> str:
    """results.json, table.md and sheet.png of what a run's folder holds; gives the tables as text."""
    results = read(folder)
    text = tables(results)
    everything = {"summaries": summaries(results), "failures": failures(results), "results": results}
    files.save_json(files.finite(everything), folder / "results.json", overwrite=True)
    files.save_bytes(text.encode(), folder / "table.md", overwrite=True)
    images.save_picture(sheet(folder, list(results), rows), folder / "sheet.png", overwrite=True)
    return text


# ------------------------------------------------------------------------------------------------------- the sheet


def sheet(folder: Path, settings: Sequence[str], rows: int = 4, width: int = 128) -> Image.Image:
    """The first `rows` cases of each kind, one a row: source with its handles, truth, and each setting's result."""
    listed = [case for case in _cases_of(folder) if case.number < rows]
    columns = ["source", "truth", *(name for name in settings if name != NO_EDIT)]
    label, gap, font = 90, 4, ImageFont.load_default(12)
    whole = Image.new("RGB", (label + len(columns) * (width + gap), 22 + len(listed) * (width + gap)), "white")
    ink = ImageDraw.Draw(whole)
    for column, name in enumerate(columns):
        ink.text((label + column * (width + gap), 4), name, fill="black", font=font)
    for row, case in enumerate(listed):
        top = 22 + row * (width + gap)
        ink.text((4, top + 4), case.name, fill="black", font=font)
        for column, name in enumerate(columns):
            file = folder / case.name / f"{name}.png"
            if not file.is_file():
                continue
            picture = images.to_rgb(images.open_picture(file)).resize((width, width), Image.Resampling.LANCZOS)
            left = label + column * (width + gap)
            whole.paste(picture, (left, top))
            if name == "source":
                for pair in case.drags("five"):
                    scale = width / case.size
                    (x0, y0), (x1, y1) = (((x + 0.5) * scale + left, (y + 0.5) * scale + top) for x, y in pair)
                    ink.line((x0, y0, x1, y1), fill="white", width=3)
                    ink.line((x0, y0, x1, y1), fill="black", width=1)
                    ink.ellipse((x1 - 2, y1 - 2, x1 + 2, y1 + 2), fill="#2060ff", outline="white")
            else:
                share = _share(folder / case.name / f"{name}.json")
                if share is not None:
                    ink.text((left + 3, top + 2), share, fill="black", font=font, stroke_width=2, stroke_fill="white")
    return whole


def _cases_of(folder: Path) -> list[Case]:
    """The finished cases of a folder, kind by kind."""
    found = [cases.load(file.parent) for file in folder.glob("*/case.json") if not file.parent.name.startswith(".")]
    return sorted(found, key=lambda case: (cases.KINDS.index(case.kind), case.number))


def _share(file: Path) -> str | None:
    return f"{json.loads(file.read_text())['share']:.2f} left" if file.is_file() else None


# ------------------------------------------------------------------------------------------------- the command line


def arguments_of(arguments: Sequence[str] | None) -> Any:
    parser = cli.Parser(description=__doc__.split("\n\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    for name, does in (("run", "make the edits"), ("table", "the tables of a run"), ("export", "write the cases")):
        one = sub.add_parser(name, help=does, description=does)
        one.add_argument("folder", type=Path)
        if name != "export":
            one.add_argument("--rows", type=cli.whole(0), default=4, help="of each kind on the sheet")
        if name != "table":
            add_case_options(one, which="figures")
        if name == "run":
            one.add_argument("--settings", choices=tuple(SETTINGS), default="headline", help="which list of them")
            add_run_options(one)
    return parser.parse_args(arguments)


def add_case_options(parser: Any, which: str) -> None:
    parser.add_argument("--cases", choices=tuple(cases.FIRST), default=which, help="which of the two lists")
    parser.add_argument("--limit", type=cli.whole(1), help="only so many cases of each kind")
    parser.add_argument("--size", type=cli.whole(64), default=cases.SIZE, help="of the pictures, in pixels")


def add_run_options(parser: Any) -> None:
    parser.add_argument("--weights", type=Path, default=cli.SMALL)
    parser.add_argument("--workers", type=cli.whole(1), help="processes; by default one for each core")
    parser.add_argument("--no-published", dest="published", action="store_false", help="without the published metrics")


def workers_of(options: Any) -> int:
    """As asked, or one for each core that this process may use; under torchrun one for each rank."""
    if options.workers is not None:
        return options.workers
    return 1 if "WORLD_SIZE" in os.environ else len(os.sched_getaffinity(0))


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = arguments_of(arguments)
        if options.command == "export":
            options.folder.mkdir(parents=True, exist_ok=True)
            for case in cases.cases(options.cases, options.limit, options.size):
                save(options.folder, case, {})
        elif options.command == "table":
            print(write_tables(options.folder, options.rows))
        else:
            begin = time.perf_counter()
            listed = cases.cases(options.cases, options.limit, options.size)
            settings = SETTINGS[options.settings](options.size)
            workers = workers_of(options)
            if run(options.folder, listed, settings, options.weights, workers, options.published):
                print(write_tables(options.folder, options.rows))
            print(f"{time.perf_counter() - begin:.0f} s in this run", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"truth_bench: error: {cli.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs of many edits: their settings, who does what, and a folder that holds each finished piece whole or not at all.

A setting is an edit's numbers under a name; there are lists of them that are compared, each made from `ours`: the
preset that suits the weights, at the cases' size. None pastes: what is measured is what the networks drew, outside of
the mask too.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dragsa import files, loading, pictures
from dragsa.config import EditConfig, LoRAConfig
from dragsa.evaluation import cases, lists
from dragsa.evaluation.edits import SIZE, Edit
from dragsa.loading import StableDiffusion

NO_EDIT, RECONSTRUCTION, MAIN = "no-edit", "reconstruction", "five-handles"
WARPED = "warped"
CAPTION = "caption"
GUIDANCE = 6.0  # at which the small model follows a changed prompt


@dataclass(frozen=True)
class Setting:
    """A row of the table: an edit's numbers, and the handles that ask for it.

    Without a config no network is used: the source itself is the result, or with handles its pixels are warped. Without
    a variant of handles ("one", "five") the result is the source inverted and denoised again, with no edit. "caption"
    for handles: nothing is dragged, the result is asked for by the prompt alone. `dtype`: of the networks; what is
    measured of results is measured in float32. `fitted`: where one handle stands for a whole object, its patch is the
    square that fits in there (see `config_for`).
    """

    name: str
    config: EditConfig | None = None
    handles: str | None = None
    dtype: str = "float32"
    fitted: bool = False

    def config_for(self, case: Edit) -> EditConfig | None:
        """Return the config; a fitted one with the case's own r_1."""
        if self.config is None or not self.fitted or case.kind not in cases.WHOLE:
            return self.config
        working = pictures.working_size(case.size, case.size, self.config.size)
        cells = pictures.grid_size(working)[0]  # of the supervision grid, to the case's width
        # Half the side of the square that fits into the circle round what moves; of two, the smaller.
        half = min(before.size for before, _ in case.moving) / math.sqrt(8)
        return replace(self.config, drag=replace(self.config.drag, radius=max(1, round(half * cells))))


def _as_ours(ours: EditConfig, other: EditConfig) -> EditConfig:
    """Return other settings for the same pictures, measured alike."""
    return replace(other, size=ours.size, paste=ours.paste)


def headline(ours: EditConfig) -> list[Setting]:
    """Return the reported settings: ours, variations of it, and the paper's.

    A small patch on an object's even middle is content as soon as that has arrived, before the rest.
    """
    return [
        Setting(NO_EDIT),
        Setting(RECONSTRUCTION, ours),
        Setting(MAIN, ours, "five"),
        Setting("one-handle", ours, "one", fitted=True),
        Setting("no-control", replace(ours, control_step=None), "five"),
        Setting("blended", replace(ours, blend=True), "five"),
        Setting("paper", _as_ours(ours, EditConfig.paper()), "five"),
        Setting(WARPED, None, "five"),
    ]


def parts(ours: EditConfig) -> list[Setting]:
    """Return ours, and the same without some of its parts.

    "adam" has an optimiser that scales each element by itself. "not-anchored" pulls as the paper prints it, to the
    current latent's patch alone; with and without control, since the anchor holds the colours that control is for.
    """
    loose = replace(ours, drag=replace(ours.drag, anchor=0.0))
    configs = {
        MAIN: ours,
        "no-control": replace(ours, control_step=None),
        "adam": replace(ours, drag=replace(ours.drag, optimizer="adam")),
        "not-anchored": loose,
        "not-anchored-no-control": replace(loose, control_step=None),
    }
    return [Setting(NO_EDIT), *(Setting(name, config, "five") for name, config in configs.items())]


def rivals(ours: EditConfig) -> list[Setting]:
    """Return ours beside others' methods, by our numbers.

    MasaCtrl, which drags nothing, is asked by the caption, at the guidance that the small models want.
    """
    return [Setting(NO_EDIT), *drag_rivals(ours), _masactrl(ours)]


def _masactrl(ours: EditConfig) -> Setting:
    config = EditConfig.masactrl(steps=ours.steps, guidance=GUIDANCE, source_kv="none")
    return Setting("masactrl", _as_ours(ours, config), CAPTION)


def everything(ours: EditConfig) -> list[Setting]:
    """Return ours with and without control, the paper's numbers as it prints them, others' methods, and no network."""
    first, *others = drag_rivals(ours)
    more = [
        Setting("no-control", replace(ours, control_step=None), "five"),
        Setting("as-printed", _as_ours(ours, EditConfig.paper_printed()), "five"),
    ]
    return _beside(ours, [first, *more, *others])


def _beside(ours: EditConfig, drags: Sequence[Setting]) -> list[Setting]:
    """Return settings that drag, between what changes nothing and what asks without a drag or a network."""
    nothing = [Setting(NO_EDIT), Setting(RECONSTRUCTION, ours)]
    return [*nothing, *drags, _masactrl(ours), Setting(WARPED, None, "five")]


def without_network(_: EditConfig) -> list[Setting]:
    """Return what no network does."""
    return [Setting(NO_EDIT), Setting(WARPED, None, "five")]


def drag_rivals(ours: EditConfig) -> list[Setting]:
    """Return ours, and DragDiffusion by the same numbers wherever these are not its method's own.

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


def published(ours: EditConfig) -> list[Setting]:
    """Return ours by the preset and as printed, each with and without control, and DragDiffusion as it was published.

    Its first program, which the paper compares with, drags z_40 for 40 updates or until the handles are a cell from
    their targets, without control, under a LoRA of 200 steps or none; its last one z_35 for 80 updates or to two cells,
    with control and 80 steps. Both read features at their own tap, and in rows of their own at ours where that differs.
    """
    printed_ones, last = (_as_ours(ours, one) for one in (EditConfig.paper_printed(), EditConfig.dragdiffusion()))
    first = replace(last, drag=replace(last.drag, updates=40, reach=1.0), drag_step=10, control_step=None)
    configs = {
        "ours": ours,
        "no-control": replace(ours, control_step=None),
        "as-printed": printed_ones,
        "as-printed-no-control": replace(printed_ones, control_step=None),
    }
    taps = {last.drag.tap: ""}
    taps.setdefault(ours.drag.tap, "-our-tap")  # SD 1.5's preset reads features where DragDiffusion does
    for tap, suffix in taps.items():
        for name, program, steps in (("first-program", first, 200), ("last-program", last, LoRAConfig().steps)):
            config = replace(program, drag=replace(program.drag, tap=tap))
            configs[name + suffix] = config
            configs[f"{name}{suffix}-lora"] = replace(config, lora_steps=steps)
    return _beside(ours, [Setting(name, config, "five") for name, config in configs.items()])


def precision(ours: EditConfig) -> list[Setting]:
    """Return ours with networks of each type."""
    return [Setting(NO_EDIT), Setting(MAIN, ours, "five"), Setting("bfloat16", ours, "five", "bfloat16")]


def printed(ours: EditConfig) -> list[Setting]:
    """Return the paper's settings with DragDiffusion's Adam and mean, and with the descent and the sum it prints."""
    paper, as_printed = (_as_ours(ours, one) for one in (EditConfig.paper(), EditConfig.paper_printed()))
    return [Setting(NO_EDIT), Setting("paper", paper, "five"), Setting("as-printed", as_printed, "five")]


SETTINGS = {
    "headline": headline,
    "parts": parts,
    "rivals": rivals,
    "published": published,
    "all": everything,
    "precision": precision,
    "printed": printed,
    "warped": without_network,
}


# -------------------------------------------------------------------------------------------------------------- runs


def claim(folder: Path, settings: Sequence[Any], model: Path, **more: Any) -> None:
    """Make the folder and write down what the run is of, or check that the run that is there is of the same.

    `settings` are dataclasses, `more` is what else makes a run another one. Raises ValueError for a folder that holds a
    run of other settings, other weights or another of the further.
    """
    folder.mkdir(parents=True, exist_ok=True)
    networks = sorted(model.glob("*/*.safetensors")) if model.is_dir() else [model]
    identity = {str(file.relative_to(model)) if file != model else file.name: loading.sha256(file) for file in networks}
    said = {"settings": [asdict(setting) for setting in settings], "weights": identity, **more}
    mine = json.loads(json.dumps(said))
    path = folder / "run.json"
    if path.exists():
        theirs = json.loads(path.read_text())
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise ValueError(f"{folder}: a run with other {name}; give another folder")
        return
    files.save_json({**mine, "versions": pictures.versions()}, path, overwrite=True)


def save(folder: Path, images: Mapping[str, Image.Image], values: Mapping[str, Any]) -> None:
    """Write a finished piece, whole or not at all: pictures as <name>.png, and values as <name>.json."""
    with files.whole_folder(folder) as part:
        for name, picture in images.items():
            pictures.save_picture(picture, part / f"{name}.png")
        for name, value in values.items():
            files.save_json(files.finite(value), part / f"{name}.json")


def each(work: Callable[[StableDiffusion, Any], str], items: Sequence[Any], model: Path, workers: int = 1) -> None:
    """Do every item with the model, and print the line that each gives, as soon as it is done.

    `workers` processes take the next item when they are free; a single one is this process. Each computes with one
    thread, so that seconds mean the same however many there are. Raises ChildProcessError if a worker is killed, and
    what `work` raises.
    """
    if min(workers, len(items)) > 1:
        share_out(partial(_with_model, model, work), items, min(workers, len(items)))
    elif items:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sd = loading.load(model)
            for item in items:
                print(work(sd, item), flush=True)
        finally:
            torch.set_num_threads(threads)


def share_out(work: Callable[[Any], str], items: Sequence[Any], workers: int) -> None:
    """Do every item in one of so many processes, of one thread each, and print the line that it gives as it is done.

    Raises ChildProcessError if a process is killed, and what `work` raises.
    """
    pool, waiting = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin), iter(items)
    try:
        running = {pool.submit(work, item) for item in islice(waiting, workers)}
        while running:  # none is queued: after an error no item is begun
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                print(one.result(), flush=True)
            running |= {pool.submit(work, item) for item in islice(waiting, len(done))}
    except BrokenProcessPool:
        raise ChildProcessError(
            "a worker was killed, perhaps for want of memory; run the same again to go on, with fewer --workers"
        ) from None
    finally:
        pool.shutdown()


def _begin() -> None:
    """Begin a worker, which computes with one thread."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process when its parent has: one that was killed tells nobody."""
    parent.join()
    os._exit(1)


_load = cache(loading.load)  # of a worker process, for all its items


def _with_model(model: Path, work: Callable[[StableDiffusion, Any], str], item: Any) -> str:
    return work(_load(model), item)


Results = dict[str, dict[str, dict[str, Any]]]  # setting -> case -> figures


def read(folder: Path) -> Results:
    """Return every single figure of a run by setting and case, whatever order they were made in.

    Raises ValueError for a folder without a run, or with no finished case.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder}: no run; make one with `truth_bench.py run {folder}`")
    order = [setting["name"] for setting in json.loads((folder / "run.json").read_text())["settings"]]
    results: Results = {
        name: {file.parent.name: json.loads(file.read_text()) for file in sorted(folder.glob(f"[!.]*/{name}.json"))}
        for name in order
    }
    if not any(results.values()):
        raise ValueError(f"{folder}: no case of the run is done yet")
    return results


def default_workers() -> int:
    """Return one worker for each core that this process may use; under torchrun one for each rank."""
    return 1 if "WORLD_SIZE" in os.environ else len(os.sched_getaffinity(0))


def add_case_options(parser: ArgumentParser, whole: Callable[[int], Any], which: str) -> None:
    """Add the options that choose cases, by default of the list `which`. `whole(n)` reads a whole number from n on."""
    parser.add_argument("--list", choices=lists.NAMES, default=lists.DRAWN, help="of drawn scenes, or of artwork")
    parser.add_argument(
        "--cases", choices=tuple(cases.FIRST), default=which, help="for figures, or to choose settings on"
    )
    parser.add_argument("--limit", type=whole(1), help="only so many cases of each kind")
    parser.add_argument("--size", type=whole(64), default=SIZE, help="of the pictures, in pixels")


def add_run_options(parser: ArgumentParser, whole: Callable[[int], Any]) -> None:
    """Add the options of a run. `whole(n)` reads a whole number from n on."""
    parser.add_argument("--weights", type=Path, help=lists.WEIGHTS_HELP)
    parser.add_argument("--workers", type=whole(1), help="processes, of one thread each; by default one for each core")
    parser.add_argument("--no-published", dest="published", action="store_false", help="without the published metrics")

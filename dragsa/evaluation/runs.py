"""Runs of many edits: who does what, and a folder that holds each finished piece whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from dragsa import files, loading, pictures
from dragsa.evaluation import cases
from dragsa.loading import StableDiffusion

Item = TypeVar("Item")


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
    """Begin a worker. Several share the machine, so each computes with one thread."""
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


Results = dict[str, dict[str, dict[str, Any]]]  # setting -> case -> figures


def read(folder: Path) -> Results:
    """Return every single figure of a run by setting and case, whatever order they were made in.

    Raises ValueError for a folder without a run, or with no finished case.
    """
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


def default_workers() -> int:
    """Return one worker for each core that this process may use; under torchrun one for each rank."""
    return 1 if "WORLD_SIZE" in os.environ else len(os.sched_getaffinity(0))


def add_case_options(parser: ArgumentParser, whole: Callable[[int], Any], which: str) -> None:
    """Add the options that choose cases, by default of the list `which`. `whole(n)` reads a whole number from n on."""
    parser.add_argument("--cases", choices=tuple(cases.FIRST), default=which, help="which of the two lists")
    parser.add_argument("--limit", type=whole(1), help="only so many cases of each kind")
    parser.add_argument("--size", type=whole(64), default=cases.SIZE, help="of the pictures, in pixels")


def add_run_options(parser: ArgumentParser, whole: Callable[[int], Any], model: Path) -> None:
    """Add the options of a run with the weights of `model`. `whole(n)` reads a whole number from n on."""
    parser.add_argument("--weights", type=Path, default=model)
    parser.add_argument("--workers", type=whole(1), help="processes; by default one for each core")
    parser.add_argument("--no-published", dest="published", action="store_false", help="without the published metrics")

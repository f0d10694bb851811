"""Measure in a process of its own each, so that no task finds memory as another left it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import torch

from dragsa import drag, motion, tracking
from dragsa.drag import FirstPass, Task
from dragsa.model.unet import UNet
from dragsa.passes import FeatureExtractor
from dragsa.speed.baseline import as_published, baseline_updates
from dragsa.speed.laps import ChildError, Clock, Lap, again
from dragsa.speed.machine import cores, peak_memory
from dragsa.speed.problems import MODES, WIDTHS, Settings, network, problem

Errand = Mapping[str, Any]  # "task", its name in `TASKS`, and what else that asks for

# --- the parent's side


def child(errand: Errand, settings: Settings, name: str = "", **environment: str) -> Iterator[Any]:
    """Yield the answers of a task in a fresh process, which waits until the next one is taken, and ends with this.

    Raises ChildError, with the name, where the process ends instead.
    """
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    program = f"from {__name__} import answer; answer()"
    command, pipe = [sys.executable, "-c", program, json.dumps([errand, asdict(settings)])], subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, env=variables) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        while True:
            with suppress(OSError):  # of a pipe whose other end is closed: then the process has said why
                os.write(process.stdin.fileno(), b"\n")
            line = process.stdout.readline()
            if not line:
                break
            yield json.loads(line)
        code = process.wait()
        complaints.seek(0)
        last = (complaints.read().strip().splitlines() or [""])[-1]
        raise ChildError(f"{name} ended with code {code}{last and f': {last}'}".lstrip())


def children(errands: Mapping[str, Errand], settings: Settings) -> dict[str, Iterator[Lap]]:
    """Return the laps of each of several tasks, in a process of its own. They raise ChildError, with its name."""
    return {name: starmap(Lap, child(errand, settings, name)) for name, errand in errands.items()}


# --- the child's side


def answer() -> None:
    """Print the next answer of the task in the arguments for each line of the standard input, and nothing else."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too
    errand, values = json.loads(sys.argv[1])
    settings = Settings(**values)
    torch.set_num_threads(settings.threads or cores())
    found = TASKS[errand["task"]](settings, errand)
    for _ in sys.stdin:
        print(json.dumps(next(found)), file=answers, flush=True)


def drag_of(settings: Settings, errand: Errand) -> tuple[UNet, Task]:
    """Return the network and the drag of a mode, with a mask or without."""
    mode = MODES[errand["mode"]]
    unet, masked = network(settings, mode.dtype), errand.get("masked", False)
    at = problem(unet.config, errand["size"], settings.device, masked, checkpoint=mode.checkpoint)
    return as_published(unet) if mode.baseline else unet, at


def updates_of(settings: Settings, errand: Errand) -> Iterator[Lap]:
    """Do updates of a mode."""
    unet, at = drag_of(settings, errand)
    if MODES[errand["mode"]].baseline:
        return (update.lap for update in baseline_updates(unet, at))
    return drag_laps(unet, at)


def drag_laps(unet: FeatureExtractor, task: Task, first_pass: FirstPass | None = None) -> Iterator[Lap]:
    """Do the package's own updates, without end, and yield the seconds of each by part."""
    clock = Clock(task.latent.device)
    for update in drag.updates(unet, task, clock.lap, first_pass):
        yield Lap(clock.seconds, update.loss)
        clock.restart()


def one_handle_of(settings: Settings, errand: Errand) -> Iterator[Lap]:
    """Do the patch loss and its gradient, or tracking, for one handle: on the whole map, or fused."""
    config, dense = WIDTHS[settings.width][0], errand["dense"]
    at = problem(config, errand["size"], settings.device, masked=False)
    grid, generator = at.grid, torch.Generator().manual_seed(1)
    features = torch.randn(1, config.widths[1], *at.latent.shape[2:], generator=generator)  # as decoder3 has them
    features = features.to(at.latent.device)
    loss = motion.motion_supervision_loss_reference if dense else motion.motion_supervision_loss
    track_points = tracking.track_points_reference if dense else tracking.track_points
    reference = tracking.sample_points(features, at.handles, grid)

    leaf = features.clone().requires_grad_()

    def loss_and_gradient() -> None:
        with torch.enable_grad():
            torch.autograd.grad(loss(leaf, at.handles, at.targets, at.config.radius, grid), leaf)

    def track() -> None:
        track_points(features, reference, at.handles, at.config.track_radius, grid)

    action = loss_and_gradient if errand["task"] == "fused" else track
    return again(action, features.device, times=1 if dense else 20)  # one of the fused is too short for the clock


def memory_of(settings: Settings, errand: Errand) -> Iterator[int]:
    """Do one update as it is from the second one on, with a first pass to compare with; yield the peak memory, bytes.

    Without a mode: load the network's weights alone, or without a type of these either, nothing.
    """
    if errand["mode"] is not None:
        unet, at = drag_of(settings, errand)
        z, mode = at.latent, MODES[errand["mode"]]
        size = at.grid if mode.baseline else z.shape[2:]
        first_pass = FirstPass(z.new_zeros(1, unet.config.widths[1], *size, dtype=mode.dtype), z, at.handles)
        next(iter((baseline_updates if mode.baseline else drag.updates)(unet, at, first_pass=first_pass)))
    elif "dtype" in errand:
        network(settings, getattr(torch, errand["dtype"]))
    yield peak_memory(settings.device)


def compiled_of(settings: Settings, errand: Errand) -> Iterator[dict[str, Any]]:
    """Do the first compiled update, and later ones in turns with eager ones; yield the seconds of all."""
    unet, at = drag_of(settings, errand)
    compiled = at._replace(config=replace(at.config, compile=errand["compile"]))
    cases = {"eager": drag_laps(unet, at), "compiled": drag_laps(unet, compiled)}
    next(cases["eager"])
    if errand["compile"] == "whole":  # whose first update, with nothing to compare with, is eager
        next(cases["compiled"])
    first = next(cases["compiled"]).total
    turns = [{name: next(case).total for name, case in cases.items()} for _ in range(errand["repeats"])]
    yield {"first": first, **{name: [turn[name] for turn in turns] for name in cases}}


TASKS: dict[str, Callable[[Settings, Errand], Iterator[Any]]] = {
    "update": updates_of,
    "fused": one_handle_of,
    "tracking": one_handle_of,
    "memory": memory_of,
    "compile": compiled_of,
}

"""The tasks of a child process: `python -m dragsa.speed.tasks JSON` prints an answer for each line that it is sent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from dragsa import drag, motion, tracking
from dragsa.model.unet import UNet
from dragsa.speed.baseline import FirstPass, as_published, baseline_step, baseline_updates
from dragsa.speed.laps import Clock, Lap, again
from dragsa.speed.loop import drag_laps
from dragsa.speed.machine import cores, peak_memory
from dragsa.speed.problems import MODES, WIDTHS, Errand, Settings, network, problem


def drag_of(settings: Settings, task: Errand) -> tuple[UNet, drag.Task]:
    """Return the network and the drag of a task's mode."""
    mode = MODES[task["mode"]]
    unet = network(settings, mode.dtype)
    masked = task.get("masked", False)
    at = problem(unet.config, task["size"], settings.device, masked, checkpoint=mode.checkpoint)
    return as_published(unet) if mode.baseline else unet, at


def updates_of(settings: Settings, task: Errand) -> Iterator[Lap]:
    """Do updates of a mode, with a mask or without."""
    unet, at = drag_of(settings, task)
    if MODES[task["mode"]].baseline:
        return (update.lap for update in baseline_updates(unet, at))
    return drag_laps(unet, at)


def one_handle_of(settings: Settings, task: Errand) -> Iterator[Lap]:
    """Do the patch loss and its gradient, or tracking, for one handle: on the whole map, or fused."""
    config, dense = WIDTHS[settings.width][0], task["dense"]
    at = problem(config, task["size"], settings.device, masked=False)
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

    action = loss_and_gradient if task["task"] == "fused" else track
    return again(action, features.device, times=1 if dense else 20)  # one of the fused is too short for the clock


def memory_of(settings: Settings, task: Errand) -> Iterator[int]:
    """Do one update as it is from the second one on, with a first pass to compare with; yield the peak memory, bytes.

    Without a mode: load the network's weights alone, or without a type of these either, nothing.
    """
    if task["mode"] is not None:
        unet, at = drag_of(settings, task)
        z, channels, mode = at.latent, unet.config.widths[1], MODES[task["mode"]]
        if mode.baseline:
            first_pass = FirstPass(z.new_zeros(1, channels, *at.grid), z, at.handles)
            latent = z.clone().requires_grad_()
            latent.grad = baseline_step(unet, latent, at, at.handles, first_pass, Clock(z.device)).gradient
            torch.optim.Adam([latent], lr=at.config.lr).step()  # made here, when the pass has left its memory
        else:
            features = z.new_zeros(1, channels, *z.shape[2:]).to(mode.dtype)
            first = drag.FirstPass(features, z if task["masked"] else None, at.handles)
            next(drag_laps(unet, at, first))
    elif "dtype" in task:
        network(settings, getattr(torch, task["dtype"]))
    yield peak_memory(settings.device)


def compiled_of(settings: Settings, task: Errand) -> Iterator[dict[str, Any]]:
    """Do the first compiled update, and later ones in turns with eager ones; yield the seconds of all."""
    unet, at = drag_of(settings, task)
    compiled = at._replace(config=replace(at.config, compile=task["compile"]))
    cases = {"eager": drag_laps(unet, at), "compiled": drag_laps(unet, compiled)}
    next(cases["eager"])
    if task["compile"] == "whole":  # whose first update, with nothing to compare with, is eager
        next(cases["compiled"])
    first = next(cases["compiled"]).total
    turns = [{name: next(case).total for name, case in cases.items()} for _ in range(task["repeats"])]
    yield {"first": first, **{name: [turn[name] for turn in turns] for name in cases}}


TASKS: dict[str, Callable[[Settings, Errand], Iterator[Any]]] = {
    "update": updates_of,
    "fused": one_handle_of,
    "tracking": one_handle_of,
    "memory": memory_of,
    "compile": compiled_of,
}


def main(argument: str) -> None:
    """Print the next answer of a task for each line of the standard input, and nothing else."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print, too
    task = json.loads(argument)
    settings = Settings(**task["settings"])
    torch.set_num_threads(settings.threads or cores())
    found = TASKS[task["task"]](settings, task)
    for _ in sys.stdin:
        print(json.dumps(next(found)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

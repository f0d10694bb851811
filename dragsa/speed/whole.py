"""A whole edit by stages, and a second one of the same picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dragsa import ddim, editing, loading, pictures
from dragsa.config import DragConfig, EditConfig
from dragsa.drag import Task
from dragsa.editing import Drag, Source
from dragsa.loading import StableDiffusion
from dragsa.model.vae import VAE
from dragsa.speed.baseline import as_published, baseline_updates
from dragsa.speed.laps import Clock, Lap, Measurement, Say, measured, significant
from dragsa.speed.problems import MODES, WIDTHS, Network, Settings, lattice, seeded


class SeededModel(StableDiffusion):
    """A model for an edit whose prompt stands for nothing: it has no text encoder."""

    @property
    def provenance(self) -> str:
        return "seeded values"

    def check_finite(self) -> None:
        """Look at nothing: seeded values are finite, and there is no text encoder to look at."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Return a context of noise, (B, 77, C)."""
        noise = torch.randn(1, 77, self.unet.config.context_dim, generator=torch.Generator().manual_seed(0))
        return noise.to(self.device).expand(len(prompts), -1, -1)


def measure_whole(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Time a whole edit by stages, once, with few steps; and a second one of the same picture.

    Before each mode's a small picture is edited, which is not counted.
    """
    steps, rows = max(2, settings.steps), []
    for name in settings.modes:
        mode = MODES[name]
        net, device = unet(mode.dtype), torch.device(settings.device)
        if settings.weights is None:
            vae = seeded(VAE, WIDTHS[settings.width][1], mode.dtype, device)
        else:
            vae = loading.load(settings.weights, device, mode.dtype).vae
        nothing: Any = None
        model = SeededModel(as_published(net) if mode.baseline else net, vae, text=nothing, config=nothing)
        say(f"whole edit at {size} px: {name}")
        drag = DragConfig(
            "decoder3", settings.updates, reach=0.0, patience=None, lost_patience=None, checkpoint=mode.checkpoint
        )
        for side in (64, size):
            config = EditConfig(drag, steps, drag_step=1, control_step=1, size=side)
            source = editing.prepare(model, Image.new("RGB", (side, side), "grey"), config=config)
            ((x0, y0),), ((x1, y1),) = (points.tolist() for points in lattice(1, side))
            drags: list[Drag] = [((x0, y0), (x1, y1))]
            edit = baseline_edit if mode.baseline else package_edit
            first, second = (edit(model, source, drags, config) for _ in range(2))
        first = Lap({**source.seconds, **first.seconds})
        note = f"once: T = {steps}, S = 1, {settings.updates} updates; the paper's 50, 10 and 80 at these rates"
        for case, lap in ((name, first), (f"{name}, second edit", second)):
            seconds = paper_seconds(lap.seconds, steps, settings.updates)
            rows.append(measured("whole", case, size, [lap], f"{note} {significant(seconds)} s"))
    return rows


def package_edit(model: StableDiffusion, source: Source, drags: Sequence[Drag], config: EditConfig) -> Lap:
    """Edit as this package does, and return the seconds of each stage."""
    return Lap(editing.edit(model, source, drags, config=config).trace.seconds)


def baseline_edit(model: StableDiffusion, source: Source, drags: Sequence[Drag], config: EditConfig) -> Lap:
    """Edit with the baseline's drag, and the source denoised beside the target every time."""
    clock = Clock(model.device)
    branch = editing.leave(model, source, drags=drags, config=replace(config, source_kv="none"))
    size, noise = source.picture.size, ddim.noise_at(source.schedule, branch.level, model.device)
    handles, targets, _ = pictures.drags_to_grid(drags, size, branch.grid_size)
    task = Task(branch.z_target, noise, branch.target_guided.context, handles, targets, None, config.drag)
    for update in islice(baseline_updates(model.unet, task), config.drag.updates):
        branch = replace(branch, z_target=update.latent)
    clock.lap("drag")
    z_0 = editing.denoise(branch).z_target
    clock.lap("denoising")
    model.decode(z_0)
    clock.lap("decode")
    return Lap(clock.seconds)


def paper_seconds(seconds: Mapping[str, float], steps: int, updates: int) -> float:
    """Return the seconds of the paper's T = 50, S = 10 and 80 updates at the rates of a shorter edit with S = 1."""
    times = {"inversion": 50 / steps, "drag": 80 / max(1, updates), "denoising": 40 / (steps - 1)}
    return sum(value * times.get(stage, 1.0) for stage, value in seconds.items())

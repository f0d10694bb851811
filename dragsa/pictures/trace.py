"""An edit's report: events while it runs, told to an observer, and a trace of every number when it is done."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import torch

from dragsa import files
from dragsa.config import EditConfig, LoRAConfig
from dragsa.pictures import html
from dragsa.pictures.images import Point, Size

# What the JSON has, in its order.
TOLD = ["weights", "source", "prompt", "target_prompt", "seed", "picture_size", "working_size", "grid_size", "part"]
TOLD += ["config", "masked", "drags", "stop", "inversion_residual", "lora", "control", "source_kv", "updates"]
TOLD += ["seconds", "versions"]
STAGES = ("encode", "lora", "inversion", "generation", "drag", "denoising", "decode")


@dataclass(frozen=True)
class StageProgress:
    """`done` of `total` steps of a stage (one of `STAGES`) are done.

    A stage begins with done = 0 and ends with done = total, also where it took fewer steps than it might have.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class DragProgress:
    """One update of the drag loop: its loss, and the handles it used with their distances to the targets.

    Handles (n, 2) and distances (n,) are in cells of the supervision grid.
    """

    update: int  # from 1
    total: int
    loss: float
    handles: list[list[float]]
    distances: list[float]
    latent: torch.Tensor | None = field(default=None, repr=False, compare=False)  # (1, 4, h, w) after the update


# Told of an edit's course; where it returns "stop" at a `DragProgress` the drag ends there and the picture is finished.
Observer = Callable[[StageProgress | DragProgress], object]


class Report:
    """Tells an observer how far the stages are, and keeps how long they took."""

    def __init__(self, observe: Observer | None, device: torch.device) -> None:
        self.observe = observe
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """Time a stage of `total` steps; gives the function that is told how many are done."""

        def step(done: int, total: int = total) -> None:
            if self.observe is not None:
                self.observe(StageProgress(name, done, total))

        step(0)
        begin = self._now()
        yield step
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin
        step(total)

    def _now(self) -> float:
        """Seconds, once the device has done what it was given: a stage is not billed for the one before."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def update(self, update: Any) -> object:
        """Pass an update of the drag loop on, and return what the observer does."""
        if self.observe is None:
            return None
        points, distances = update.handles.tolist(), update.distances.tolist()
        event = DragProgress(update.update, update.total, update.loss, points, distances, update.latent)
        return self.observe(event)


def versions() -> dict[str, str]:
    """Return the versions that an edit's numbers depend on: Python's and those of the packages that compute."""
    found = {"python": platform.python_version()}
    for name in ("dragsa", "torch", "transformers", "safetensors", "numpy", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Trace:
    """An edit's settings, its course and its cost. Points are pixels of the picture as given.

    Tracking reports where the object's features were found, which need not be where the object is in the result.
    """

    config: EditConfig
    seed: int
    prompt: str
    target_prompt: str | None
    generated: bool  # the source was drawn from noise; otherwise a picture was inverted
    picture_size: Size
    working_size: Size
    grid_size: Size
    weights: str  # where the weights came from
    drags: tuple[tuple[Point, Point], ...] = ()  # (handle, target) as asked
    masked: bool = False
    losses: tuple[float, ...] = ()  # one per update
    handles: tuple[tuple[Point, ...], ...] = ()  # (updates, n, 2): those that each update used
    tracked: tuple[Point, ...] = ()  # (n, 2): where tracking found the handles last
    # (n, 2): where what was about the handles is in the result, by its pixels; None where that is not sure.
    found: tuple[Point | None, ...] = ()
    stop: str | None = None  # why the drag loop ended; None where there was no drag
    inversion_residual: float | None = None  # fixed-point inversion: the largest of its steps' last changes
    lora_losses: tuple[float, ...] = ()  # one for each step that trained the picture's LoRA; none without one
    control: str | None = None  # the repr of a control of the caller's own; None for the one that the config names
    # Where the source's K and V came from: "computed" beside the target; "recorded" in an earlier pass, as exact;
    # "inversion", an approximation. None where control never acted.
    source_kv: str | None = "computed"
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    negative_prompt: str = ""
    versions: dict[str, str] = field(default_factory=versions)
    # Left, top, right and bottom of what was cut out and edited at the working size; None: the whole picture was.
    part: tuple[int, int, int, int] | None = None

    def _repr_html_(self) -> str:
        return html.trace_html(self)

    @property
    def distances_px(self) -> tuple[tuple[float, ...], ...]:
        """Distances from each update's handles to the targets (updates, n), in pixels of the picture."""
        return tuple(self.distances_of(row)[0] for row in self.handles)

    @property
    def distances(self) -> tuple[tuple[float, ...], ...]:
        """The same distances (updates, n) in cells of the supervision grid, as the loop's own rules take them."""
        return tuple(self.distances_of(row)[1] for row in self.handles)

    def distances_of(self, points: Sequence[Point]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the points' distances to the targets (n,), in pixels and in cells of the supervision grid."""
        left, top, right, bottom = self.part or (0, 0, *self.picture_size)
        width, height = self.grid_size[0] / (right - left), self.grid_size[1] / (bottom - top)  # of a pixel, in cells
        apart = [(tx - x, ty - y) for (x, y), (_, (tx, ty)) in zip(points, self.drags, strict=True)]
        return tuple(math.hypot(*way) for way in apart), tuple(math.hypot(x * width, y * height) for x, y in apart)


def to_json(trace: Trace) -> dict[str, Any]:
    """Return the trace as values that strict JSON can hold; a number that is not finite becomes null."""
    drags: list[dict[str, Any]] = [
        {"handle": handle, "target": target, "distance_px": math.dist(handle, target)} for handle, target in trace.drags
    ]
    if trace.tracked:
        left_px, left = trace.distances_of(trace.tracked)
        for drag, point, px, cells in zip(drags, trace.tracked, left_px, left, strict=True):
            drag |= {"tracked": point, "tracked_distance_px": px, "tracked_distance_cells": cells}
    for drag, place in zip(drags, trace.found, strict=False):
        drag["found"] = "not sure" if place is None else place
    columns = zip(trace.losses, trace.handles, trace.distances_px, trace.distances, strict=True)
    keys = "loss", "handles", "distances_px", "distances_cells"
    updates = [dict(zip(keys, row, strict=True)) for row in columns]
    losses = list(trace.lora_losses)
    told = {
        **asdict(trace),
        "source": "generated" if trace.generated else "picture",
        "control": trace.control or trace.config.control,
        "drags": drags,
        "updates": updates,
        "lora": {**asdict(LoRAConfig(steps=len(losses))), "losses": losses} if losses else None,
    }
    return files.finite({name: told[name] for name in TOLD})

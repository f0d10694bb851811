"""An edit's report: events while it runs, and a trace of every number when it is done."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from dragsa import files
from dragsa.config import EditConfig, LoRAConfig
from dragsa.pictures.images import Point, Size

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


Observer = Callable[[StageProgress | DragProgress], None]


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
    stop: str | None = None  # why the drag loop ended; None where there was no drag
    inversion_residual: float | None = None  # fixed-point inversion: the largest of its steps' last changes
    lora_losses: tuple[float, ...] = ()  # one for each step that trained the picture's LoRA; none without one
    # Where the source's K and V came from: "computed" beside the target; "recorded" in an earlier pass, as exact;
    # "inversion", an approximation. None where control never acted.
    source_kv: str | None = "computed"
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    negative_prompt: str = ""
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def distances_px(self) -> tuple[tuple[float, ...], ...]:
        """Distances from each update's handles to the targets (updates, n), in pixels of the picture."""
        return tuple(self._distances(row, (1.0, 1.0)) for row in self.handles)

    @property
    def distances(self) -> tuple[tuple[float, ...], ...]:
        """The same distances (updates, n) in cells of the supervision grid, as the loop's own rules take them."""
        return tuple(self._distances(row, self._cells) for row in self.handles)

    @property
    def _cells(self) -> Point:
        """Cells per pixel in x and y."""
        return self.grid_size[0] / self.picture_size[0], self.grid_size[1] / self.picture_size[1]

    def _distances(self, points: Sequence[Point], scale: Point) -> tuple[float, ...]:
        targets = [target for _, target in self.drags]
        return tuple(
            math.hypot((tx - x) * scale[0], (ty - y) * scale[1])
            for (x, y), (tx, ty) in zip(points, targets, strict=True)
        )


def to_json(trace: Trace) -> dict[str, Any]:
    """Return the trace as values that strict JSON can hold; a number that is not finite becomes null."""
    drags = [
        {"handle": list(handle), "target": list(target), "distance_px": math.dist(handle, target)}
        for handle, target in trace.drags
    ]
    if trace.tracked:
        left_px, left = trace._distances(trace.tracked, (1.0, 1.0)), trace._distances(trace.tracked, trace._cells)
        for n, drag in enumerate(drags):
            drag["tracked"] = list(trace.tracked[n])
            drag["tracked_distance_px"], drag["tracked_distance_cells"] = left_px[n], left[n]
    columns = zip(trace.losses, trace.handles, trace.distances_px, trace.distances, strict=True)
    updates = [
        {"loss": loss, "handles": [list(p) for p in handles], "distances_px": list(px), "distances_cells": list(cells)}
        for loss, handles, px, cells in columns
    ]
    losses = list(trace.lora_losses)
    lora = {**asdict(LoRAConfig(steps=len(losses))), "losses": losses} if losses else None
    return files.finite(
        {
            "weights": trace.weights,
            "source": "generated" if trace.generated else "picture",
            "prompt": trace.prompt,
            "target_prompt": trace.target_prompt,
            "seed": trace.seed,
            "picture_size": list(trace.picture_size),
            "working_size": list(trace.working_size),
            "grid_size": list(trace.grid_size),
            "config": asdict(trace.config),
            "masked": trace.masked,
            "drags": drags,
            "stop": trace.stop,
            "inversion_residual": trace.inversion_residual,
            "lora": lora,
            "source_kv": trace.source_kv,
            "updates": updates,
            "seconds": dict(trace.seconds),
            "versions": dict(trace.versions),
        }
    )

"""Progress of an edit's stages, told to an observer, and how long they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dragsa.pictures import trace
from dragsa.pictures.trace import Observer


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
                self.observe(trace.StageProgress(name, done, total))

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

    def update(self, update: Any) -> None:
        """Pass an update of the drag loop on."""
        if self.observe is not None:
            points, distances = update.handles.tolist(), update.distances.tolist()
            self.observe(trace.DragProgress(update.update, update.total, update.loss, points, distances))

"""The drag loop, `drag.updates`, timed by its parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from dragsa import drag, passes
from dragsa.drag import FirstPass, Task
from dragsa.passes import FeatureExtractor
from dragsa.speed.laps import Clock, Lap


def drag_laps(unet: FeatureExtractor, task: Task, first_pass: FirstPass | None = None) -> Iterator[Lap]:
    """Do the updates, without end, and yield the seconds of each by part."""
    clock = Clock(task.latent.device)
    for update in drag.updates(unet, task, clock.lap, first_pass):
        yield Lap(clock.seconds, update.loss)
        clock.restart()


class Traced(NamedTuple):
    """The number of graphs that served, and of different places that the handles started from."""

    graphs: int
    places: int


def traced_updates(net: FeatureExtractor, task: Task, updates: int) -> Traced:
    """Do so many compiled updates after an eager one; the backend only counts what it is given to compile."""
    graphs: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    run = passes.prepare(net, task.noise, task.context, task.config)
    compiled = passes.whole(drag.motion_supervision_step, task.latent.device.type, counting)
    step, state, places = drag.motion_supervision_step(run, task), None, set()
    first_pass = step.first_pass
    for update in range(1 + updates):
        latent, state = passes.adam(task.latent, step.gradient, state, task.config.lr)
        handles = step.handles + 0.25 * (update % 3)  # moved, whatever tracking has found
        places.add(tuple(handles.flatten().tolist()))
        task = task._replace(latent=latent, handles=handles)
        if update < updates:
            step = compiled(run, task, first_pass)
    return Traced(len(graphs), len(places))

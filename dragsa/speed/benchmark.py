"""The benchmark: its parts, and every one that is asked for, one after the other.

Updates, losses and trackings of each way are a child process's own. Every figure is the median of the repeats after one
round that is not counted. Peak memory is that of a process which does one update and nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dragsa import ddim, drag, loading, passes, pictures, source_kv
from dragsa.config import EditConfig
from dragsa.ddim import Guided, Schedule
from dragsa.drag import Task
from dragsa.model.unet import UNet
from dragsa.passes import FeatureExtractor
from dragsa.source_kv import EarlierPass
from dragsa.speed.laps import ChildError, Measurement, Say, again, in_turns
from dragsa.speed.machine import Roof, best_rates, cores, count_flops, load, machine_of
from dragsa.speed.problems import LEVEL, MODES, TINY, UPDATES, WIDTHS, Network, Settings, network, problem, seeded
from dragsa.speed.tasks import child, children, drag_laps
from dragsa.speed.whole import measure_whole


def case_name(mode: str, masked: bool) -> str:
    """Return the name of a case of "update" and "memory"."""
    return f"{mode}, mask" if masked else mode


def measure_update(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure updates of each mode, without and with a mask, by parts."""
    config, rows = unet(torch.float32).config if settings.weights else WIDTHS[settings.width][0], []
    count = cache(count_flops)  # modes differ in type alone, but for the baseline
    for masked in (False, True):
        tasks = {
            case_name(name, masked): {"task": "update", "size": size, "mode": name, "masked": masked}
            for name in settings.modes
        }
        found = in_turns("update", size, children(tasks, settings), settings.repeats, say)
        say("counting operations")
        for row, name in zip(found, settings.modes, strict=True):
            rows.append(replace(row, flops=count(config, size, masked, MODES[name].baseline)))
    return rows


def measure_memory(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure the peak memory of one update of each mode, of the weights, and of the interpreter alone."""
    cases: dict[str, dict[str, Any]] = {
        "interpreter": {"mode": None},
        "weights, float32": {"mode": None, "dtype": "float32"},
        "weights, bfloat16": {"mode": None, "dtype": "bfloat16"},
    }
    modes = settings.modes if settings.modes == ("baseline",) else MODES
    for masked in (False, True):
        cases |= {case_name(name, masked): {"mode": name, "masked": masked} for name in modes}
    rows = []
    for case, task in cases.items():
        say(f"memory at {size} px: {case}")
        try:
            peak = next(child({"task": "memory", "size": size, **task}, settings))
            rows.append(Measurement("memory", case, size, (peak,), "bytes"))
        except ChildError as error:
            rows.append(Measurement("memory", case, size, (), "bytes", note=str(error)))
    return rows


def against_dense(part: str, settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure the fused patch loss ("fused") or point tracking ("tracking") against the same on the dense map."""
    tasks = {case: {"task": part, "size": size, "dense": case == "dense"} for case in ("dense", "fused")}
    return in_turns(part, size, children(tasks, settings), max(settings.repeats, 7), say)


def measure_handles(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure an update with each number of handles."""
    net = unet(torch.float32)
    cases = {
        f"{n} handle{'s' if n > 1 else ''}": drag_laps(net, problem(net.config, size, settings.device, False, n))
        for n in settings.handles
    }
    return in_turns("handles", size, cases, settings.repeats, say)


def measure_denoise(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure denoising of a picture's first edit, beside its source, and of a later one on the source's stored K/V."""
    net, schedule = unet(torch.float32), Schedule(50)
    at = problem(net.config, size, settings.device, masked=False)
    target, stop = at.latent + 0.01, LEVEL - min(settings.steps, LEVEL)
    kept: dict[int, Any] = {}
    earlier, config = EarlierPass("recorded", kept.__getitem__, {}), EditConfig(control_step=0)

    def first() -> None:
        context = at.context.expand(2, -1, -1)
        ddim.sample_controlled(net, at.latent, target, context, schedule, LEVEL, stop, record=kept.__setitem__)

    def second() -> None:
        levels = ddim.levels_between(schedule, LEVEL, stop)
        source_kv.replayed(Guided(net, at.context), target, schedule, levels, earlier, config)

    cases = {"first edit": again(first, at.latent.device), "second edit": again(second, at.latent.device)}
    return in_turns("denoise", size, cases, settings.repeats, say)


def measure_recompiles(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Count how often the compiled step is compiled again while the handles move, without and with a mask.

    On a tiny network: what a graph is guarded by does not depend on the width.
    """
    net, recompiles, notes = seeded(UNet, TINY[0], torch.float32, torch.device("cpu")), 0, []
    for kind, masked in (("without", False), ("with a mask", True)):
        say(f"recompiles in {UPDATES} updates")
        traced = traced_updates(net, problem(net.config, 64, "cpu", masked), UPDATES)
        recompiles += traced.graphs - 1
        notes.append(f"{kind} {traced.graphs} graph for {traced.places} places of the handle")
    return [Measurement("recompiles", "whole", size, (float(recompiles),), "recompiles", note="; ".join(notes))]


class Traced(NamedTuple):
    """The number of graphs that served, and of different places that the handles started from."""

    graphs: int
    places: int


def traced_updates(net: FeatureExtractor, task: Task, updates: int) -> Traced:
    """Do so many compiled updates after an eager one; the backend only counts what it is given to compile."""
    from torch._dynamo.testing import CompileCounter  # which brings PyTorch's compiler with it

    graphs = CompileCounter()
    torch._dynamo.reset()
    run = passes.prepare(net, task.noise, task.context, task.config)
    compiled = passes.whole(drag.motion_supervision_step, task.latent.device.type, graphs)
    step, state, places = drag.motion_supervision_step(run, task), None, set()
    first_pass = step.first_pass
    for update in range(1 + updates):
        latent, state = passes.adam(task.latent, step.gradient, state, task.config.lr)
        handles = step.handles + 0.25 * (update % 3)  # moved, whatever tracking has found
        places.add(tuple(handles.flatten().tolist()))
        task = task._replace(latent=latent, handles=handles)
        if update < updates:
            step = compiled(run, task, first_pass)
    return Traced(graphs.frame_count, len(places))


def measure_compile(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure the compiled update against the eager one, and the first one: cold, and from the compiler's cache.

    Each in a fresh process.
    """
    rows, modes = [], [name for name in settings.modes if not MODES[name].baseline]
    for case, name, how in ((f"{name}, {how}", name, how) for name in modes for how in ("whole", "regions")):
        task = {"task": "compile", "size": size, "mode": name, "compile": how}
        with tempfile.TemporaryDirectory() as folder:
            try:
                say(f"compile at {size} px: {case}, cold")
                cold = next(child({**task, "repeats": 0}, settings, TORCHINDUCTOR_CACHE_DIR=folder))
                say(f"compile at {size} px: {case}, warm")
                warm = next(child({**task, "repeats": settings.repeats}, settings, TORCHINDUCTOR_CACHE_DIR=folder))
            except ChildError as error:
                rows.append(Measurement("compile", case, size, (), note=str(error)))
                continue
        rows += [
            Measurement("compile", f"{name}, eager beside {how}", size, tuple(warm["eager"])),
            Measurement("compile", case, size, tuple(warm["compiled"])),
            Measurement("compile", f"{case}: first update, cold", size, (cold["first"],)),
            Measurement("compile", f"{case}: first update, warm", size, (warm["first"],)),
        ]
    return rows


MEASURES: dict[str, Callable[[Settings, Network, int, Say], list[Measurement]]] = {
    "memory": measure_memory,  # the first, while this process holds little
    "recompiles": measure_recompiles,
    "fused": partial(against_dense, "fused"),
    "tracking": partial(against_dense, "tracking"),
    "update": measure_update,
    "handles": measure_handles,
    "denoise": measure_denoise,
    "compile": measure_compile,
    "whole": measure_whole,
}


# --- all of them


@dataclass(frozen=True)
class Report:
    """Everything that was measured, and on what machine."""

    settings: Settings
    machine: dict[str, Any]
    versions: dict[str, str]
    roofs: dict[str, Roof]  # by the type's name
    rows: tuple[Measurement, ...]
    seconds: float

    @property
    def size(self) -> int:
        """Return the side of the picture that the goals are about: 512 px, or the largest where that is missing."""
        return 512 if 512 in self.settings.sizes else max(self.settings.sizes)

    def of(self, part: str, size: int) -> list[Measurement]:
        return [row for row in self.rows if row.part == part and row.size == size]


def run(settings: Settings, say: Say = lambda text: None) -> Report:
    """Measure what the settings say. Raises ValueError for a device or weights that cannot be used."""
    device = loading.usable(settings.device, torch.float32)
    if settings.weights is not None and not Path(settings.weights).exists():
        raise loading.WeightsError(f"{settings.weights}: there is no such file or folder")
    begin, threads = time.perf_counter(), settings.threads or cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        machine, unet = machine_of(device, threads), cache(partial(network, settings))
        roofs, rows = {}, []
        for name, measure in MEASURES.items():
            if name in settings.only:
                for size in settings.sizes:
                    rows += measure(settings, unet, size, say)
        if "roof" in settings.only:
            for mode in {MODES[name].dtype: MODES[name] for name in settings.modes}.values():
                say(f"roof of {mode.type_name}")
                config = WIDTHS[settings.width][0]
                roofs[mode.type_name] = best_rates(mode.dtype, device, config, settings.repeats)
    finally:
        torch.set_num_threads(before)
    machine["load"] = [machine["load"], load()]
    return Report(settings, machine, pictures.versions(), roofs, tuple(rows), time.perf_counter() - begin)

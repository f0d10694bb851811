"""The parts of the benchmark.

Updates, losses and trackings of each way are a child process's own. Every figure is the median of the repeats after one
round that is not counted. Peak memory is that of a process which does one update and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from dragsa import ddim, source_kv
from dragsa.config import EditConfig
from dragsa.ddim import Guided, Schedule
from dragsa.model.unet import UNet
from dragsa.source_kv import EarlierPass
from dragsa.speed.laps import Measurement, Say, again, interleaved, measured
from dragsa.speed.loop import drag_laps, traced_updates
from dragsa.speed.problems import LEVEL, MODES, TINY, UPDATES, WIDTHS, Errand, Network, Settings, problem, seeded
from dragsa.speed.processes import ChildError, children, in_child
from dragsa.speed.roof import count_flops
from dragsa.speed.whole import measure_whole


def case_name(mode: str, masked: bool) -> str:
    """Return the name of a case of "update" and "memory"."""
    return f"{mode}, mask" if masked else mode


def in_turns(
    part: str, settings: Settings, size: int, say: Say, tasks: Mapping[str, Errand], repeats: int
) -> list[Measurement]:
    """Measure the laps of each task, in turns. Where a process fails, all of them have failed."""
    try:
        with children(tasks, settings) as cases:
            laps = interleaved(cases, repeats, say, f"{part} at {size} px")
    except ChildError as error:
        return [Measurement(part, case, size, (), note=str(error)) for case in tasks]
    return [measured(part, case, size, laps[case]) for case in tasks]


def measure_update(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure updates of each mode, without and with a mask, by parts."""
    config, rows = unet(torch.float32).config if settings.weights else WIDTHS[settings.width][0], []
    count = cache(count_flops)  # modes differ in type alone, but for the baseline
    for masked in (False, True):
        tasks = {
            case_name(name, masked): {"task": "update", "size": size, "mode": name, "masked": masked}
            for name in settings.modes
        }
        found = in_turns("update", settings, size, say, tasks, settings.repeats)
        say("counting operations")
        for row, name in zip(found, settings.modes, strict=True):
            rows.append(replace(row, flops=count(config, size, "decoder3", masked, MODES[name].baseline)))
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
            peak = in_child({"task": "memory", "size": size, **task}, settings)
            rows.append(Measurement("memory", case, size, (peak,), "bytes"))
        except ChildError as error:
            rows.append(Measurement("memory", case, size, (), "bytes", note=str(error)))
    return rows


def against_dense(part: str, settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure the fused patch loss ("fused") or point tracking ("tracking") against the same on the dense map."""
    tasks = {case: {"task": part, "size": size, "dense": case == "dense"} for case in ("dense", "fused")}
    return in_turns(part, settings, size, say, tasks, max(settings.repeats, 7))


def measure_handles(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure an update with each number of handles."""
    net = unet(torch.float32)
    cases = {
        f"{n} handle{'s' if n > 1 else ''}": drag_laps(net, problem(net.config, size, settings.device, False, n))
        for n in settings.handles
    }
    laps = interleaved(cases, settings.repeats, say, f"handles at {size} px")
    return [measured("handles", case, size, laps[case]) for case in cases]


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
    laps = interleaved(cases, settings.repeats, say, f"denoising at {size} px, {LEVEL - stop} steps")
    return [measured("denoise", case, size, laps[case]) for case in cases]


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


def measure_compile(settings: Settings, unet: Network, size: int, say: Say) -> list[Measurement]:
    """Measure the compiled update against the eager one, and the first one: cold, and from the compiler's cache.

    Each in a fresh process.
    """
    rows = []
    modes = [name for name in settings.modes if not MODES[name].baseline]
    for case, name, how in ((f"{name}, {how}", name, how) for name in modes for how in ("whole", "regions")):
        task = {"task": "compile", "size": size, "mode": name, "compile": how}
        with tempfile.TemporaryDirectory() as folder:
            try:
                say(f"compile at {size} px: {case}, cold")
                cold = in_child({**task, "repeats": 0}, settings, TORCHINDUCTOR_CACHE_DIR=folder)
                say(f"compile at {size} px: {case}, warm")
                warm = in_child({**task, "repeats": settings.repeats}, settings, TORCHINDUCTOR_CACHE_DIR=folder)
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

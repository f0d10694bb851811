"""The benchmark: every part that is asked for, one after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from dragsa import loading, pictures
from dragsa.speed.laps import Measurement, Say
from dragsa.speed.machine import cores, load, machine_of
from dragsa.speed.parts import MEASURES
from dragsa.speed.problems import MODES, WIDTHS, Settings, network
from dragsa.speed.roof import Roof, best_rates


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

"""Settings, a network and a report for the tests of the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dragsa import pictures
from dragsa.model.unet import UNet
from dragsa.speed import Report, Settings
from dragsa.speed.laps import Flops, Measurement
from dragsa.speed.machine import Roof, machine_of
from dragsa.speed.problems import network


@pytest.fixture(scope="session")
def tiny() -> Settings:
    return Settings(sizes=(64,), width="tiny", repeats=1, steps=1, updates=1, threads=1)


@pytest.fixture(scope="session")
def net(tiny: Settings) -> UNet:
    return network(tiny, torch.float32)


CASES = {
    ("update", "baseline"): (20.0, 22.0, 21.0),
    ("update", "baseline, mask"): (24.0, 25.0, 26.0),
    ("update", "float32"): (12.0, 15.0, 13.0),
    ("update", "bfloat16"): (7.0, 7.0, 7.0),
    ("update", "bfloat16, mask"): (12.0, 16.0, 12.5),
    ("memory", "baseline"): (6.7e9,),
    ("memory", "bfloat16"): (2.9e9,),
    ("fused", "dense"): (0.5, 0.5),
    ("fused", "fused"): (0.004, 0.004),
    ("tracking", "dense"): (0.1,),
    ("tracking", "fused"): (0.01,),
    ("denoise", "first edit"): (30.0,),
    ("denoise", "second edit"): (15.0,),
    ("recompiles", "whole"): (0.0,),
    ("handles", "1 handle"): (8.0,),
    ("handles", "20 handles"): (8.1,),
}


def invented(**changes: tuple[float, ...]) -> Report:
    """Return a report of invented measurements at 512 px, those of a part's mode as `changes` has them."""
    flops = Flops(600, 600, 100, 100)
    rows = []
    for (part, case), values in CASES.items():
        unit = "bytes" if part == "memory" else "seconds"
        parts = {"forward": values, "backward": values} if part == "update" else {}
        seen = changes.get(f"{part}_{case.split(',')[0]}", values)
        row = Measurement(part, case, 512, seen, unit, parts)
        if part == "update":
            row = replace(row, flops=flops, losses=(2.0, 4.0001, 8.0) if case == "float32" else (2.0, 4.0, 8.0))
        rows.append(row)
    machine = {**machine_of(torch.device("cpu"), 1), "load": [0.5, 1.0]}
    return Report(Settings(), machine, pictures.versions(), {"float32": Roof(1e9, 2e9, 5e8)}, tuple(rows), 60.0)


@pytest.fixture
def planted() -> Callable[..., Report]:
    return invented

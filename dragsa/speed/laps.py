"""Timing: a lap is one run of what is measured, a measurement the laps of one case.

What is compared is timed in turns (A B A B …), so that other work on the machine meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

Say = Callable[[str], None]


class ChildError(RuntimeError):
    """A child process has failed; the message says how it ended."""


class Lap(NamedTuple):
    """One run of what is measured: seconds by part, and for an update the loss that it saw."""

    seconds: dict[str, float]
    loss: float | None = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Clock:
    """Seconds by part: each lap ends the one before."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = self._now()

    def lap(self, part: str) -> None:
        now = self._now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def again(action: Callable[[], Any], device: torch.device, times: int = 1) -> Iterator[Lap]:
    """Do the action over and over; each lap is the mean of so many `times`."""
    while True:
        clock = Clock(device)
        for _ in range(times):
            action()
        clock.lap("seconds")
        yield Lap({"seconds": clock.seconds["seconds"] / times})


class Flops(NamedTuple):
    """Floating-point operations of one update; those of attention (its products with K and V) are among them."""

    forward: int
    backward: int
    attention_forward: int
    attention_backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward

    @property
    def attention(self) -> int:
        return self.attention_forward + self.attention_backward


@dataclass(frozen=True)
class Measurement:
    """All repeats of one case of a part, such as ("update", "bfloat16, mask")."""

    part: str
    case: str
    size: int  # of the picture, pixels
    values: tuple[float, ...]  # one a repeat; none where it failed, and `note` says why
    unit: str = "seconds"
    parts: dict[str, tuple[float, ...]] = field(default_factory=dict)  # seconds by part of the same repeats
    losses: tuple[float, ...] = ()
    flops: Flops | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def in_turns(part: str, size: int, cases: Mapping[str, Iterator[Lap]], repeats: int, say: Say) -> list[Measurement]:
    """Take one lap of each case that is not counted, then one of each in turn, `repeats` times.

    Where the child process of one fails, all of them have failed.
    """
    laps: dict[str, list[Lap]] = {name: [] for name in cases}
    try:
        for turn in range(repeats + 1):
            for name, case in cases.items():
                say(f"{part} at {size} px: {name}, {f'repeat {turn} of {repeats}' if turn else 'warming up'}")
                lap = next(case)
                if turn:
                    laps[name].append(lap)
    except ChildError as error:
        return [Measurement(part, name, size, (), note=str(error)) for name in cases]
    return [measured(part, name, size, taken) for name, taken in laps.items()]


def measured(part: str, case: str, size: int, laps: Sequence[Lap], note: str = "") -> Measurement:
    """Return the measurement in seconds that these repeats make."""
    parts = {name: tuple(lap.seconds[name] for lap in laps) for name in laps[0].seconds}
    losses = tuple(lap.loss for lap in laps if lap.loss is not None)
    return Measurement(part, case, size, tuple(lap.total for lap in laps), parts=parts, losses=losses, note=note)


def significant(value: float) -> str:
    """Write a number with three digits, and no exponent for large ones."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"

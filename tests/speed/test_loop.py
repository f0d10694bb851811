"""The timed loop is the package's own, and sees the losses of the baseline's."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dragsa import drag
from dragsa.ddim import Schedule
from dragsa.model.unet import UNetOutput
from dragsa.speed.baseline import baseline_updates
from dragsa.speed.benchmark import traced_updates
from dragsa.speed.problems import LEVEL, WIDTHS, problem
from dragsa.speed.tasks import drag_laps


@pytest.mark.parametrize("masked", [False, True])
def test_both_loops_see_the_same_losses(net, masked):
    at = problem(net.config, 64, "cpu", masked, handles=2)
    theirs = [update.lap.loss for update in islice(baseline_updates(net, at), 3)]
    ours = list(islice(drag_laps(net, at), 3))
    assert [lap.loss for lap in ours] == pytest.approx(theirs, rel=1e-4)
    assert set(ours[1].seconds) == {"forward", "loss", "backward", "optimiser", "tracking"}
    assert len(set(theirs)) == 3


def test_the_timed_loop_is_drag_latent(net):
    at = problem(net.config, 64, "cpu", masked=False)
    config = replace(at.config, updates=3, patience=None, lost_patience=None)
    arguments = net, at.latent, LEVEL, at.context, Schedule(50, "dragdiffusion"), at.handles, at.targets, None, config
    losses = [lap.loss for lap in islice(drag_laps(net, at), 3)]
    assert losses == drag.drag_latent(*arguments).losses.tolist()


class Toy:
    """A network that is one convolution; with `counting` one that knows how often it was called."""

    def __init__(self, counting: bool) -> None:
        self.weight = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(3)) / 10
        self.calls, self.counting = 0, counting

    def __call__(self, z: Tensor, t: Tensor, context: Tensor, *, taps: tuple[str, ...], until: str | None) -> Any:
        self.calls += self.counting
        return UNetOutput(None, {taps[0]: nn.functional.conv2d(z, self.weight, padding=2) * (1 + self.calls)})


def test_recompiles_are_counted():
    at = problem(WIDTHS["tiny"][0], 64, "cpu", masked=False)
    plain, counting = (traced_updates(Toy(counting), at, 4) for counting in (False, True))
    assert plain.graphs == 1 and plain.places > 1
    assert counting.graphs > 1

"""The numbers that the paper gives, and the preset that suits a network."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import get_args

import pytest

import dragsa
from dragsa import checks, config
from dragsa.config import EditConfig


def test_the_default_preset_is_the_one_that_suits_the_networks_widths() -> None:
    assert config.suiting(config.UNetConfig().widths) == "sd15"
    for widths, preset in config.SUITED.items():
        assert config.suiting(widths) == preset and checks.configured(None, widths) == getattr(EditConfig, preset)()
    assert checks.configured(None, config.UNetConfig().widths) == EditConfig.sd15()
    given = EditConfig.paper()
    assert checks.configured(given, next(iter(config.SUITED))) is given


@pytest.mark.parametrize("name", get_args(config.Preset))
def test_a_setting_of_the_drag_loop_is_told_its_place(name: str) -> None:
    preset = getattr(EditConfig, name)
    assert preset(steps=9) == replace(preset(), steps=9)
    with pytest.raises(TypeError, match=r"radius is a setting of DragConfig: drag=replace\(config\.drag, radius=9\)"):
        preset(radius=9)


def test_the_printed_preset_differs_in_descent_and_loss_alone() -> None:
    paper, printed = EditConfig.paper(), EditConfig.paper_printed()
    assert replace(printed, drag=replace(printed.drag, optimizer="adam", loss="mean")) == paper
    assert (printed.drag.optimizer, printed.drag.loss) == ("sgd", "sum")


def test_the_papers_numbers() -> None:
    paper = EditConfig.paper()
    assert (paper.steps, paper.drag_step, paper.control_step) == (50, 10, 10)  # T, S, A
    assert (paper.drag.lr, paper.drag.tap, paper.guidance) == (0.01, "block14", 1.0)
    assert inspect.signature(dragsa.edit).parameters["seed"].default == 42

"""Every setting is checked against its annotation, in one place, and named."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from dragsa import checks
from dragsa.checks import values
from dragsa.config import DragConfig, EditConfig, Preset

ODD: list[Any] = [None, [], "", "7", {}, (None,), ("",), (1.5,), 0.5, -1, math.nan, True, b"adam", object()]
CASES = [(kind, one.name, value) for kind in (DragConfig, EditConfig) for one in fields(kind) for value in ODD]


def is_of(value: Any, annotation: Any) -> bool:
    """Whether a value of `ODD` is of a setting's annotation."""
    inner = get_args(annotation)
    if type(None) in inner:
        return value is None or is_of(value, inner[0])
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    return inner == (str, ...) and value == ("",)


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_a_value_of_another_type_is_refused_by_name(kind: Any, name: str, value: Any) -> None:
    settings = replace(kind(), **{name: value})
    least = 1 if name == "drag_guidance" else 0
    if is_of(value, get_type_hints(kind)[name]) and value != -1 and value == value and not (value == 0.5 < least):
        values.check(settings)
    elif name not in ("steps", "size") or value != -1:  # their ranges are the schedule's and the picture's
        with pytest.raises(ValueError, match=f"^{name} must be "):
            values.check(settings)


def test_what_numpy_counts_with_is_a_number() -> None:
    of_drag: dict[str, Any] = {"radius": np.int64(2), "lr": np.float32(0.1), "patience": np.int32(3)}
    of_edit: dict[str, Any] = {"control_blocks": (np.int64(11), 12), "guidance": 3}
    values.check(replace(DragConfig(), **of_drag))
    values.check(replace(EditConfig(), **of_edit))
    for name in get_args(Preset):
        values.check(getattr(EditConfig, name)())
        values.check(getattr(EditConfig, name)().drag)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"object_words": "predator"}, "object_words must be a tuple of texts, came 'predator'"),
        ({"control_blocks": [11, 12]}, r"control_blocks must be a tuple of whole numbers, came \[11, 12\]"),
        ({"steps": 50.0}, "steps must be a whole number, came 50.0"),
        (
            {"drag": DragConfig(stall=2**63)},
            r"stall must be a whole number that tensors hold, under 2\^63, came 9223372036854775808",
        ),
        ({"drag": None}, "drag must be a DragConfig, came None"),
        ({"control_step": 1.5}, "control_step must be a whole number from 0, came 1.5"),
        ({"mask_threshold": 2}, "mask_threshold must be a number from 0 to 1, came 2"),
        ({"drag": DragConfig(radius=None)}, "radius must be a whole number from 0, came None"),  # type: ignore[arg-type]
        ({"drag": DragConfig(tap=None)}, "tap must be a text, came None"),  # type: ignore[arg-type]
    ],
)
def test_an_edit_says_which_setting_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        checks.settings(replace(EditConfig(), **changes))


def test_a_config_of_another_class_is_refused() -> None:
    others: list[Any] = [{}, DragConfig(), "small"]
    for other in others:
        with pytest.raises(ValueError, match="config must be an EditConfig, came "):
            checks.configured(other)
    assert checks.configured(None) == EditConfig.sd15()
